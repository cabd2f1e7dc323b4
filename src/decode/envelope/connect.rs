//! Kafka Connect's JsonConverter with schemas: `{"schema": …, "payload": …}`. The schema says which numbers are times, and the
//! scale of a decimal that is written as bytes in base64.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::avro::decimal;
use super::super::{Reason, RowError, malformed};
use super::raw::{Fields, Text, object, quoted, string, too_deep, write_list, write_object};
use super::{Content, Skip, unexpected};

const EXPECTED: &str = "an object with `schema` and `payload`";
const NANOSECONDS_PER_DAY: i128 = 86_400_000_000_000;

/// A schema of Connect, as far as it matters here.
#[derive(Deserialize)]
pub struct Schema<'s> {
    /// The key of a struct's field.
    #[serde(borrow)]
    field: Option<Text<'s>>,
    /// The logical type.
    #[serde(borrow)]
    name: Option<Text<'s>>,
    #[serde(borrow)]
    parameters: Option<Parameters<'s>>,
    #[serde(borrow, default)]
    fields: Vec<Schema<'s>>,
    #[serde(borrow)]
    items: Option<Box<Schema<'s>>>,
    #[serde(borrow)]
    values: Option<Box<Schema<'s>>>,
}

#[derive(Deserialize)]
struct Parameters<'s> {
    #[serde(borrow)]
    scale: Option<&'s RawValue>,
}

pub fn open(json: &str) -> Result<Content<'static>, RowError> {
    let fields = object(json)?.ok_or_else(|| unexpected(EXPECTED, "connect", json))?;
    let (schema, payload) = parts(&fields)?.ok_or_else(|| unexpected(EXPECTED, "connect", json))?;
    if payload == "null" {
        return Ok(Content::Nothing(Skip::Tombstone));
    }
    convert(schema.as_ref(), payload).map(Content::record)
}

/// Returns a record of a list as plain JSON. `schema` is that of the whole payload, and `path` leads from the message to the list.
pub fn item(schema: &str, path: &str, item: &str) -> Result<String, RowError> {
    let schema = schema_of(schema)?;
    let list = schema
        .as_ref()
        .and_then(|schema| match path.split_once('.') {
            None => Some(schema),
            Some((_, below)) => schema.at(below),
        });
    convert(list.and_then(|list| list.items.as_deref()), item)
}

/// Returns the schema, if it is not null, and the payload. `None` if the object is something else.
pub fn parts<'p>(fields: &Fields<'p>) -> Result<Option<(Option<Schema<'p>>, &'p str)>, RowError> {
    let (Some(schema), Some(payload)) = (fields.get("schema")?, fields.get("payload")?) else {
        return Ok(None);
    };
    Ok(Some((schema_of(schema.get())?, payload.get())))
}

/// Returns a schema, or `None` for null.
fn schema_of(json: &str) -> Result<Option<Schema<'_>>, RowError> {
    serde_json::from_str(json)
        .map_err(|e| malformed(format!("`schema` is not a schema of Kafka Connect: {e}")))
}

impl Schema<'_> {
    /// Returns the schema of a struct's field.
    pub fn below(&self, key: &str) -> Option<&Self> {
        let mut fields = self.fields.iter();
        fields.find(|field| field.field.as_ref().is_some_and(|name| name.0 == key))
    }

    /// Returns the schema of the value at a path. A key with dots is found as well.
    fn at(&self, path: &str) -> Option<&Self> {
        let below = |key: &str| self.below(key).or(self.values.as_deref());
        if let Some(found) = self.below(path) {
            return Some(found);
        }
        match path.split_once('.') {
            Some((key, rest)) => below(key)?.at(rest),
            None => below(path),
        }
    }
}

/// Returns a value as plain JSON: decimals as numbers, times and dates in RFC 3339.
pub fn convert(schema: Option<&Schema<'_>>, value: &str) -> Result<String, RowError> {
    let mut out = String::with_capacity(value.len());
    match schema {
        Some(schema) => write(schema, value, &mut out, 0)?,
        None => out.push_str(value),
    }
    Ok(out)
}

fn write(schema: &Schema<'_>, value: &str, out: &mut String, depth: usize) -> Result<(), RowError> {
    too_deep(depth)?;
    if value == "null" {
        out.push_str(value);
        return Ok(());
    }
    if let Some(name) = &schema.name
        && let Some(converted) = logical(&name.0, schema, value)?
    {
        out.push_str(&converted);
        return Ok(());
    }
    if let Some(Fields(fields)) = object(value)? {
        return write_object(&fields, out, |key, value, out| {
            match schema.below(key).or(schema.values.as_deref()) {
                Some(schema) => write(schema, value, out, depth + 1),
                None => {
                    out.push_str(value);
                    Ok(())
                }
            }
        });
    }
    match &schema.items {
        Some(items) if value.starts_with('[') => {
            write_list(value, out, |value, out| write(items, value, out, depth + 1))
        }
        _ => {
            out.push_str(value);
            Ok(())
        }
    }
}

/// Returns a value of a logical type as plain JSON. `None` if it stays as it is: the type is not known here, or the value does
/// not fit it, for example a time beyond the calendar. A feature refuses the latter by its type.
fn logical(name: &str, schema: &Schema<'_>, value: &str) -> Result<Option<String>, RowError> {
    let (per_second, is_clock) = match name {
        "org.apache.kafka.connect.data.Decimal" => {
            let scale = schema.parameters.as_ref().and_then(|p| p.scale);
            let scale = scale.and_then(|scale| {
                let text = string(scale.get());
                text.as_deref().unwrap_or(scale.get()).parse().ok()
            });
            return match (scale, string(value)) {
                (Some(scale), Some(bytes)) => unscaled(&bytes, scale).map(Some),
                _ => Ok(None),
            };
        }
        "io.debezium.data.VariableScaleDecimal" => {
            let Some(fields) = object(value)? else {
                return Ok(None);
            };
            let scale = fields.get("scale")?.and_then(|s| s.get().parse().ok());
            let bytes = fields.get("value")?.and_then(|value| string(value.get()));
            return match (scale, bytes) {
                (Some(scale), Some(bytes)) => unscaled(&bytes, scale).map(Some),
                _ => Ok(None),
            };
        }
        "org.apache.kafka.connect.data.Date" | "io.debezium.time.Date" => {
            let days: Option<i64> = value.parse().ok();
            let time = days.and_then(|days| {
                Timestamp::from_nanosecond(i128::from(days) * NANOSECONDS_PER_DAY).ok()
            });
            return Ok(time.map(|time| quoted(&time.to_string())));
        }
        "io.debezium.time.IsoDate" => {
            let date = string(value);
            return Ok(
                date.map(|date| quoted(&format!("{}T00:00:00Z", date.trim_end_matches('Z'))))
            );
        }
        "io.debezium.time.ZonedTime" | "io.debezium.time.IsoTime" => {
            return Ok(string(value).map(|time| quoted(&format!("1970-01-01T{time}"))));
        }
        "org.apache.kafka.connect.data.Timestamp" | "io.debezium.time.Timestamp" => (1_000, false),
        "io.debezium.time.MicroTimestamp" => (1_000_000, false),
        "io.debezium.time.NanoTimestamp" => (1_000_000_000, false),
        "org.apache.kafka.connect.data.Time" | "io.debezium.time.Time" => (1_000, true),
        "io.debezium.time.MicroTime" => (1_000_000, true),
        "io.debezium.time.NanoTime" => (1_000_000_000, true),
        _ => return Ok(None),
    };
    let count: Option<i64> = value.parse().ok();
    let nanoseconds = count.map(|count| i128::from(count) * (1_000_000_000 / per_second));
    let is_in_range = |n: &i128| !is_clock || (0..NANOSECONDS_PER_DAY).contains(n);
    let time = nanoseconds
        .filter(is_in_range)
        .and_then(|n| Timestamp::from_nanosecond(n).ok());
    Ok(time.map(|time| quoted(&time.to_string())))
}

/// Returns a decimal as a JSON number. `bytes` is its unscaled value: a big-endian integer in base64.
fn unscaled(bytes: &str, scale: i32) -> Result<String, RowError> {
    let bytes = BASE64_STANDARD
        .decode(bytes)
        .map_err(|e| malformed(format!("a decimal is not in base64: {e}")))?;
    if let Ok(scale) = usize::try_from(scale)
        && let Some(number) = decimal(scale, &bytes)
    {
        return Ok(number);
    }
    // More than 38 digits, or a negative scale: a float is as good, because no feature has more digits.
    let negative = bytes.first().is_some_and(|byte| *byte >= 0x80);
    let start = if negative { -1.0 } else { 0.0 };
    let number = bytes
        .iter()
        .fold(start, |sum, byte| sum * 256.0 + f64::from(*byte))
        * 10_f64.powi(-scale);
    match number.is_finite() {
        true => Ok(serde_json::Value::from(number).to_string()),
        false => Err(RowError {
            reason: Reason::OutOfRange,
            detail: "a decimal does not fit into a 64-bit float".into(),
        }),
    }
}
