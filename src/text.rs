//! Makes external text safe to display. A terminal executes control characters, and some characters change the order in which
//! others are displayed.

use std::borrow::Cow;
use std::fmt::Write;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Characters that are escaped: all but the unreserved characters of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Characters that are escaped in a whole path. `/` is kept because it separates segments, and `@` because verdict ids contain
/// it.
const RESERVED_IN_FILES: &AsciiSet = &RESERVED.remove(b'/').remove(b'@');

/// Returns `path` escaped as the path of a file URI.
pub fn percent_encoded_file(path: &str) -> String {
    utf8_percent_encode(path, RESERVED_IN_FILES).to_string()
}

/// Returns `text` escaped as one segment of a URL's path.
pub fn percent_encoded(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// Returns whether a terminal would execute `c` instead of displaying it, or display other characters in another order.
fn is_unsafe(c: char) -> bool {
    let reorders = matches!(c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || reorders || matches!(c, '\u{2028}' | '\u{2029}')
}

/// Returns `text` on one line, with every unsafe character as `\uXXXX`, which JSON can read as well.
pub fn escaped(text: &str) -> Cow<'_, str> {
    escape(text, is_unsafe)
}

/// Like [`escaped`], but keeps line breaks and tabs, for text with line breaks of our own.
pub fn escaped_lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| is_unsafe(c) && !matches!(c, '\n' | '\t'))
}

fn escape(text: &str, is_bad: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_bad) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_bad(c) {
            // Every unsafe character has at most four digits.
            let _ = write!(safe, "\\u{:04x}", u32::from(c));
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_becomes_a_part_of_a_uri() {
        assert_eq!(
            percent_encoded_file("/a b/c@1-heatmap.png"),
            "/a%20b/c@1-heatmap.png"
        );
    }

    #[test]
    fn what_a_terminal_obeys_is_escaped_and_the_rest_stays() {
        for (text, shown) in [
            ("\u{1b}[31mred\u{1b}[0m", "\\u001b[31mred\\u001b[0m"),
            ("\u{9b}31m", "\\u009b31m"),
            ("a\rb\u{8}\u{7f}\0", "a\\u000db\\u0008\\u007f\\u0000"),
            ("user\u{202e}txt.exe", "user\\u202etxt.exe"),
            (
                "\u{2066}\u{2069}\u{200f}\u{61c}",
                "\\u2066\\u2069\\u200f\\u061c",
            ),
            (
                "Grüße, 世界, می\u{200c}خواهم",
                "Grüße, 世界, می\u{200c}خواهم",
            ),
        ] {
            assert_eq!(escaped(text), shown);
            assert_eq!(escaped_lines(text), shown);
        }
        assert_eq!(escaped("a\nb\tc"), "a\\u000ab\\u0009c");
        assert_eq!(escaped_lines("a\nb\tc"), "a\nb\tc");
    }

    #[test]
    fn json_means_the_same_afterwards() {
        let text = serde_json::json!({"a\u{9b}": "\u{202e}\u{1b}\u{7f}x"}).to_string();
        let shown = escaped(&text);
        assert!(!shown.contains(is_unsafe));
        let (before, after): (serde_json::Value, serde_json::Value) = (
            serde_json::from_str(&text).unwrap(),
            serde_json::from_str(&shown).unwrap(),
        );
        assert_eq!(before, after);
    }
}
