//! The topics to read: names, and patterns that begin with `^`.

use super::settings::Settings;

/// Kafka's limit on the length of a topic name.
const LONGEST: usize = 249;

/// Returns whether `topic` is a pattern, which selects all topics that it matches.
pub fn is_pattern(topic: &str) -> bool {
    topic.starts_with('^')
}

pub(super) fn check(topics: &[String], s: &mut Settings) {
    for topic in topics {
        if is_pattern(topic) {
            if let Err(e) = regex::Regex::new(topic) {
                s.problem(format!(
                    "kafka.topics: `{topic}` is not a valid regular expression: {}. Write the topics as a list ([\"…\"]) if it contains a comma",
                    last_line(&e.to_string())
                ));
            }
        } else if !is_name(topic) {
            s.problem(format!(
                "kafka.topics: `{topic}` is not a valid topic name: Kafka allows up to {LONGEST} letters, digits, dots, underscores and hyphens. A pattern must begin with ^"
            ));
        }
    }
}

fn is_name(topic: &str) -> bool {
    let fits = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    topic.len() <= LONGEST && topic.bytes().all(fits) && !matches!(topic, "." | "..")
}

/// Returns the problem itself. The lines before it only point into the pattern.
fn last_line(error: &str) -> &str {
    let last = error.lines().last().unwrap_or(error);
    last.trim_start_matches("error: ")
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{SMALLEST, load};

    #[test]
    fn a_topic_is_a_name_or_a_pattern() {
        let loaded = |topics: &str| load(SMALLEST, &[], &[&format!("kafka.topics={topics}")]);
        for fine in ["a.b_c-D", "[\"^pay-.*\", \"x\"]", "^pay-(eu|us)$"] {
            loaded(fine).unwrap();
        }
        for (wrong, problem) in [
            (
                "[\"^pay-(\"]",
                "`^pay-(` is not a valid regular expression: unclosed group",
            ),
            ("^(?!dead).*", "look-around"),
            ("^a{1,2}", "as a list"),
            ("pay-*", "`pay-*` is not a valid topic name"),
            ("[\"two words\"]", "`two words` is not a valid topic name"),
        ] {
            let error = loaded(wrong).unwrap_err();
            assert!(error.contains(problem), "{wrong}: {error}");
        }
    }
}
