//! Parses and formats sizes with units.

const UNITS: [(&str, u64); 8] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
];

/// Parses a size: `768MiB`, `1.5 GiB`, `800MB`, or a plain number of bytes.
pub fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let unit = UNITS.iter().find(|(unit, _)| text.ends_with(unit));
    let (number, factor) = match unit {
        Some((unit, factor)) => (text.trim_end_matches(unit).trim_end(), *factor),
        None => (text, 1),
    };
    let digits = |c: char| c.is_ascii_digit() || c == '.';
    if number.is_empty() || !number.chars().all(digits) {
        return None;
    }
    let bytes = number.parse::<f64>().ok()? * factor as f64;
    (1.0..1e18).contains(&bytes).then_some(bytes as u64)
}

/// Formats a number of bytes in a readable unit.
pub fn human(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("768MiB", Some(768 << 20)),
            ("1.5 GiB", Some(3 << 29)),
            ("512Mi", Some(512 << 20)),
            ("800MB", Some(800_000_000)),
            ("1073741824", Some(1 << 30)),
            ("", None),
            ("0", None),
            ("MiB", None),
            ("12 parsecs", None),
            ("-1GiB", None),
            ("1e9", None),
        ] {
            assert_eq!(parse(text), bytes, "{text}");
        }
        assert_eq!(human(3 << 29), "1536 MiB");
        assert_eq!(human(999), "999 bytes");
    }
}
