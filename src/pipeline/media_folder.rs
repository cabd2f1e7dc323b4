//! Writes maps to `output.media_dir` for the publisher. While maps cannot be written, publishing waits.

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

    /// Writes maps, each with the id of its verdict. Returns `false` if the write must be retried later.
    pub fn write<'f>(&mut self, all: impl Iterator<Item = (String, &'f Finding)>) -> bool {
        if self.tried.is_some_and(|tried| tried.elapsed() < RETRY) {
            return false;
        }
        match self.try_write(all) {
            Ok(()) => {
                self.note_success();
                true
            }
            Err((path, problem)) => {
                self.note_failure(&path, &problem);
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

    fn note_success(&mut self) {
        self.tried = None;
        if let Some(since) = self.blocked_since.take() {
            tracing::info!(
                seconds = since.elapsed().as_secs(),
                "maps can be written to output.media_dir again"
            );
            self.metrics.media_dir_blocked.set(0);
        }
    }

    fn note_failure(&mut self, path: &std::path::Path, problem: &io::Error) {
        if self.blocked_since.is_none() {
            tracing::error!(
                path = %path.display(),
                "output.media_dir: {problem}; publishing waits until this map can be written: free some space, or repair the folder"
            );
            self.metrics.media_dir_blocked.set(1);
        }
        self.blocked_since.get_or_insert_with(Instant::now);
        self.tried = Some(Instant::now());
    }
}
