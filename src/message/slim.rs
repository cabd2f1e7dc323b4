//! Shrinks messages that are too large. Only the outermost object of a verdict is parsed, so that no nesting and no
//! size of a record can damage the parts that stay: the score, the reason and the origin of the record.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::{Kind, Message, restored};
use crate::dead_letter::{ERRORS_PREFIX, OMITTED};
use crate::record::header;

/// The maximum number of bytes in a record batch besides key, value and headers: 61 for the batch and 36 for its
/// record.
const OVERHEAD: usize = 100;
/// The bytes for the lengths of a header's name and value, 5 at most for each.
const HEADER_OVERHEAD: usize = 10;

/// A part that a message can leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A field in the JSON of a verdict.
    Field(&'static str),
    /// A map in the verdict itself, not a map that the verdict points to.
    Map(&'static str),
    Value,
    /// The headers that came with the record.
    Headers,
    Key,
}

/// The optional parts of a verdict, in the order in which they are left out.
const VERDICT_PARTS: [Part; 10] = [
    Part::Field("record"),
    Part::Map("heatmap"),
    Part::Map("reconstruction"),
    Part::Headers,
    Part::Key,
    Part::Field("nearest_normal"),
    Part::Field("feature_imputed"),
    Part::Field("regions"),
    Part::Field("relevant_attribution"),
    Part::Field("segment"),
];
const DEAD_LETTER_PARTS: [Part; 3] = [Part::Value, Part::Headers, Part::Key];
const MAP_PARTS: [Part; 1] = [Part::Value];
const RESTORED_PARTS: [Part; 3] = [Part::Headers, Part::Value, Part::Key];

impl Part {
    fn name(self) -> &'static str {
        match self {
            Part::Field(name) | Part::Map(name) => name,
            Part::Value => "value",
            Part::Headers => "headers",
            Part::Key => "key",
        }
    }
}

type Fields<'m> = BTreeMap<&'m str, &'m RawValue>;

impl Message {
    /// Returns an upper bound of the bytes that the message takes, uncompressed, in a batch of its own. Clients and
    /// brokers compare this size with their limits.
    pub fn size(&self) -> usize {
        let key = self.key.as_ref().map_or(0, Vec::len);
        let headers: usize = self.headers.iter().map(size_of).sum();
        OVERHEAD + key + self.payload.len() + headers
    }

    /// Returns the message shrunk to `limit` bytes, and the names of the parts left out. Leaves out as little as
    /// possible. If the message cannot be that small, leaves out all optional parts.
    pub fn slimmed(&self, limit: usize, why: &str) -> (Message, Vec<&'static str>) {
        let fields = self.fields();
        let weighed = self
            .parts()
            .iter()
            .map(|part| (*part, self.weight(*part, &fields)));
        let present: Vec<(Part, usize)> = weighed.filter(|(_, weight)| *weight > 0).collect();
        let left_out = choose(&present, self.size() + self.note_size(why), limit);
        let names: Vec<&'static str> = left_out.iter().map(|part| part.name()).collect();
        let mut slim = self.without(&left_out, fields);
        slim.omit(&names, why);
        (slim, names)
    }

    /// Adds a header that names the parts left out of the message, and the reason.
    pub fn omit(&mut self, names: &[&str], why: &str) {
        if names.is_empty() {
            return;
        }
        let mut note = format!("{}: {why}", names.join(", "));
        if let Some(at) = self.headers.iter().position(|(name, _)| name == OMITTED) {
            let (_, before) = self.headers.remove(at);
            let before = before.unwrap_or_default();
            note = format!("{}; {note}", String::from_utf8_lossy(&before));
        }
        self.headers.push(header(OMITTED, &note));
    }

    fn parts(&self) -> &'static [Part] {
        match self.about.kind {
            Kind::Verdict => &VERDICT_PARTS,
            Kind::DeadLetter(_) => &DEAD_LETTER_PARTS,
            Kind::Map => &MAP_PARTS,
            Kind::Restored => &RESTORED_PARTS,
            Kind::Record => &[],
        }
    }

    fn fields(&self) -> Fields<'_> {
        match self.about.kind {
            Kind::Verdict => serde_json::from_slice(&self.payload).unwrap_or_default(),
            _ => Fields::new(),
        }
    }

    /// Returns the number of bytes that leaving a part out saves.
    fn weight(&self, part: Part, fields: &Fields<'_>) -> usize {
        let field = |name: &str| {
            let value = fields.get(name)?.get();
            // This includes the quotes, the colon and the comma.
            Some(name.len() + value.len() + 4)
        };
        match part {
            Part::Field(name) => field(name).unwrap_or(0),
            Part::Map(name) => match fields.get(name) {
                Some(map) if holds_data(map) => field(name).unwrap_or(0),
                _ => 0,
            },
            Part::Value => self.payload.len(),
            Part::Headers => {
                let came = self.headers.iter().filter(|(name, _)| !self.is_own(name));
                came.map(size_of).sum()
            }
            Part::Key => self.key.as_ref().map_or(0, Vec::len),
        }
    }

    /// Returns the maximum size of the header that names the parts left out.
    fn note_size(&self, why: &str) -> usize {
        let names: usize = self.parts().iter().map(|part| part.name().len() + 2).sum();
        OMITTED.len() + names + why.len() + 4 + HEADER_OVERHEAD
    }

    /// Returns whether this program writes the header `name` itself.
    fn is_own(&self, name: &str) -> bool {
        name == OMITTED
            || match self.about.kind {
                Kind::Verdict => name.starts_with("ce_") || name == "content-type",
                Kind::DeadLetter(_) => name.starts_with(ERRORS_PREFIX),
                Kind::Restored => restored::is_own(name),
                Kind::Map | Kind::Record => true,
            }
    }

    fn without(&self, parts: &[Part], mut fields: Fields<'_>) -> Message {
        let before = fields.len();
        for part in parts {
            if let Part::Field(name) | Part::Map(name) = part {
                fields.remove(name);
            }
        }
        let payload = match fields.len() {
            _ if parts.contains(&Part::Value) => Vec::new(),
            after if after == before => self.payload.clone(),
            _ => serde_json::to_vec(&fields).expect("parsed JSON always serialises"),
        };
        let stay = |name: &str| self.is_own(name) || !parts.contains(&Part::Headers);
        let headers = self.headers.iter().filter(|(name, _)| stay(name));
        Message {
            about: self.about.clone(),
            key: self.key.clone().filter(|_| !parts.contains(&Part::Key)),
            headers: headers.cloned().collect(),
            payload,
            timestamp_ms: self.timestamp_ms,
        }
    }
}

/// Chooses the parts to leave out of a message of `size` bytes. Takes parts in order until the message fits, and then
/// puts back each part that still fits.
fn choose(present: &[(Part, usize)], size: usize, limit: usize) -> Vec<Part> {
    let (mut size, mut chosen) = (size, Vec::new());
    for (part, weight) in present {
        if size <= limit {
            break;
        }
        size -= weight;
        chosen.push((*part, *weight));
    }
    chosen.retain(|(_, weight)| {
        let fits = size + weight <= limit;
        if fits {
            size += weight;
        }
        !fits
    });
    chosen.into_iter().map(|(part, _)| part).collect()
}

fn size_of((name, value): &(String, Option<Vec<u8>>)) -> usize {
    name.len() + value.as_ref().map_or(0, Vec::len) + HEADER_OVERHEAD
}

fn holds_data(map: &RawValue) -> bool {
    #[derive(Deserialize)]
    struct Shown {
        data: Option<IgnoredAny>,
    }
    serde_json::from_str::<Shown>(map.get()).is_ok_and(|shown| shown.data.is_some())
}

#[cfg(test)]
mod tests;
