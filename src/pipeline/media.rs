//! The maps of a verdict: in it, or where it points to.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::PipelineError;
use super::publish::Publisher;
use crate::batch::Kept;
use crate::config::Media;
use crate::message::{Message, media_message, verdict_id};
use crate::picture::{Finding, Png};
use crate::verdict::{Place, Shown};

const CONTENT_TYPE: &str = "image/png";

impl Publisher {
    /// The verdict on a picture, its maps on their way before it.
    pub(super) fn picture_message(
        &mut self,
        sequence: u64,
        record: Kept<'_>,
        score: f32,
        finding: &Finding,
    ) -> Result<Message, PipelineError> {
        let id = verdict_id(&self.model, &self.topics[record.from.topic], record);
        let maps = [
            ("heatmap", &finding.heatmap),
            ("reconstruction", &finding.reconstruction),
        ];
        let bytes: usize = maps.iter().map(|(_, png)| png.bytes.len()).sum();
        let inline = bytes <= self.output.inline_limit;
        let mut shown = [None, None];
        for (shown, (kind, png)) in shown.iter_mut().zip(maps) {
            let place = match inline {
                true => Some(Place::Data(STANDARD.encode(&png.bytes))),
                false => self.put_aside(sequence, record, &id, kind, png)?,
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
        Ok(self.message(record, &verdict))
    }

    /// To the media topic or folder, if there is one. The same verdict always goes to the same place.
    fn put_aside(
        &mut self,
        sequence: u64,
        record: Kept<'_>,
        id: &str,
        kind: &str,
        png: &Png,
    ) -> Result<Option<Place>, PipelineError> {
        let uri = match self.output.media.clone() {
            None => return Ok(None),
            Some(Media::Topic(topic)) => {
                let key = format!("{id}-{kind}");
                let source = record.source(&self.topics[record.from.topic]);
                let message = media_message(source, &key, &png.bytes, record.timestamp_ms);
                let uri = format!("kafka://{topic}?key={key}");
                self.send(sequence, topic, message);
                uri
            }
            Some(Media::Folder(folder)) => {
                let name = format!("{id}-{kind}.png");
                write_whole(&folder, &name, &png.bytes).map_err(|e| PipelineError::Media {
                    path: folder.join(&name).display().to_string(),
                    problem: e.to_string(),
                })?;
                format!("file://{}", escaped(&folder.join(name)))
            }
        };
        Ok(Some(Place::Uri(uri)))
    }
}

/// Under its name there is the whole file or none, whoever else writes it at the same time.
fn write_whole(folder: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let draft = folder.join(format!(".{name}.{}", std::process::id()));
    fs::write(&draft, bytes)?;
    fs::rename(draft, folder.join(name))
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
    fn a_file_is_written_whole_and_again() {
        let folder = tempfile::tempdir().unwrap();
        for bytes in [&b"one"[..], b"two"] {
            write_whole(folder.path(), "a.png", bytes).unwrap();
            assert_eq!(fs::read(folder.path().join("a.png")).unwrap(), bytes);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_path_becomes_a_part_of_a_uri() {
        assert_eq!(
            escaped(Path::new("/a b/c@1-heatmap.png")),
            "/a%20b/c@1-heatmap.png"
        );
    }
}
