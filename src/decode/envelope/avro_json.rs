//! Avro's JSON encoding. It writes the value of a union as an object whose key is the value's type: `{"double": 1.5}`, or
//! `{"shop.Merchant": {…}}` for a named type with a namespace. A type without a namespace cannot be told from a field, so it stays
//! a part of the path.

use super::super::RowError;
use super::raw::{Converted, Fields, object, rewrite};
use super::{Content, unexpected};

pub fn open(json: &str) -> Result<Content<'static>, RowError> {
    let json = json.trim();
    if object(json)?.is_none() {
        let expected = "a record in Avro's JSON encoding";
        return Err(unexpected(expected, "avro-json", json));
    }
    let mut out = String::with_capacity(json.len());
    rewrite(json, &mut out, 0, &|fields| {
        Ok(branch(fields).map_or(Converted::Kept, Converted::Inner))
    })?;
    Ok(Content::record(out))
}

/// Returns the value of a union.
pub fn branch<'p>(fields: &Fields<'p>) -> Option<&'p str> {
    let [(key, value)] = &fields.0[..] else {
        return None;
    };
    let value = value.get();
    let first = value.as_bytes().first();
    let is_named = key.contains('.') && matches!(first, Some(b'{' | b'"'));
    let is_of_type = match key.split('.').next().unwrap_or_default() {
        "boolean" => matches!(first, Some(b't' | b'f')),
        "int" | "long" | "float" | "double" => {
            matches!(first, Some(b'-' | b'0'..=b'9' | b'"'))
        }
        "bytes" | "string" => first == Some(&b'"'),
        "array" => first == Some(&b'['),
        "map" => first == Some(&b'{'),
        _ => false,
    };
    (is_named || is_of_type).then_some(value)
}
