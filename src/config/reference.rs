//! Looks up settings and sections in `default.toml`, for verbs that write a settings file.

use super::DEFAULTS;

/// The line of a section or setting, with the comment above it. The line of a setting without a default is commented out.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    pub comment: Vec<&'static str>,
    pub line: &'static str,
}

/// Returns the entry of the section `section`.
///
/// # Panics
/// `default.toml` has no such entry.
pub fn section(section: &str) -> Entry {
    let header = format!("[{section}]");
    find(|_, line| line == header).unwrap_or_else(|| panic!("default.toml has no {header}"))
}

/// Returns the entry of the setting `name` in `section`.
///
/// # Panics
/// `default.toml` has no such entry.
pub fn setting(section: &str, name: &str) -> Entry {
    let header = format!("[{section}]");
    find(|at, line| at == header && name_of(line) == Some(name))
        .unwrap_or_else(|| panic!("default.toml has no {section}.{name}"))
}

/// Returns the first line for which `is` holds, with the comment above it. `is` gets the header of the line's section and the
/// line.
fn find(is: impl Fn(&str, &str) -> bool) -> Option<Entry> {
    let (mut header, mut comment) = ("", Vec::new());
    for line in DEFAULTS.lines() {
        if is(header, line) {
            return Some(Entry { comment, line });
        }
        if line.starts_with('[') {
            header = line;
        }
        if line.starts_with('#') && name_of(line).is_none() {
            comment.push(line);
        } else {
            comment.clear();
        }
    }
    None
}

/// Returns the name of the setting that a line sets, or would set if it were not commented out.
fn name_of(line: &str) -> Option<&str> {
    let (name, _) = line.trim_start_matches("# ").split_once(" = ")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.\"".contains(c);
    name.chars().all(plain).then(|| name.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_comes_with_the_comment_above_it() {
        let topics = setting("kafka", "topics");
        assert_eq!(topics.comment.len(), 2, "{topics:?}");
        assert_eq!(topics.line, "# topics = [\"payments\"]");
        let alerts = setting("threshold", "alerts_per_day");
        assert_eq!(alerts.comment.len(), 1, "{alerts:?}");
        let linger = setting("kafka.producer", "linger.ms");
        assert_eq!(linger.line, "\"linger.ms\" = 1");
        assert!(section("kafka.client").comment[0].starts_with("# Settings for librdkafka"));
        assert_eq!(section("model").comment, [""; 0]);
    }
}
