//! Records as JSON texts: parts of them, and fields set. What is not changed keeps its spelling and its place.

use std::borrow::Cow;
use std::fmt;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use residuald::bundle::path::keys_or_parts;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;

use crate::error;
use crate::schema::Text;

/// A record with only the fields at these dotted paths.
#[pyfunction]
pub fn select<'py>(
    py: Python<'py>,
    record: Text,
    paths: Vec<String>,
) -> PyResult<Bound<'py, PyBytes>> {
    let paths: Vec<_> = paths.iter().map(|path| keys_or_parts(path)).collect();
    let paths: Vec<&[Cow<'_, str>]> = paths.iter().map(Vec::as_slice).collect();
    let json = text(record.bytes()).and_then(|json| selected(json, &paths));
    Ok(PyBytes::new(py, json.map_err(error)?.as_bytes()))
}

/// A record with the field at a dotted path set to a JSON text, or without it if `value` is None.
#[pyfunction]
#[pyo3(signature = (record, path, value))]
pub fn set_field<'py>(
    py: Python<'py>,
    record: Text,
    path: &str,
    value: Option<&str>,
) -> PyResult<Bound<'py, PyBytes>> {
    let json = text(record.bytes()).and_then(|json| changed(json, &keys_or_parts(path), value));
    Ok(PyBytes::new(py, json.map_err(error)?.as_bytes()))
}

fn text(record: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(record).map_err(|e| format!("a record is not UTF-8: {e}"))
}

fn selected(json: &str, paths: &[&[Cow<'_, str>]]) -> Result<String, String> {
    let mut members = Vec::new();
    for (key, value) in parse(json)?.0 {
        let inner: Vec<&[Cow<'_, str>]> =
            paths.iter().filter_map(|path| after(&key, path)).collect();
        if inner.iter().any(|path| path.is_empty()) {
            members.push((key, value));
            continue;
        }
        if !inner.is_empty() && is_object(&value) {
            let value = raw(selected(value.get(), &inner)?)?;
            members.push((key, value));
        }
    }
    print(&Object(members))
}

/// Returns what follows `key` in a path. A key may hold dots itself, so it may be several parts.
fn after<'p, 'k>(key: &str, path: &'p [Cow<'k, str>]) -> Option<&'p [Cow<'k, str>]> {
    let mut lengths = 1..=path.len();
    let length = lengths.find(|length| path[..*length].join(".") == key)?;
    Some(&path[length..])
}

fn changed(json: &str, path: &[Cow<'_, str>], value: Option<&str>) -> Result<String, String> {
    let mut object = parse(json)?;
    // A key may hold dots itself, so the members say how the path is to be split.
    let is_here = |key: &str| after(key, path).is_some_and(<[_]>::is_empty);
    if let Some(at) = object.0.iter().position(|(key, _)| is_here(key)) {
        match value {
            Some(value) => object.0[at].1 = raw(value.to_owned())?,
            None => drop(object.0.remove(at)),
        }
        return print(&object);
    }
    for (key, member) in &mut object.0 {
        let inner = after(key, path);
        if let Some(inner) = inner.filter(|_| is_object(member)) {
            *member = raw(changed(member.get(), inner, value)?)?;
            return print(&object);
        }
    }
    let Some(value) = value else {
        return Ok(json.to_owned());
    };
    let Some((key, inner)) = path.split_first() else {
        return Ok(json.to_owned());
    };
    let new = match inner {
        [] => value.to_owned(),
        inner => changed("{}", inner, Some(value))?,
    };
    object.0.retain(|(name, _)| name != key);
    object.0.push((key.to_string(), raw(new)?));
    print(&object)
}

fn parse(json: &str) -> Result<Object, String> {
    serde_json::from_str(json).map_err(|e| format!("a record is not a JSON object: {e}"))
}

fn print(object: &Object) -> Result<String, String> {
    serde_json::to_string(object).map_err(|e| e.to_string())
}

fn raw(json: String) -> Result<Box<RawValue>, String> {
    RawValue::from_string(json).map_err(|e| format!("a value is not JSON: {e}"))
}

fn is_object(value: &RawValue) -> bool {
    value.get().starts_with('{')
}

/// The members of a JSON object in their order, values as they are written.
struct Object(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}
