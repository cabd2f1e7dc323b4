//! Extracts the label and the key from a payload by dotted path.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::value::RawValue;

use super::Options;
use super::labels::Labels;
use crate::bundle::path;
use crate::decode::without_nan;

pub struct Picker {
    label: Option<String>,
    normal: String,
    key: Option<String>,
    labels: Labels,
}

impl Picker {
    pub fn new(options: &Options) -> Self {
        let Options {
            label, normal, key, ..
        } = options.clone();
        Self {
            label,
            normal: canonical(&normal),
            key,
            labels: Labels::default(),
        }
    }

    /// Returns the label and key of one payload. Each is `None` if its path is not set or its value is null.
    ///
    /// # Errors
    /// A message, if the payload is not a JSON object, lacks the field, or has an object or array there. The payload is only
    /// parsed if at least one path is set.
    pub fn pick(&mut self, payload: &[u8]) -> Result<(Option<bool>, Option<Vec<u8>>), String> {
        let text = |path: &Option<String>| {
            path.as_deref()
                .map_or(Ok(None), |path| text_at(payload, path))
        };
        let label = text(&self.label)?;
        let key = text(&self.key)?.map(String::into_bytes);
        let anomalous = label.as_deref().map(|l| canonical(l) != self.normal);
        if self.label.is_some() {
            let normal = anomalous == Some(false);
            self.labels.take(label.as_deref(), normal);
        }
        Ok((anomalous, key))
    }

    /// Returns a message if the labels are unusable. See [`Labels::fault`].
    pub fn fault(&self) -> Option<String> {
        let field = self.label.as_deref()?;
        self.labels.fault(field, &self.normal)
    }
}

/// Returns whether a payload is an object with this key.
pub fn has(payload: &[u8], key: &str) -> bool {
    let fields = serde_json::from_slice::<HashMap<String, &RawValue>>(payload);
    fields.is_ok_and(|fields| fields.contains_key(key))
}

/// Returns the value at a dotted path as a string. Numbers and booleans are returned as they are written.
fn text_at(payload: &[u8], path: &str) -> Result<Option<String>, String> {
    let text = str::from_utf8(payload).map_err(|e| format!("not UTF-8: {e}"))?;
    let text = without_nan(text);
    let record: &RawValue = serde_json::from_str(&text).map_err(|e| format!("not JSON: {e}"))?;
    let keys = path::keys_or_parts(path);
    let value = value_at(record, &keys).ok_or_else(|| format!("no field `{path}`"))?;
    match value.get() {
        "null" => Ok(None),
        json if json.starts_with(['{', '[']) => {
            Err(format!("`{path}` is an object or array, not a plain value"))
        }
        json if json.starts_with('"') => {
            serde_json::from_str(json).map_err(|e| format!("`{path}`: {e}"))
        }
        json => Ok(Some(json.to_owned())),
    }
}

/// Follows keys into nested objects. Like the decoder, it reads a key with dots as nested objects.
fn value_at<'r>(object: &'r RawValue, keys: &[Cow<'_, str>]) -> Option<&'r RawValue> {
    let fields: HashMap<String, &RawValue> = serde_json::from_str(object.get()).ok()?;
    (1..=keys.len()).rev().find_map(|length| {
        let (key, rest) = keys.split_at(length);
        let value = *fields.get(&key.join("."))?;
        match rest.is_empty() {
            true => Some(value),
            false => value_at(value, rest),
        }
    })
}

/// Returns the same string for all spellings of a number. `false` counts as 0 and `true` as 1.
pub fn canonical(text: &str) -> String {
    let text = text.trim();
    match text.to_ascii_lowercase().as_str() {
        "false" => "0".into(),
        "true" => "1".into(),
        other => match other.parse::<f64>() {
            Ok(number) if number.is_finite() => (number + 0.0).to_string(),
            _ => text.into(),
        },
    }
}
