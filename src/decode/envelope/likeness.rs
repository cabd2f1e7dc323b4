//! Recognises envelopes in records that could not be read without one.

use std::borrow::Cow;

use super::super::json::{nan, unframed};
use super::raw::{Fields, describe, items, object, string};
use super::{Envelope, avro_json, mongo};

/// Maximum number of envelopes in each other that are recognised.
const MOST_ENVELOPES: usize = 3;
/// Maximum depth in a message at which a list of records is recognised.
const MOST_DEPTH: usize = 4;

/// What a message seems to be, and the settings that read it.
struct Likeness {
    what: Cow<'static, str>,
    /// The outermost first.
    envelopes: Vec<Envelope>,
    /// The value of input.unwrap, if it is needed.
    unwrap: Option<String>,
}

/// Like [`likeness`], for envelopes only. A record may well contain a list of records.
pub fn envelope_likeness(payload: &[u8]) -> Option<String> {
    let found = find_in(payload)?;
    (!found.envelopes.is_empty()).then(|| found.described())
}

/// Returns what a message seems to be, and the setting that reads it.
pub fn likeness(payload: &[u8]) -> Option<String> {
    find_in(payload).map(|found| found.described())
}

/// Returns what a record seems to be that was taken out of `outer`, and the setting that reads it.
pub fn likeness_inside(outer: &[Envelope], record: &str) -> Option<String> {
    let mut found = find(record.trim(), MOST_ENVELOPES)?;
    if found.envelopes.is_empty() || found.unwrap.is_some() {
        return None;
    }
    found.envelopes.splice(..0, outer.iter().copied());
    Some(found.described())
}

fn find_in(payload: &[u8]) -> Option<Likeness> {
    let text = std::str::from_utf8(unframed(payload)).ok()?;
    find(&nan::marked(text.trim()), MOST_ENVELOPES)
}

impl Likeness {
    fn of(what: &'static str, envelope: Envelope) -> Likeness {
        Likeness {
            what: what.into(),
            envelopes: vec![envelope],
            unwrap: None,
        }
    }

    fn list(what: &'static str, unwrap: String) -> Likeness {
        Likeness {
            what: what.into(),
            envelopes: Vec::new(),
            unwrap: Some(unwrap),
        }
    }

    /// Adds that the envelope has a list of records inside of it.
    fn with_list(mut self, path: &str) -> Likeness {
        self.what = format!("{} with a list of records", self.what).into();
        self.unwrap = Some(path.to_owned());
        self
    }

    /// Adds what an envelope has inside of it, if that is an envelope, too.
    fn around(mut self, inner: Option<Likeness>) -> Likeness {
        if let Some(inner) = inner.filter(|inner| inner.unwrap.is_none()) {
            self.what = format!("{} around {}", self.what, inner.what).into();
            self.envelopes.extend(inner.envelopes);
        }
        self
    }

    fn described(&self) -> String {
        let names = self.envelopes.iter().map(|envelope| envelope.name());
        let names: Vec<String> = names.map(|name| format!("\"{name}\"")).collect();
        let envelope = match &names[..] {
            [] => None,
            [name] => Some(format!("input.envelope = {name}")),
            names => Some(format!("input.envelope = [{}]", names.join(", "))),
        };
        let unwrap = self.unwrap.as_ref();
        let unwrap = unwrap.map(|place| format!("input.unwrap = \"{place}\""));
        let settings: Vec<String> = envelope.into_iter().chain(unwrap).collect();
        format!(
            "it looks like {}: set {}",
            self.what,
            settings.join(" and ")
        )
    }
}

/// Recognises a message, or a record in at most `most` more envelopes.
fn find(text: &str, most: usize) -> Option<Likeness> {
    let below = most.checked_sub(1)?;
    if let Some(inner) = string(text) {
        let is_object = describe(&inner).starts_with("an object");
        let found = Likeness::of("a JSON string that contains JSON", Envelope::JsonString);
        return is_object.then(|| found.around(find(inner.trim(), below)));
    }
    if text.starts_with('[') {
        let (first, _) = items(text, 1).ok()?;
        let first = first.first()?;
        return match object(first).ok()?? {
            event if event.has("specversion") => {
                Some(cloud_event("a batch of CloudEvents", &event, below))
            }
            _ => Some(several("a list of records", "list", first, below)),
        };
    }
    let Ok(Some(fields)) = object(text) else {
        let mut lines = text.lines().filter(|line| !line.trim().is_empty());
        let is_object = |line: &str| matches!(object(line), Ok(Some(_)));
        return match (lines.next(), lines.next()) {
            (Some(first), Some(second)) if is_object(first) && is_object(second) => {
                Some(several("one record a line", "lines", first, below))
            }
            _ => None,
        };
    };
    if fields.has("schema")
        && let Some(payload) = value(&fields, "payload")
    {
        return Some(connect(payload, below));
    }
    if is_change(&fields) {
        return Some(debezium());
    }
    if fields.has("specversion") && (fields.has("data") || fields.has("data_base64")) {
        let found = cloud_event("a CloudEvent in structured mode", &fields, below);
        return Some(
            match value(&fields, "data").is_some_and(is_list_of_objects) {
                true => found.with_list("data"),
                false => found,
            },
        );
    }
    if fields.has("operationType") && (fields.has("fullDocument") || fields.has("documentKey")) {
        return Some(Likeness::of("a change event of MongoDB", Envelope::Mongo));
    }
    let objects = || {
        let values = fields.0.iter();
        values.filter_map(|(_, value)| object(value.get()).ok()?)
    };
    if objects().any(|object| matches!(mongo::scalar(&object), Ok(Some(_)))) {
        return Some(Likeness::of("MongoDB's extended JSON", Envelope::Mongo));
    }
    if objects().any(|object| avro_json::branch(&object).is_some()) {
        return Some(Likeness::of("Avro's JSON encoding", Envelope::AvroJson));
    }
    let path = list_below(&fields)?;
    Some(Likeness::list("records in a list", path))
}

/// Recognises several records by the first of them.
fn several(what: &'static str, unwrap: &str, first: &str, most: usize) -> Likeness {
    let mut found = Likeness::list(what, unwrap.to_owned());
    let inner = find(first.trim(), most).filter(|inner| inner.unwrap.is_none());
    if let Some(inner) = inner {
        found.what = format!("{what}, each {}", inner.what).into();
        found.envelopes = inner.envelopes;
    }
    found
}

fn cloud_event(what: &'static str, event: &Fields<'_>, most: usize) -> Likeness {
    let data = value(event, "data").map(|data| find_in_envelope(data, most));
    Likeness::of(what, Envelope::CloudEvents).around(data.flatten())
}

fn connect(payload: &str, most: usize) -> Likeness {
    if object(payload)
        .ok()
        .flatten()
        .is_some_and(|payload| is_change(&payload))
    {
        return debezium();
    }
    let found = Likeness::of(
        "a record of Kafka Connect with its schema",
        Envelope::Connect,
    );
    if is_list_of_objects(payload) {
        return found.with_list("payload");
    }
    // A payload that only surrounds a list is no record.
    match object(payload) {
        Ok(Some(fields)) if fields.0.len() == 1 => match list_below(&fields) {
            Some(path) => found.with_list(&format!("payload.{path}")),
            None => found.around(find_in_envelope(payload, most)),
        },
        _ => found.around(find_in_envelope(payload, most)),
    }
}

fn debezium() -> Likeness {
    Likeness::of("a change event of Debezium", Envelope::Debezium)
}

/// Recognises an envelope in an envelope. Debezium reads Connect's schema itself.
fn find_in_envelope(text: &str, most: usize) -> Option<Likeness> {
    find(text, most).filter(|inner| inner.unwrap.is_none())
}

fn is_change(fields: &Fields<'_>) -> bool {
    fields.has("after") && (fields.has("op") || fields.has("before"))
}

fn value<'p>(fields: &Fields<'p>, key: &str) -> Option<&'p str> {
    let mut fields = fields.0.iter();
    fields
        .find(|(name, _)| name == key)
        .map(|(_, value)| value.get())
}

fn is_list_of_objects(value: &str) -> bool {
    value.starts_with('[')
        && items(value, 1).is_ok_and(|(first, _)| first.first().is_some_and(|f| f.starts_with('{')))
}

/// Returns the path of the only list of objects at the least depth that has one, as input.unwrap writes it.
fn list_below(fields: &Fields<'_>) -> Option<String> {
    let mut level = vec![(String::new(), fields.0.clone())];
    for _ in 0..MOST_DEPTH {
        let (mut lists, mut below) = (Vec::new(), Vec::new());
        for (prefix, fields) in level {
            for (key, value) in fields.iter().filter(|(key, _)| !key.contains('.')) {
                let path = match &*prefix {
                    "" => key.to_string(),
                    prefix => format!("{prefix}.{key}"),
                };
                if is_list_of_objects(value.get()) {
                    lists.push(path);
                } else if let Ok(Some(object)) = object(value.get()) {
                    below.push((path, object.0));
                }
            }
        }
        match &mut lists[..] {
            [] => level = below,
            [only] => return Some(as_place(std::mem::take(only))),
            _ => return None,
        }
    }
    None
}

/// Writes the path of a list for input.unwrap, which has words of its own.
fn as_place(path: String) -> String {
    match path.as_str() {
        "none" | "list" | "lines" => format!("$.{path}"),
        _ => path,
    }
}
