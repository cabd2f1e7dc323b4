//! Places the maps of a verdict on an image: in the verdict itself, or where the verdict points to.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::config::{Media, OutputSettings};
use crate::image::{Finding, Png};
use crate::message::{Message, media_message};
use crate::record::Origin;
use crate::text::percent_encoded_file;
use crate::verdict::{Place, Shown};

use super::map_files;

const CONTENT_TYPE: &str = "image/png";

/// The maps of one verdict.
pub struct Maps {
    /// The heatmap and the reconstruction, as the verdict shows them.
    pub shown: [Option<Shown>; 2],
    /// The messages that hold the maps, each with its topic.
    pub messages: Vec<(String, Message)>,
}

/// Returns the heatmap and the reconstruction, with the names used for files and keys.
pub fn by_kind(finding: &Finding) -> [(&'static str, &Png); 2] {
    [
        ("heatmap", &finding.heatmap),
        ("reconstruction", &finding.reconstruction),
    ]
}

/// Returns whether the maps are small enough to be in the verdict itself.
pub fn are_inline(output: &OutputSettings, finding: &Finding) -> bool {
    let bytes: usize = by_kind(finding)
        .iter()
        .map(|(_, png)| png.bytes.len())
        .sum();
    bytes <= output.inline_limit
}

/// Places the maps of the verdict `id`. The same verdict always points to the same places.
pub fn of(
    output: &OutputSettings,
    finding: &Finding,
    id: &str,
    source: Origin,
    timestamp_ms: Option<i64>,
) -> Maps {
    let inline = are_inline(output, finding);
    let mut maps = Maps {
        shown: [None, None],
        messages: Vec::new(),
    };
    for (shown, (kind, png)) in maps.shown.iter_mut().zip(by_kind(finding)) {
        let place = match &output.media {
            _ if inline => Place::Data(STANDARD.encode(&png.bytes)),
            None => continue,
            Some(Media::Folder(folder)) => {
                let file = folder.join(map_files::name(id, kind));
                let path = percent_encoded_file(&file.to_string_lossy());
                Place::Uri(format!("file://{path}"))
            }
            Some(Media::Topic(topic)) => {
                let key = format!("{id}-{kind}");
                let message = media_message(source.clone(), &key, &png.bytes, timestamp_ms);
                maps.messages.push((topic.clone(), message));
                Place::Uri(format!("kafka://{topic}?key={key}"))
            }
        };
        *shown = Some(Shown {
            content_type: CONTENT_TYPE,
            width: png.width,
            height: png.height,
            place,
        });
    }
    maps
}
