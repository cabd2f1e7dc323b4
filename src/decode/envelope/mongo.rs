//! MongoDB's extended JSON, version 2 in its canonical and relaxed form, and the spellings of version 1. A document becomes plain
//! JSON: numbers as numbers, dates in RFC 3339, object ids and binary data as strings.

use jiff::Timestamp;

use super::super::json::nan;
use super::super::{Reason, RowError, malformed};
use super::raw::{Converted, Fields, object, quoted, rewrite, string};
use super::{Content, Skip, is_null, unexpected};

const EXPECTED: &str = "a document in extended JSON";

pub fn open(json: &str) -> Result<Content<'static>, RowError> {
    let json = json.trim();
    // Kafka Connect's JsonConverter writes the document as a string.
    let inner = string(json);
    let json = inner.as_deref().unwrap_or(json);
    let fields = object(json)?.ok_or_else(|| unexpected(EXPECTED, "mongo", json))?;
    let change = fields.get("operationType")?.and_then(|op| string(op.get()));
    match change {
        Some(change) if fields.has("ns") || fields.has("documentKey") => {
            self::change(&change, &fields)
        }
        _ => document(json).map(Content::record),
    }
}

/// Returns the document of a change stream's event.
fn change(operation: &str, event: &Fields<'_>) -> Result<Content<'static>, RowError> {
    match operation {
        "delete" => return Ok(Content::Nothing(Skip::Delete)),
        "drop" | "dropDatabase" | "rename" => return Ok(Content::Nothing(Skip::Truncate)),
        "insert" | "update" | "replace" => {}
        _ => return Ok(Content::Nothing(Skip::LogMessage)),
    }
    match event.get("fullDocument")?.filter(|doc| !is_null(doc)) {
        Some(full) => document(full.get()).map(Content::record),
        None => Err(RowError {
            reason: Reason::Missing,
            detail: format!(
                "the {operation} has no `fullDocument`: set change.stream.full.document = updateLookup in the connector"
            )
            .into(),
        }),
    }
}

/// Returns a document as plain JSON.
pub fn document(json: &str) -> Result<String, RowError> {
    let marked = nan::marked(json);
    let json = marked.trim();
    if object(json)?.is_none() {
        return Err(unexpected(EXPECTED, "mongo", json));
    }
    let mut out = String::with_capacity(json.len());
    rewrite(json, &mut out, 0, &|fields| {
        Ok(scalar(fields)?.map_or(Converted::Kept, Converted::As))
    })?;
    Ok(out)
}

/// Returns the plain JSON of an object that stands for one value. `None` if it is an ordinary object.
pub fn scalar(fields: &Fields<'_>) -> Result<Option<String>, RowError> {
    let [(key, value), rest @ ..] = &fields.0[..] else {
        return Ok(None);
    };
    let has_rest = |key: &str| matches!(rest, [(name, _)] if name == key);
    let (key, value) = (key.as_ref(), value.get());
    // Version 1 has the kind of binary data beside it.
    let is_old_binary = key == "$binary" && has_rest("$type");
    if !rest.is_empty() && !is_old_binary {
        return Ok(None);
    }
    Ok(match key {
        "$numberInt" | "$numberLong" | "$numberDouble" | "$numberDecimal" => {
            Some(number(key, value)?)
        }
        "$date" => Some(date(value)?),
        "$oid" | "$symbol" | "$uuid" => string(value).map(|_| value.to_owned()),
        "$binary" => match object(value)? {
            Some(binary) => binary.get("base64")?.map(|data| data.get().to_owned()),
            None => string(value).map(|_| value.to_owned()),
        },
        "$timestamp" => match object(value)? {
            Some(timestamp) => {
                let seconds = timestamp.get("t")?.and_then(|t| t.get().parse().ok());
                seconds.and_then(|seconds| rfc3339(seconds, 1_000_000_000))
            }
            None => None,
        },
        "$undefined" => Some("null".to_owned()),
        _ => None,
    })
}

fn number(key: &str, value: &str) -> Result<String, RowError> {
    let text = string(value);
    let text = text.as_deref().unwrap_or(value);
    let wrong = || malformed(format!("extended JSON: {value} is not a {key}"));
    let number: f64 = text.parse().map_err(|_| wrong())?;
    if matches!(key, "$numberInt" | "$numberLong") && text.parse::<i64>().is_err() {
        return Err(wrong());
    }
    if !number.is_finite() {
        return Ok(nan::mark(match (number.is_nan(), number > 0.0) {
            (true, _) => "NaN",
            (_, true) => "Infinity",
            _ => "-Infinity",
        }));
    }
    // A decimal keeps its digits if JSON can write them like this.
    match serde_json::from_str::<serde_json::Number>(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Ok(serde_json::Value::from(number).to_string()),
    }
}

/// Reads a date: RFC 3339, or milliseconds as `{"$numberLong": "…"}` or as a number.
fn date(value: &str) -> Result<String, RowError> {
    let wrong = || malformed(format!("extended JSON: {value} is not a $date"));
    if let Some(text) = string(value) {
        let time: Timestamp = text.parse().map_err(|_| wrong())?;
        return Ok(quoted(&time.to_string()));
    }
    let long = match object(value)? {
        Some(fields) => fields.get("$numberLong")?,
        None => None,
    };
    let text = long.map_or(value, |long| long.get());
    let text = string(text).unwrap_or(text.into());
    let milliseconds: i64 = text.parse().map_err(|_| wrong())?;
    // A date beyond the calendar stays a number, which a feature refuses.
    Ok(rfc3339(milliseconds, 1_000_000).unwrap_or_else(|| milliseconds.to_string()))
}

fn rfc3339(count: i64, nanoseconds: i128) -> Option<String> {
    let time = Timestamp::from_nanosecond(i128::from(count) * nanoseconds).ok()?;
    Some(quoted(&time.to_string()))
}
