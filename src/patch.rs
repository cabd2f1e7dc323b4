//! Sets fields of a JSON record and leaves every other byte of its values as it is.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A field to set: the keys of its path, and its value as JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit<'k> {
    pub keys: Vec<Cow<'k, str>>,
    pub json: String,
}

/// Returns the record with these fields. A field that the record lacks is added; a null is replaced. As when records are decoded, a
/// key with dots is the same as nested objects.
///
/// # Errors
/// The record is not a JSON object.
pub fn set(record: &str, edits: Vec<Edit<'_>>) -> Result<String, serde_json::Error> {
    let mut out = String::with_capacity(record.len() + 64);
    write(record, edits, &mut out)?;
    Ok(out)
}

/// Returns whether the record has this field at its top level.
pub fn has_field(record: &str, field: &str) -> bool {
    // Most records do not contain the word, so few are parsed twice.
    let fields = || serde_json::from_str::<HashMap<String, IgnoredAny>>(record);
    record.contains(field) && fields().is_ok_and(|fields| fields.contains_key(field))
}

/// Returns the number as JSON: the shortest text that reads back as the same float32. NaN and infinities are null.
pub fn number(value: f32) -> String {
    match value {
        value if !value.is_finite() => "null".to_owned(),
        value if is_exact_integer(value) => (value as i64).to_string(),
        value => value.to_string(),
    }
}

/// Returns whether the value is a whole number that float32 holds exactly.
pub fn is_exact_integer(value: f32) -> bool {
    const EXACT: f32 = 16_777_216.0;
    value.fract() == 0.0 && value.abs() < EXACT
}

/// The members of an object in their order.
struct Members<'r>(Vec<(Cow<'r, str>, &'r RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry::<Cow<'de, str>, &'de RawValue>()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

fn write(
    object: &str,
    mut edits: Vec<Edit<'_>>,
    out: &mut String,
) -> Result<(), serde_json::Error> {
    let Members(members) = serde_json::from_str(object)?;
    out.push('{');
    let mut is_first = true;
    let mut begin = |key: &str, out: &mut String| {
        if !std::mem::take(&mut is_first) {
            out.push(',');
        }
        out.push_str(&serde_json::Value::from(key).to_string());
        out.push(':');
    };
    for (key, value) in &members {
        begin(key, out);
        let (own, others): (Vec<_>, Vec<_>) = edits
            .into_iter()
            .map(|edit| (length(&edit, key), edit))
            .partition(|(length, _)| *length > 0);
        edits = others.into_iter().map(|(_, edit)| edit).collect();
        let below = |(length, edit): (usize, Edit<'_>)| {
            let keys = edit.keys[length..]
                .iter()
                .map(|key| Cow::Owned(key.to_string()))
                .collect();
            Edit {
                keys,
                json: edit.json,
            }
        };
        let own: Vec<Edit<'_>> = own.into_iter().map(below).collect();
        match own.iter().find(|edit| edit.keys.is_empty()) {
            Some(edit) => out.push_str(&edit.json),
            None if own.is_empty() => out.push_str(value.get()),
            None if value.get().starts_with('{') => write(value.get(), own, out)?,
            None => write("{}", own, out)?,
        }
    }
    // What is left gets new objects, one for each first key.
    while let Some(key) = edits.first().map(|edit| edit.keys[0].to_string()) {
        let (own, others) = edits
            .into_iter()
            .partition(|edit: &Edit<'_>| edit.keys[0] == key);
        edits = others;
        begin(&key, out);
        let own: Vec<Edit<'_>> = own;
        let mut own: Vec<Edit<'_>> = own
            .into_iter()
            .map(|edit| Edit {
                keys: edit.keys[1..].to_vec(),
                json: edit.json,
            })
            .collect();
        match own.iter().position(|edit| edit.keys.is_empty()) {
            Some(edit) => out.push_str(&own.swap_remove(edit).json),
            None => write("{}", own, out)?,
        }
    }
    out.push('}');
    Ok(())
}

/// Returns how many keys of the edit's path the member's key stands for, 0 if none.
fn length(edit: &Edit<'_>, key: &str) -> usize {
    let lengths = 1..=edit.keys.len();
    lengths
        .into_iter()
        .find(|&length| edit.keys[..length].join(".") == key)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(record: &str, edits: &[(&[&'static str], &str)]) -> String {
        let edits = edits.iter().map(|(keys, json)| Edit {
            keys: keys.iter().map(|key| Cow::Borrowed(*key)).collect(),
            json: (*json).to_owned(),
        });
        set(record, edits.collect()).unwrap()
    }

    #[test]
    fn fields_are_replaced_or_added_and_all_else_stays() {
        let record =
            r#"{"a": 1.10000000000000009, "b": {"c": null, "d":[1,  2]}, "e.f": null, "g": null}"#;
        assert_eq!(
            edited(
                record,
                &[
                    (&["b", "c"], "5"),
                    (&["e", "f"], "6"),
                    (&["g", "h"], "7"),
                    (&["i", "j"], "8"),
                    (&["i", "k"], "9"),
                    (&["l"], "\"m\"")
                ]
            ),
            r#"{"a":1.10000000000000009,"b":{"c":5,"d":[1,  2]},"e.f":6,"g":{"h":7},"i":{"j":8,"k":9},"l":"m"}"#
        );
        assert_eq!(edited("{}", &[(&["a"], "1")]), r#"{"a":1}"#);
        assert_eq!(edited(r#"{"\u0061": 1}"#, &[(&["a"], "2")]), r#"{"a":2}"#);
        assert!(set("[1]", vec![]).is_err());
    }

    #[test]
    fn numbers_read_back_as_the_same_float32() {
        for (value, expected) in [(3.0, "3"), (-0.0, "0"), (0.1, "0.1"), (f32::NAN, "null")] {
            assert_eq!(number(value), expected);
        }
        let large = 3.4e38_f32;
        assert_eq!(number(large).parse::<f32>().unwrap(), large);
    }

    #[test]
    fn a_field_is_looked_for_at_the_top_level_only() {
        assert!(has_field(r#"{"a": {"b": 1}, "b": null}"#, "b"));
        assert!(!has_field(r#"{"a": {"b": 1}, "c": "b"}"#, "b"));
    }
}
