//! Paths to a field of a record: keys separated by dots, such as `merchant.category`.
//!
//! A part that begins with a double quote is a JSON string, which can hold any key: `a."".b` names the key `b` in the empty key of `a`. Other
//! parts stand as they are. A key with dots is read like nested objects, so that `a.b` names both `{"a": {"b": 1}}` and `{"a.b": 1}`, while
//! `"a.b"` names only the latter.

use std::borrow::Cow;

/// Returns the keys of a path.
///
/// # Errors
/// A message, if a part is empty or a quoted key does not end.
pub fn keys(path: &str) -> Result<Vec<Cow<'_, str>>, String> {
    let mut keys = Vec::new();
    let mut rest = path;
    loop {
        let after = if rest.starts_with('"') {
            let mut texts = serde_json::Deserializer::from_str(rest).into_iter::<String>();
            let Some(Ok(key)) = texts.next() else {
                return Err(format!("path `{path}` has a quoted key that does not end"));
            };
            keys.push(Cow::Owned(key));
            &rest[texts.byte_offset()..]
        } else {
            let (key, after) = rest.split_at(rest.find('.').unwrap_or(rest.len()));
            if key.is_empty() {
                return Err(format!(
                    "path `{path}` has an empty part: write \"\" for an empty key, and a key with dots in double quotes"
                ));
            }
            keys.push(Cow::Borrowed(key));
            after
        };
        match after.strip_prefix('.') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(keys),
            None => return Err(format!("path `{path}` has text after a quoted key")),
        }
    }
}

/// Returns the keys of a path. If it is not valid, it is split at its dots.
pub fn keys_or_parts(path: &str) -> Vec<Cow<'_, str>> {
    keys(path).unwrap_or_else(|_| path.split('.').map(Cow::Borrowed).collect())
}

/// Appends a key to a path. A key with dots becomes several parts, because it is read like nested objects.
pub fn push(path: &mut String, key: &str, is_first: bool) {
    for (at, part) in key.split('.').enumerate() {
        if at > 0 || !is_first {
            path.push('.');
        }
        if part.is_empty() || part.starts_with('"') {
            path.push_str(&serde_json::Value::from(part).to_string());
        } else {
            path.push_str(part);
        }
    }
}

/// Returns the path as [`push`] writes it, so that paths can be compared as texts.
pub fn canonical(path: &str) -> String {
    let mut canonical = String::with_capacity(path.len());
    for (at, key) in keys_or_parts(path).iter().enumerate() {
        push(&mut canonical, key, at == 0);
    }
    canonical
}

/// Returns whether the field at `outer` contains the field at `inner`.
pub fn contains(outer: &[Cow<'_, str>], inner: &[Cow<'_, str>]) -> bool {
    inner.len() > outer.len() && inner.starts_with(outer)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_separated_by_dots_and_may_be_quoted() {
        for (path, expected) in [
            ("a", &["a"][..]),
            ("a.b c.d]", &["a", "b c", "d]"]),
            (r#"a."b.c".d"#, &["a", "b.c", "d"]),
            (r#""".x"#, &["", "x"]),
            (r#""\"q\u00e9""#, &["\"qé"]),
            (r#"it"s.5"x"#, &["it\"s", "5\"x"]),
        ] {
            assert_eq!(keys(path).unwrap(), expected, "{path}");
        }
        for path in ["", ".", "a.", ".a", "a..b", "\"a", "\"a\"b", "\"\\x\""] {
            assert!(keys(path).is_err(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_keys_can_be_written(all in prop::collection::vec("[a\"\\\\. \\[\\]'é\n]{0,6}|.{0,6}", 1..4)) {
            let mut path = String::new();
            for (at, key) in all.iter().enumerate() {
                push(&mut path, key, at == 0);
            }
            let read = keys(&path).unwrap();
            let parts: Vec<&str> = all.iter().flat_map(|key| key.split('.')).collect();
            prop_assert_eq!(&read, &parts);
            prop_assert_eq!(canonical(&path), path);
        }
    }
}
