//! Recognises envelopes in records that could not be read without one.

use std::borrow::Cow;

use super::super::json::{nan, unframed};
use super::raw::{Fields, describe, items, object, string};
use super::{avro_json, mongo};

/// Like [`likeness`], for envelopes only. A record may well contain a list of records.
pub fn envelope_likeness(payload: &[u8]) -> Option<String> {
    likeness(payload).filter(|likeness| likeness.contains("input.envelope"))
}

/// Returns what a message seems to be, and the setting that reads it.
pub fn likeness(payload: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(unframed(payload)).ok()?;
    let text: Cow<'_, str> = nan::marked(text.trim());
    let is = |what: &str, setting: &str| Some(format!("it looks like {what}: set {setting}"));
    let envelope = |what: &str, name: &str| is(what, &format!("input.envelope = \"{name}\""));
    if let Some(inner) = string(&text) {
        return match describe(&inner) {
            kind if kind.starts_with("an object") => {
                envelope("a JSON string that contains JSON", "json-string")
            }
            _ => None,
        };
    }
    if text.starts_with('[') {
        let (first, _) = items(&text, 1).ok()?;
        let first = object(first.first()?).ok()??;
        return match first.has("specversion") {
            true => envelope("a batch of CloudEvents", "cloudevents"),
            false => is("a list of records", "input.unwrap = \"list\""),
        };
    }
    let Ok(Some(fields)) = object(&text) else {
        let mut lines = text.lines().filter(|line| !line.trim().is_empty());
        let is_object = |line: &str| matches!(object(line), Ok(Some(_)));
        return match (lines.next(), lines.next()) {
            (Some(first), Some(second)) if is_object(first) && is_object(second) => {
                is("one record a line", "input.unwrap = \"lines\"")
            }
            _ => None,
        };
    };
    let below = |key: &str| -> Option<Fields<'_>> {
        let (_, value) = fields.0.iter().find(|(name, _)| name == key)?;
        object(value.get()).ok()?
    };
    let is_change = |fields: &Fields<'_>| {
        fields.has("op") && fields.has("after") || fields.has("before") && fields.has("after")
    };
    if fields.has("schema") && fields.has("payload") {
        return match below("payload") {
            Some(payload) if is_change(&payload) => {
                envelope("a change event of Debezium", "debezium")
            }
            _ => envelope("a record of Kafka Connect with its schema", "connect"),
        };
    }
    if is_change(&fields) {
        return envelope("a change event of Debezium", "debezium");
    }
    if fields.has("specversion") && (fields.has("data") || fields.has("data_base64")) {
        return envelope("a CloudEvent in structured mode", "cloudevents");
    }
    if fields.has("operationType") && (fields.has("fullDocument") || fields.has("documentKey")) {
        return envelope("a change event of MongoDB", "mongo");
    }
    let mut objects = fields
        .0
        .iter()
        .filter_map(|(_, value)| object(value.get()).ok()?);
    if objects.any(|object| matches!(mongo::scalar(&object), Ok(Some(_)))) {
        return envelope("MongoDB's extended JSON", "mongo");
    }
    let mut objects = fields
        .0
        .iter()
        .filter_map(|(_, value)| object(value.get()).ok()?);
    if objects.any(|object| avro_json::branch(&object).is_some()) {
        return envelope("Avro's JSON encoding", "avro-json");
    }
    let lists = fields.0.iter().filter(|(_, value)| {
        let first = items(value.get(), 1).ok();
        first.is_some_and(|(first, _)| first.first().is_some_and(|f| f.starts_with('{')))
    });
    match &lists.collect::<Vec<_>>()[..] {
        [(key, _)] if !key.contains('.') => {
            is("records in a list", &format!("input.unwrap = \"{key}\""))
        }
        _ => None,
    }
}
