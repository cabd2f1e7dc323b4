//! The topics to read: the topics named in the settings, and those that match a pattern in the settings.

use std::collections::BTreeSet;
use std::time::Duration;

use rdkafka::client::{Client, ClientContext};
use regex::Regex;

use super::super::error::KafkaError;
use super::super::topic_admin::{self, Descriptions};
use crate::config::is_pattern;

pub(super) struct TopicSelection {
    pub named: Vec<String>,
    pub patterns: Vec<Regex>,
    /// The topics that this process writes. No pattern may select them.
    written: BTreeSet<String>,
}

impl TopicSelection {
    pub fn new(topics: &[String], written: &[&str]) -> Result<TopicSelection, KafkaError> {
        let named: BTreeSet<&String> = topics.iter().filter(|t| !is_pattern(t)).collect();
        let patterns = topics.iter().filter(|topic| is_pattern(topic));
        let patterns: Result<_, regex::Error> = patterns.map(|p| Regex::new(p)).collect();
        Ok(TopicSelection {
            named: named.into_iter().cloned().collect(),
            patterns: patterns.map_err(|e| KafkaError::Client(e.to_string()))?,
            written: written.iter().map(|topic| (*topic).to_owned()).collect(),
        })
    }

    /// Describes every selected topic.
    pub fn describe<C: ClientContext>(
        &self,
        client: &Client<C>,
        within: Duration,
    ) -> Result<Descriptions, KafkaError> {
        let mut names: BTreeSet<String> = self.named.iter().cloned().collect();
        if !self.patterns.is_empty() {
            let metadata = client.fetch_metadata(None, within)?;
            let all = metadata.topics().iter().map(|topic| topic.name());
            names.extend(all.filter(|name| self.matches(name)).map(str::to_owned));
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let found = topic_admin::describe(client, &names, within);
        let mut found = found.map_err(|code| KafkaError::Client(code.to_string()))?;
        // Kafka's internal topics are read only if they are named.
        found.retain(|name, topic| {
            let internal = topic.as_ref().is_ok_and(|topic| topic.is_internal);
            !internal || self.named.contains(name)
        });
        Ok(found)
    }

    fn matches(&self, name: &str) -> bool {
        !self.written.contains(name) && self.patterns.iter().any(|pattern| pattern.is_match(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_from_the_first_letter_but_no_written_topic() {
        let topics = ["orders", "^pay-.*", "^x$"].map(str::to_owned);
        let selection = TopicSelection::new(&topics, &["pay-anomalies"]).unwrap();
        assert_eq!(selection.named, ["orders"]);
        for (name, matches) in [
            ("pay-eu", true),
            ("x", true),
            ("xy", false),
            ("my-pay-eu", false),
            ("pay-anomalies", false),
            ("orders", false),
        ] {
            assert_eq!(selection.matches(name), matches, "{name}");
        }
    }
}
