//! Reads JSON one level at a time. Values stay text, so that what is not converted stays as it came.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::super::{Reason, RowError, malformed};

/// Maximum nesting depth of a record whose values are converted. Each level is parsed again, so the depth bounds the work.
pub const MAX_DEPTH: usize = 64;
/// Maximum number of keys that a description lists.
const MOST_KEYS: usize = 8;

/// The fields of an object, in order.
pub struct Fields<'p>(pub Vec<(Cow<'p, str>, &'p RawValue)>);

impl<'p> Fields<'p> {
    /// Returns the value of a key.
    ///
    /// # Errors
    /// The key occurs twice.
    pub fn get(&self, key: &str) -> Result<Option<&'p RawValue>, RowError> {
        let mut found = self.0.iter().filter(|(name, _)| name == key);
        let value = found.next().map(|(_, value)| *value);
        match found.next() {
            None => Ok(value),
            Some(_) => Err(RowError {
                reason: Reason::Duplicate,
                detail: format!("field `{key}`: given twice").into(),
            }),
        }
    }

    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(name, _)| name == key)
    }
}

/// Returns the fields of an object, or `None` if `json` is another value.
///
/// # Errors
/// The text is not JSON.
pub fn object(json: &str) -> Result<Option<Fields<'_>>, RowError> {
    if !json.trim_start().starts_with('{') {
        return Ok(None);
    }
    serde_json::from_str(json)
        .map(Some)
        .map_err(|e| malformed(format!("not JSON: {e}")))
}

/// Returns at most `most` items of a list, and their number.
///
/// # Errors
/// The text is not a list.
pub fn items(list: &str, most: usize) -> Result<(Vec<&str>, usize), RowError> {
    let mut deserializer = serde_json::Deserializer::from_str(list);
    let items = Deserializer::deserialize_seq(&mut deserializer, Items(most));
    items
        .and_then(|items| deserializer.end().map(|()| items))
        .map_err(|e| malformed(format!("not a JSON list: {e}")))
}

/// Returns the text of a JSON string, or `None` if `json` is another value.
pub fn string(json: &str) -> Option<Cow<'_, str>> {
    if !json.starts_with('"') {
        return None;
    }
    serde_json::from_str::<Text<'_>>(json)
        .ok()
        .map(|text| text.0)
}

/// Names the kind of a JSON value, with the keys of an object.
pub fn describe(json: &str) -> String {
    let json = json.trim();
    match json.as_bytes().first() {
        Some(b'{') => match object(json) {
            Ok(Some(fields)) if !fields.0.is_empty() => {
                let more = fields.0.len().saturating_sub(MOST_KEYS);
                let keys = fields.0.iter().take(MOST_KEYS);
                let keys: Vec<String> = keys.map(|(key, _)| format!("`{key}`")).collect();
                let more = match more {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                format!("an object with the keys {}{more}", keys.join(", "))
            }
            Ok(_) => "an empty object".to_owned(),
            Err(error) => error.detail.to_string(),
        },
        Some(b'[') => "a list".to_owned(),
        Some(b'"') => "a string".to_owned(),
        Some(b'n') if json == "null" => "null".to_owned(),
        Some(b't' | b'f') if json == "true" || json == "false" => "a boolean".to_owned(),
        Some(b'-' | b'0'..=b'9') => "a number".to_owned(),
        _ => "something that is not JSON".to_owned(),
    }
}

/// How a value is written.
pub enum Converted<'p> {
    /// As it is, with its items and fields converted.
    Kept,
    As(String),
    /// As the value inside of it, converted.
    Inner(&'p str),
}

/// Writes a value to `out`. `convert` decides about each object in it.
///
/// # Errors
/// `convert` fails, or the value nests too deeply.
pub fn rewrite(
    value: &str,
    out: &mut String,
    depth: usize,
    convert: &dyn for<'p> Fn(&Fields<'p>) -> Result<Converted<'p>, RowError>,
) -> Result<(), RowError> {
    too_deep(depth)?;
    if let Some(fields) = object(value)? {
        return match convert(&fields)? {
            Converted::As(text) => {
                out.push_str(&text);
                Ok(())
            }
            Converted::Inner(inner) => rewrite(inner, out, depth + 1, convert),
            Converted::Kept => write_object(&fields.0, out, |_, value, out| {
                rewrite(value, out, depth + 1, convert)
            }),
        };
    }
    if value.starts_with('[') {
        return write_list(value, out, |value, out| {
            rewrite(value, out, depth + 1, convert)
        });
    }
    out.push_str(value);
    Ok(())
}

/// Writes an object whose values `write` writes.
pub fn write_object(
    fields: &[(Cow<'_, str>, &RawValue)],
    out: &mut String,
    mut write: impl FnMut(&str, &str, &mut String) -> Result<(), RowError>,
) -> Result<(), RowError> {
    out.push('{');
    for (i, (key, value)) in fields.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        out.push_str(&quoted(key));
        out.push(':');
        write(key, value.get(), out)?;
    }
    out.push('}');
    Ok(())
}

/// Writes a list whose items `write` writes.
pub fn write_list(
    list: &str,
    out: &mut String,
    mut write: impl FnMut(&str, &mut String) -> Result<(), RowError>,
) -> Result<(), RowError> {
    let (items, _) = items(list, usize::MAX)?;
    out.push('[');
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        write(item, out)?;
    }
    out.push(']');
    Ok(())
}

/// Returns an error for a value that is nested too deeply to convert.
pub fn too_deep(depth: usize) -> Result<(), RowError> {
    match depth > MAX_DEPTH {
        true => Err(malformed(format!(
            "the record is nested deeper than {MAX_DEPTH} levels, and input.envelope converts no deeper"
        ))),
        false => Ok(()),
    }
}

pub fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A JSON string, borrowed if it has no escapes.
#[derive(serde::Deserialize)]
pub struct Text<'p>(#[serde(borrow)] pub Cow<'p, str>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some((key, value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    fields.push((key.0, value));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

struct Items(usize);

impl<'de> Visitor<'de> for Items {
    type Value = (Vec<&'de str>, usize);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let (mut items, mut count) = (Vec::new(), 0);
        while let Some(item) = seq.next_element::<&'de RawValue>()? {
            count += 1;
            if items.len() < self.0 {
                items.push(item.get());
            }
        }
        Ok((items, count))
    }
}
