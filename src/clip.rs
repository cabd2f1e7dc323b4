//! Text that may quote external data, cut to a length that fits a header or a log line.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use serde::Serialize;

/// Maximum length of a text, in bytes.
const MOST: usize = 400;
/// Number of bytes that a cut text keeps of its end, because parsers report there where they stopped.
const END: usize = 120;

/// A text of at most a few hundred bytes. A longer one is cut in the middle and tells how much is missing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Clipped(String);

impl From<&str> for Clipped {
    fn from(text: &str) -> Clipped {
        Clipped(clip(text).into_owned())
    }
}

impl From<String> for Clipped {
    fn from(text: String) -> Clipped {
        match text.len() {
            ..=MOST => Clipped(text),
            _ => text.as_str().into(),
        }
    }
}

impl Deref for Clipped {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Clipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns the text. If it is too long, returns its start and end with a note of how many bytes are missing between them.
pub fn clip(text: &str) -> Cow<'_, str> {
    if text.len() <= MOST {
        return Cow::Borrowed(text);
    }
    let start = &text[..text.floor_char_boundary(MOST - END)];
    let end = &text[text.ceil_char_boundary(text.len() - END)..];
    let missing = text.len() - start.len() - end.len();
    Cow::Owned(format!("{start}… [{missing} bytes cut] …{end}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_short_text_stays_and_a_long_one_loses_its_middle() {
        assert_eq!(&*Clipped::from("short"), "short");
        let long = format!("invalid type: string {}, at line 1", "x".repeat(1 << 20));
        let cut = Clipped::from(long);
        assert!(cut.starts_with("invalid type: string xxx"), "{cut}");
        assert!(cut.ends_with("xxx, at line 1"), "{cut}");
        assert!(cut.contains("… [1048208 bytes cut] …"), "{cut}");
    }

    proptest! {
        #[test]
        fn no_text_is_longer_than_a_header_takes(text in ".{0,600}") {
            let cut = clip(&text);
            prop_assert!(cut.len() <= MOST + 40);
            prop_assert_eq!(cut == text, text.len() <= MOST);
        }
    }
}
