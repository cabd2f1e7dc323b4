//! `output.media_dir` as the publisher sees it: where it takes no maps, publishing waits.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::image::Finding;
use crate::metrics::Metrics;

use super::map_files;
use super::maps;

const RETRY: Duration = Duration::from_secs(1);

pub struct MediaFolder {
    path: PathBuf,
    metrics: Metrics,
    blocked_since: Option<Instant>,
    tried: Option<Instant>,
}

impl MediaFolder {
    pub fn new(path: PathBuf, metrics: Metrics) -> MediaFolder {
        MediaFolder {
            path,
            metrics,
            blocked_since: None,
            tried: None,
        }
    }

    /// Writes maps, each with the id of its verdict; `false` if that has to be tried again later.
    pub fn write<'f>(&mut self, all: impl Iterator<Item = (String, &'f Finding)>) -> bool {
        if self.tried.is_some_and(|tried| tried.elapsed() < RETRY) {
            return false;
        }
        match self.try_write(all) {
            Ok(()) => {
                self.is_open();
                true
            }
            Err((path, problem)) => {
                self.is_blocked(&path, &problem);
                false
            }
        }
    }

    fn try_write<'f>(
        &self,
        all: impl Iterator<Item = (String, &'f Finding)>,
    ) -> Result<(), (PathBuf, io::Error)> {
        for (id, finding) in all {
            for (kind, png) in maps::by_kind(finding) {
                let name = map_files::name(&id, kind);
                let written = map_files::write(&self.path, &name, &png.bytes);
                written.map_err(|e| (self.path.join(name), e))?;
            }
        }
        Ok(())
    }

    fn is_open(&mut self) {
        self.tried = None;
        if let Some(since) = self.blocked_since.take() {
            tracing::info!(
                seconds = since.elapsed().as_secs(),
                "output.media_dir takes maps again"
            );
            self.metrics.media_dir_blocked.set(0);
        }
    }

    fn is_blocked(&mut self, path: &std::path::Path, problem: &io::Error) {
        if self.blocked_since.is_none() {
            tracing::error!(
                path = %path.display(),
                "output.media_dir: {problem}; publishing waits until the map can be written: free some space, or repair the folder"
            );
            self.metrics.media_dir_blocked.set(1);
        }
        self.blocked_since.get_or_insert_with(Instant::now);
        self.tried = Some(Instant::now());
    }
}
