//! Visits every value of a JSON object with its dotted path, in one pass and without a tree.

use std::borrow::Cow;
use std::fmt;

use crate::decode::without_nan;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::bundle::path;

/// A JSON value without its contents, if it is an array or an object.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scalar<'a> {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(&'a str),
    Array,
    /// An object without fields.
    Object,
}

impl Scalar<'_> {
    /// Returns the text by which categories are compared. `None` for null, arrays and objects.
    pub fn text(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Scalar::Text(text) => Cow::Borrowed(*text),
            Scalar::Bool(v) => Cow::Owned(v.to_string()),
            Scalar::Unsigned(v) => Cow::Owned(v.to_string()),
            Scalar::Signed(v) => Cow::Owned(v.to_string()),
            Scalar::Float(v) => Cow::Owned(v.to_string()),
            Scalar::Null | Scalar::Array | Scalar::Object => return None,
        })
    }

    /// Returns a number, or 0 or 1 for a boolean.
    pub fn number(&self) -> Option<f64> {
        match self {
            Scalar::Bool(v) => Some(f64::from(u8::from(*v))),
            Scalar::Unsigned(v) => Some(*v as f64),
            Scalar::Signed(v) => Some(*v as f64),
            Scalar::Float(v) => Some(*v),
            Scalar::Null | Scalar::Text(_) | Scalar::Array | Scalar::Object => None,
        }
    }
}

/// Calls `each` with the path and the value of every field, in nested objects too. Arrays are not entered. A key with a dot has the
/// same path as a nested object. See [`path`].
///
/// # Errors
/// The payload is not one JSON object.
pub fn scan(payload: &[u8], mut each: impl FnMut(&str, Scalar<'_>)) -> serde_json::Result<()> {
    // NaN is no fault here: a feature that reads it refuses it, or takes it as missing.
    let text = str::from_utf8(payload).map(without_nan);
    let payload = text.as_deref().map_or(payload, str::as_bytes);
    let mut deserializer = serde_json::Deserializer::from_slice(payload);
    let mut path = String::new();
    let fields = Fields {
        path: &mut path,
        each: &mut each,
        is_record: true,
    };
    fields.deserialize(&mut deserializer)?;
    deserializer.end()
}

struct Fields<'p, F> {
    path: &'p mut String,
    each: &'p mut F,
    is_record: bool,
}

impl<F: FnMut(&str, Scalar<'_>)> Fields<'_, F> {
    fn give<E: serde::de::Error>(self, value: Scalar<'_>) -> Result<(), E> {
        if self.is_record {
            return Err(E::custom("expected an object"));
        }
        (self.each)(self.path, value);
        Ok(())
    }
}

impl<'de, F: FnMut(&str, Scalar<'_>)> DeserializeSeed<'de> for Fields<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, F: FnMut(&str, Scalar<'_>)> Visitor<'de> for Fields<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let parent = self.path.len();
        let is_record = self.is_record;
        let mut empty = true;
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            empty = false;
            path::push(self.path, &key, is_record);
            map.next_value_seed(Fields {
                path: self.path,
                each: self.each,
                is_record: false,
            })?;
            self.path.truncate(parent);
        }
        if empty && !self.is_record {
            (self.each)(self.path, Scalar::Object);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.give::<A::Error>(Scalar::Array)?;
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.give(Scalar::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.give(Scalar::Bool(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.give(Scalar::Unsigned(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.give(Scalar::Signed(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.give(Scalar::Float(value))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        self.give(Scalar::Text(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scanned(payload: &str) -> Vec<(String, String)> {
        let mut found = Vec::new();
        scan(payload.as_bytes(), |path, value| {
            found.push((path.to_owned(), format!("{value:?}")));
        })
        .unwrap();
        found
    }

    #[test]
    fn paths_are_dotted_and_arrays_are_not_entered() {
        let found = scanned(
            r#"{"a": {"b": 1, "c": {}}, "d.e": "x", "f": [1, {"g": 2}], "h": null, "": 1.5}"#,
        );
        let expected = [
            ("a.b", "Unsigned(1)"),
            ("a.c", "Object"),
            ("d.e", "Text(\"x\")"),
            ("f", "Array"),
            ("h", "Null"),
            ("\"\"", "Float(1.5)"),
        ];
        let expected = expected.map(|(path, value)| (path.to_owned(), value.to_owned()));
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_not_one_object_is_refused() {
        for payload in ["", "1", "null", "[]", "{} {}", "{\"a\": }"] {
            assert!(scan(payload.as_bytes(), |_, _| {}).is_err(), "{payload}");
        }
    }
}
