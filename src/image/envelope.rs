//! Finds the encoded image in a payload, which is either the image itself or a JSON object with the image in base64.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::ImageError;
use crate::bundle::path::keys_or_parts;

/// With or without padding.
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Returns the encoded image, which may have at most `most` bytes.
pub fn image<'p>(payload: &'p [u8], field: &str, most: usize) -> Result<Cow<'p, [u8]>, ImageError> {
    let too_large = |bytes: usize| ImageError::TooLarge {
        what: "bytes",
        is: bytes as u64,
        limit: most as u64,
    };
    if !is_json(payload) {
        if payload.len() > most {
            return Err(too_large(payload.len()));
        }
        return Ok(Cow::Borrowed(payload));
    }
    let text = std::str::from_utf8(payload).map_err(|e| ImageError::Json(e.to_string()))?;
    let value = find(text, &keys_or_parts(field))?;
    let value = value.ok_or_else(|| ImageError::Missing(field.to_owned()))?;
    let base64: Cow<'_, str> = serde_json::from_str::<Text<'_>>(value.get())
        .map_err(|_| match value.get() {
            "null" => ImageError::Missing(field.to_owned()),
            _ => ImageError::NotString(field.to_owned()),
        })?
        .0;
    let base64 = bare(&base64);
    let bytes = base64.trim_end_matches('=').len() / 4 * 3;
    if bytes > most {
        return Err(too_large(bytes));
    }
    let engine = if base64.contains(['-', '_']) {
        &URL_SAFE
    } else {
        &STANDARD
    };
    let decoded = engine.decode(base64.as_bytes());
    let decoded = decoded.map_err(|e| ImageError::NotBase64 {
        field: field.to_owned(),
        problem: e.to_string(),
    })?;
    if decoded.len() > most {
        return Err(too_large(decoded.len()));
    }
    Ok(Cow::Owned(decoded))
}

/// Returns the base64 of a data URL (RFC 2397) or of MIME (RFC 2045) without what surrounds it and without its line breaks.
fn bare(text: &str) -> Cow<'_, str> {
    let text = match text
        .strip_prefix("data:")
        .and_then(|url| url.split_once(','))
    {
        Some((kind, data)) if kind.ends_with(";base64") => data,
        _ => text,
    };
    match text.contains(|c: char| c.is_ascii_whitespace()) {
        true => Cow::Owned(text.split_ascii_whitespace().collect()),
        false => Cow::Borrowed(text),
    }
}

/// Returns a JSON object without its image and otherwise unchanged. `None` if the payload is not a JSON object.
pub fn context(payload: &[u8], field: &str) -> Option<Box<RawValue>> {
    if !is_json(payload) {
        return None;
    }
    let text = std::str::from_utf8(payload).ok()?;
    let mut out = String::new();
    copy_with(text, &keys_or_parts(field), None, &mut out).ok()?;
    RawValue::from_string(out).ok()
}

/// Returns a JSON object with another image, a PNG image, and otherwise unchanged. A data URL stays one, and base64 keeps its alphabet. `None` if the
/// payload is not a JSON object with an image.
pub fn with_image(payload: &[u8], field: &str, png: &[u8]) -> Option<String> {
    if !is_json(payload) {
        return None;
    }
    let text = std::str::from_utf8(payload).ok()?;
    let path = keys_or_parts(field);
    let before: Text<'_> = serde_json::from_str(find(text, &path).ok()??.get()).ok()?;
    let engine = match bare(&before.0).contains(['-', '_']) {
        true => &URL_SAFE,
        false => &STANDARD,
    };
    let kind = match before.0.starts_with("data:") {
        true => "data:image/png;base64,",
        false => "",
    };
    let image = format!("\"{kind}{}\"", engine.encode(png));
    let mut out = String::with_capacity(text.len() + image.len());
    copy_with(text, &path, Some(&image), &mut out).ok()?;
    Some(out)
}

pub fn is_json(payload: &[u8]) -> bool {
    let first = payload.iter().find(|b| !b.is_ascii_whitespace());
    first == Some(&b'{')
}

/// Returns the value below an object, or `None` if there is none. A key with dots is read like nested objects.
fn find<'p>(object: &'p str, path: &[Cow<'_, str>]) -> Result<Option<&'p RawValue>, ImageError> {
    let mut found = None;
    for (key, value) in &entries(object)? {
        let below = match rest(key, path) {
            None => continue,
            Some([]) => Some(*value),
            Some(rest) if value.get().starts_with('{') => find(value.get(), rest)?,
            Some(_) => None,
        };
        if found.is_some() && below.is_some() {
            return Err(ImageError::Duplicate(path.join(".")));
        }
        found = found.or(below);
    }
    Ok(found)
}

/// Copies an object, with `image` as the value at the path, or without that field.
fn copy_with(
    object: &str,
    path: &[Cow<'_, str>],
    image: Option<&str>,
    out: &mut String,
) -> Result<(), ImageError> {
    out.push('{');
    for (key, value) in &entries(object)? {
        let rest = rest(key, path);
        let is_image = rest == Some(&[]);
        if is_image && image.is_none() {
            continue;
        }
        if out.len() > 1 && !out.ends_with('{') {
            out.push(',');
        }
        out.push_str(&serde_json::Value::from(key.as_ref()).to_string());
        out.push(':');
        match (image, rest) {
            (Some(image), _) if is_image => out.push_str(image),
            (_, Some(rest)) if value.get().starts_with('{') => {
                copy_with(value.get(), rest, image, out)?;
            }
            _ => out.push_str(value.get()),
        }
    }
    out.push('}');
    Ok(())
}

/// Returns the keys of a path that follow `key`, which may be several of them with dots between. `None` if it is another key.
fn rest<'k>(key: &str, path: &'k [Cow<'k, str>]) -> Option<&'k [Cow<'k, str>]> {
    let parts = 1..=path.len();
    let mut counts = parts.filter(|&parts| path[..parts].join(".") == key);
    counts.next().map(|parts| &path[parts..])
}

type Entry<'p> = (Cow<'p, str>, &'p RawValue);

/// Returns the entries of an object. A key that occurs twice is refused, because readers disagree on which value counts.
fn entries(object: &str) -> Result<Vec<Entry<'_>>, ImageError> {
    let parsed = serde_json::from_str::<Entries<'_>>(object);
    let Entries(entries) = parsed.map_err(|e| ImageError::Json(e.to_string()))?;
    let mut seen = HashSet::new();
    match entries.iter().find(|(key, _)| !seen.insert(key.as_ref())) {
        Some((twice, _)) => Err(ImageError::Duplicate(twice.to_string())),
        None => Ok(entries),
    }
}

/// A JSON string, borrowed if it has no escapes.
#[derive(serde::Deserialize)]
struct Text<'p>(#[serde(borrow)] Cow<'p, str>);

struct Entries<'p>(Vec<Entry<'p>>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some((key, value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    entries.push((key.0, value));
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Object)
    }
}
