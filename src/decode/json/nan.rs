//! NaN and infinities, which JSON does not have, but which Python and JavaScript write. They are replaced by marked strings, so that
//! they do no harm in fields that no feature reads. A feature treats a marked string as missing, or refuses it.

use std::borrow::Cow;

/// Starts a marked string. It is a character for private use, which no text contains.
const MARK: char = '\u{e000}';
const LITERALS: [&str; 6] = ["NaN", "Infinity", "Inf", "-NaN", "-Infinity", "-Inf"];

/// Returns JSON in which NaN and infinities are marked strings.
pub fn marked(text: &str) -> Cow<'_, str> {
    if !text.contains("NaN") && !text.contains("Inf") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    let (mut rest, mut found) = (text, false);
    while let Some(at) = rest.find(['"', 'N', 'I', '-']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let (taken, literal) = match rest.starts_with('"') {
            true => (string_length(rest), false),
            false => match literal(rest) {
                Some(literal) => (literal.len(), true),
                None => (1, false),
            },
        };
        match literal {
            true => out.push_str(&mark(&rest[..taken])),
            false => out.push_str(&rest[..taken]),
        }
        found |= literal;
        rest = &rest[taken..];
    }
    match found {
        true => Cow::Owned(out + rest),
        false => Cow::Borrowed(text),
    }
}

/// Returns the JSON string that stands for NaN or an infinity.
pub fn mark(literal: &str) -> String {
    format!("\"{MARK}{literal}\"")
}

/// Returns NaN or the infinity for which the text of a JSON string stands.
pub fn literal_of(text: &str) -> Option<&str> {
    let literal = text.strip_prefix(MARK)?;
    LITERALS.contains(&literal).then_some(literal)
}

/// Returns the JSON as it was before [`marked`].
pub fn unmarked(json: &str) -> Cow<'_, str> {
    replaced(json, |literal| literal)
}

/// Returns marked JSON with null for NaN and infinities.
pub fn nulled(json: &str) -> Cow<'_, str> {
    replaced(json, |_| "null")
}

fn replaced<'j>(json: &'j str, with: fn(&'static str) -> &'static str) -> Cow<'j, str> {
    if !json.contains(MARK) {
        return Cow::Borrowed(json);
    }
    let mut json = json.to_owned();
    for literal in LITERALS {
        json = json.replace(&mark(literal), with(literal));
    }
    Cow::Owned(json)
}

/// Returns NaN or the infinity with which the text starts. The longest counts.
fn literal(text: &str) -> Option<&'static str> {
    let starts = LITERALS.into_iter().filter(|l| text.starts_with(l));
    let literal = starts.max_by_key(|l| l.len())?;
    let next = text.as_bytes().get(literal.len());
    (!next.is_some_and(u8::is_ascii_alphanumeric)).then_some(literal)
}

/// Returns the length of the JSON string with which the text starts.
fn string_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    // An escape may be cut within a character.
    let mut end = (at + 1).min(bytes.len());
    while !text.is_char_boundary(end) {
        end += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_is_marked_outside_of_strings_only() {
        for (json, expected) in [
            (r#"{"a": 1}"#, r#"{"a": 1}"#),
            (
                r#"{"a": "NaN", "b\"NaN": -1}"#,
                r#"{"a": "NaN", "b\"NaN": -1}"#,
            ),
            ("{\"a\": NaN}", "{\"a\": \"\u{e000}NaN\"}"),
            (
                "[NaN,-Infinity,Infinity,-Inf]",
                "[\"\u{e000}NaN\",\"\u{e000}-Infinity\",\"\u{e000}Infinity\",\"\u{e000}-Inf\"]",
            ),
            ("{\"a\": NaNs}", "{\"a\": NaNs}"),
            ("{\"a\": \"Infinity", "{\"a\": \"Infinity"),
            ("{\"Inf\\", "{\"Inf\\"),
            ("\"Inf\\\u{e4}", "\"Inf\\\u{e4}"),
        ] {
            let marked = marked(json);
            assert_eq!(marked, expected);
            assert_eq!(unmarked(&marked), json);
        }
        assert_eq!(nulled(&marked("[NaN, -Infinity]")), "[null, null]");
        assert_eq!(literal_of("\u{e000}-Infinity"), Some("-Infinity"));
        assert_eq!(literal_of("NaN"), None);
        assert_eq!(literal_of("\u{e000}x"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[\"\\\\NaInfity\u{e4}\u{e000},-]{0,40}") {
            let marked = marked(&text);
            let _ = (unmarked(&marked), nulled(&marked));
        }
    }
}
