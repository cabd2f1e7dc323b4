//! Messages of restored records.

use super::{About, Kind, Message, ModelId, id_at};
use crate::dead_letter::OMITTED;
use crate::record::{Origin, OwnedHeader, header};

/// Headers that residuald writes. They replace the headers of the same name that a record came with.
const OWN: [&str; 8] = [
    "residuald.id",
    "residuald.topic",
    "residuald.partition",
    "residuald.offset",
    "residuald.index",
    "residuald.seed",
    "residuald.outcome",
    "residuald.sigma",
];

/// Returns whether residuald itself writes this header of a restored record.
pub(super) fn is_own(name: &str) -> bool {
    name == OMITTED || OWN.contains(&name)
}

/// Builds the message of a restored record: its key, timestamp and headers, and headers that name its place and its verdict, and say
/// what was done.
pub fn restored_message(
    model: &ModelId,
    source: Origin,
    (key, timestamp_ms): (Option<Vec<u8>>, Option<i64>),
    mut headers: Vec<OwnedHeader>,
    payload: Vec<u8>,
    done: Vec<(&str, String)>,
) -> Message {
    headers.retain(|(name, _)| !is_own(name));
    let id = id_at(model, &source.topic, source.place());
    headers.push(header("residuald.id", &id));
    headers.push(header("residuald.topic", &source.topic));
    headers.push(header("residuald.partition", &source.partition.to_string()));
    headers.push(header("residuald.offset", &source.offset.to_string()));
    if let Some(index) = source.index {
        headers.push(header("residuald.index", &index.to_string()));
    }
    for (name, value) in done {
        headers.push(header(name, &value));
    }
    Message {
        about: About {
            source,
            kind: Kind::Restored,
        },
        key,
        headers,
        payload,
        timestamp_ms,
    }
}
