//! The maps of a verdict: in it, or where it points to.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::folder;
use super::publish::Publisher;
use crate::batch::{Batch, Kept, Sighting};
use crate::config::Media;
use crate::message::{Message, media_message, verdict_id};
use crate::picture::{Finding, Png};
use crate::verdict::{Place, Shown};

const CONTENT_TYPE: &str = "image/png";
const RETRY: Duration = Duration::from_secs(1);

/// What the folder for maps keeps waiting.
#[derive(Debug, Default)]
pub(super) struct Blocked {
    since: Option<Instant>,
    tried: Option<Instant>,
}

fn maps(finding: &Finding) -> [(&'static str, &Png); 2] {
    [
        ("heatmap", &finding.heatmap),
        ("reconstruction", &finding.reconstruction),
    ]
}

impl Publisher {
    /// The verdict on a picture, its maps on their way before it or written already.
    pub(super) fn picture_message(
        &mut self,
        sequence: u64,
        record: Kept<'_>,
        score: f32,
        finding: &Finding,
    ) -> Message {
        let id = verdict_id(&self.model, &self.topics[record.from.topic], record);
        let inline = self.is_inline(finding);
        let mut shown = [None, None];
        for (shown, (kind, png)) in shown.iter_mut().zip(maps(finding)) {
            let place = match inline {
                true => Some(Place::Data(STANDARD.encode(&png.bytes))),
                false => self.place(sequence, record, &id, kind, png),
            };
            *shown = place.map(|place| Shown {
                content_type: CONTENT_TYPE,
                width: png.width,
                height: png.height,
                place,
            });
        }
        let [heatmap, reconstruction] = shown;
        let verdict = self
            .judge
            .judge_picture(score, finding, heatmap, reconstruction);
        self.message(record, &verdict)
    }

    fn is_inline(&self, finding: &Finding) -> bool {
        let bytes: usize = maps(finding).iter().map(|(_, png)| png.bytes.len()).sum();
        bytes <= self.output.inline_limit
    }

    /// Where a map is, or is sent now: the media topic or folder, if there is one. The same verdict always names the same place.
    fn place(
        &mut self,
        sequence: u64,
        record: Kept<'_>,
        id: &str,
        kind: &str,
        png: &Png,
    ) -> Option<Place> {
        let uri = match self.output.media.clone()? {
            Media::Topic(topic) => {
                let key = format!("{id}-{kind}");
                let source = record.source(&self.topics[record.from.topic]);
                let message = media_message(source, &key, &png.bytes, record.timestamp_ms);
                let uri = format!("kafka://{topic}?key={key}");
                self.send(sequence, topic, message);
                uri
            }
            Media::Folder(folder) => {
                format!("file://{}", escaped(&folder.join(folder::name(id, kind))))
            }
        };
        Some(Place::Uri(uri))
    }

    /// Writes the maps of a batch into the folder, if that is where they go; `false` if that has to be tried again later. Before
    /// the batch is published: no transaction may be open for as long as a disk is full.
    pub(super) fn shelve(&mut self, batch: &Batch) -> bool {
        let Some(Media::Folder(folder)) = self.output.media.clone() else {
            return true;
        };
        let too_soon = |tried: Instant| tried.elapsed() < RETRY;
        if self.blocked.tried.is_some_and(too_soon) {
            return false;
        }
        let problem = self.write_maps(&folder, batch).err();
        self.folder_answers(problem)
    }

    fn write_maps(&self, folder: &Path, batch: &Batch) -> Result<(), (PathBuf, std::io::Error)> {
        for (i, record) in batch.records().enumerate() {
            let finding = match batch.sightings.get(i) {
                Some(Sighting::Explained(finding)) if !self.is_inline(finding) => finding,
                _ => continue,
            };
            let id = verdict_id(&self.model, &self.topics[record.from.topic], record);
            for (kind, png) in maps(finding) {
                let name = folder::name(&id, kind);
                let written = folder::write(folder, &name, &png.bytes);
                written.map_err(|e| (folder.join(name), e))?;
            }
        }
        Ok(())
    }

    /// Says when the folder takes no maps, and when it does again; whether it does.
    fn folder_answers(&mut self, problem: Option<(PathBuf, std::io::Error)>) -> bool {
        let blocked = &mut self.blocked;
        match (problem, blocked.since) {
            (None, None) => {}
            (None, Some(since)) => {
                tracing::info!(
                    seconds = since.elapsed().as_secs(),
                    "output.media_dir takes maps again"
                );
                *blocked = Blocked::default();
                self.metrics.media_dir_blocked.set(0);
            }
            (Some((path, problem)), since) => {
                if since.is_none() {
                    tracing::error!(
                        path = %path.display(),
                        "output.media_dir: {problem}; publishing waits until the map can be written: free some space, or mend the folder"
                    );
                    self.metrics.media_dir_blocked.set(1);
                }
                blocked.since.get_or_insert_with(Instant::now);
                blocked.tried = Some(Instant::now());
                return false;
            }
        }
        true
    }
}

fn escaped(path: &Path) -> String {
    let path = path.to_string_lossy();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-_.~@".contains(&b);
    let byte = |b: u8| match plain(b) {
        true => char::from(b).to_string(),
        false => format!("%{b:02X}"),
    };
    path.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_becomes_a_part_of_a_uri() {
        assert_eq!(
            escaped(Path::new("/a b/c@1-heatmap.png")),
            "/a%20b/c@1-heatmap.png"
        );
    }
}
