//! Decides whether a verdict may contain the JSON of a record. A producer may write JSON that many parsers refuse. If a
//! verdict contained it, these parsers would refuse the whole verdict.

/// The deepest nesting of a record in a verdict. The verdict adds one level, and many parsers accept at most 127.
pub const MOST_LEVELS: usize = 126;
/// Numbers with fewer digits and without an exponent are smaller than the largest 64-bit float.
const SAFE_DIGITS: usize = 300;

/// Returns why many parsers refuse this valid JSON, or `None` if they accept it.
pub fn unreadable(json: &str) -> Option<String> {
    let bytes = json.as_bytes();
    let (mut level, mut at) = (0_usize, 0);
    while let Some(byte) = bytes.get(at) {
        at += match byte {
            b'"' => {
                let text = &bytes[at + 1..];
                let length = text_length(text);
                if has_lone_surrogate(&text[..length]) {
                    return Some("a string in it holds half of a surrogate pair".to_owned());
                }
                length + 2
            }
            b'{' | b'[' => {
                level += 1;
                if level > MOST_LEVELS {
                    return Some(format!("it nests deeper than {MOST_LEVELS} levels"));
                }
                1
            }
            b'}' | b']' => {
                level = level.saturating_sub(1);
                1
            }
            b'-' | b'0'..=b'9' => {
                let length = number_length(&bytes[at..]);
                if is_too_large(&json[at..at + length]) {
                    return Some("a number in it is too large for a 64-bit float".to_owned());
                }
                length
            }
            _ => 1,
        };
    }
    None
}

/// Returns the number of bytes before the quotation mark that ends a string.
fn text_length(text: &[u8]) -> usize {
    let mut at = 0;
    while at < text.len() && text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    at.min(text.len())
}

/// Returns whether a string contains an escaped half of a UTF-16 surrogate pair without the other half.
fn has_lone_surrogate(text: &[u8]) -> bool {
    let (mut at, mut high) = (0, false);
    while at < text.len() {
        let unit = match text[at..] {
            [b'\\', b'u', a, b, c, d, ..] => unit([a, b, c, d]),
            _ => None,
        };
        let low = unit.is_some_and(|unit| (0xdc00..0xe000).contains(&unit));
        if low != high {
            return true;
        }
        high = unit.is_some_and(|unit| (0xd800..0xdc00).contains(&unit));
        at += match (unit, text[at]) {
            (Some(_), _) => 6,
            (None, b'\\') => 2,
            _ => 1,
        };
    }
    high
}

fn unit(digits: [u8; 4]) -> Option<u16> {
    let digits = std::str::from_utf8(&digits).ok()?;
    u16::from_str_radix(digits, 16).ok()
}

fn number_length(number: &[u8]) -> usize {
    let ends = |byte: &u8| !matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
    number.iter().position(ends).unwrap_or(number.len())
}

fn is_too_large(number: &str) -> bool {
    let has_exponent = number.contains(['e', 'E']);
    let suspect = has_exponent || number.len() > SAFE_DIGITS;
    suspect && number.parse().is_ok_and(f64::is_infinite)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::value::RawValue;

    use super::*;

    fn nested(levels: usize) -> String {
        format!("{}1{}", "[".repeat(levels), "]".repeat(levels))
    }

    #[test]
    fn levels_are_counted_outside_of_texts() {
        assert_eq!(unreadable(&nested(MOST_LEVELS)), None);
        assert!(unreadable(&nested(MOST_LEVELS + 1)).is_some());
        let brackets = "[{".repeat(MOST_LEVELS);
        for text in [
            &*brackets,
            &format!("\\\"{brackets}"),
            &format!("{brackets}\\\\"),
        ] {
            assert_eq!(
                unreadable(&format!(r#"{{"a": "{text}", "{text}": [1]}}"#)),
                None
            );
        }
        let deep = nested(MOST_LEVELS);
        assert!(unreadable(&format!(r#"{{"a\\": {deep}}}"#)).is_some());
    }

    /// serde_json refuses the same JSON as other parsers. Its own nesting limit applies to the verdict.
    #[test]
    fn what_a_verdict_carries_is_what_parsers_read() {
        let digits = |digits: usize| "9".repeat(digits);
        for json in [
            nested(MOST_LEVELS),
            nested(MOST_LEVELS + 1),
            "1e308".into(),
            "[1, 1e309]".into(),
            "-1E+400".into(),
            r#"{"a":1e400}"#.into(),
            "1e-400".into(),
            "0e999".into(),
            format!("0.{}", digits(400)),
            digits(308),
            digits(310),
            format!("{}.5", digits(310)),
            r#""\ud83d\ude00""#.into(),
            r#""\ud83d""#.into(),
            r#""\ude00""#.into(),
            r#""\ud83d\ud83d\ude00""#.into(),
            r#""\ud83d\n\ude00""#.into(),
            r#""\ud83dx""#.into(),
            r#""\\ud83d""#.into(),
            r#""\\\ud83d""#.into(),
            r#"["\"", "\uD83D"]"#.into(),
            r#"{"\uDe00": 1}"#.into(),
            r#""a\u00e4\u0041""#.into(),
        ] {
            assert!(serde_json::from_str::<&RawValue>(&json).is_ok(), "{json}");
            let verdict = serde_json::from_str::<Value>(&format!("{{\"record\": {json}}}"));
            assert_eq!(unreadable(&json).is_none(), verdict.is_ok(), "{json}");
        }
    }
}
