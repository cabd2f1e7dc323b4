//! How deep JSON nests. Many parsers refuse what nests deeper than 127 levels, and would refuse the whole verdict with it.

/// A record may nest so deep to be carried by a verdict, which is one level more.
pub const MOST_LEVELS: usize = 126;

/// Whether valid JSON nests deeper than `most` levels of objects and arrays.
pub fn is_deeper(json: &str, most: usize) -> bool {
    let (mut level, mut in_text, mut escaped) = (0_usize, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_text,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => {
                level += 1;
                if level > most {
                    return true;
                }
            }
            b'}' | b']' if !in_text => level = level.saturating_sub(1),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(levels: usize) -> String {
        format!("{}1{}", "[".repeat(levels), "]".repeat(levels))
    }

    #[test]
    fn levels_are_counted_outside_of_texts() {
        assert!(!is_deeper(&nested(3), 3));
        assert!(is_deeper(&nested(4), 3));
        assert!(!is_deeper(
            r#"{"a": "[[[[\"[[", "b\\": [1], "c": {"d": 2}}"#,
            2
        ));
        assert!(is_deeper(r#"{"a\\": {"b": []}}"#, 2));
    }

    #[test]
    fn what_a_verdict_carries_is_what_parsers_read() {
        let verdict = |levels| format!("{{\"record\": {}}}", nested(levels));
        let parse = |text: String| serde_json::from_str::<serde_json::Value>(&text);
        assert!(parse(verdict(MOST_LEVELS)).is_ok());
        assert!(parse(verdict(MOST_LEVELS + 1)).is_err());
    }
}
