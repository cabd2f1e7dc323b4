//! The topics that this process has seen. They show whether a topic is older than the process, newer, or recreated.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::super::error::is_topic_missing;
use super::super::topic_admin::{Descriptions, TopicDescription};

/// The topics seen so far, shared by the topic watch and the lookup of start offsets.
#[derive(Clone, Default)]
pub(super) struct KnownTopics(Arc<Mutex<BTreeMap<String, KnownTopic>>>);

struct KnownTopic {
    id: Option<String>,
    exists: bool,
    age: TopicAge,
}

/// The age of a topic compared with that of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TopicAge {
    Older,
    /// The topic did not exist when the process started.
    Newer,
    /// Another topic had the same name before.
    Recreated,
}

impl KnownTopics {
    /// Records the first look at the topics. Topics that exist now are older than this process.
    pub fn begin(&self, found: &Descriptions) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (topic, described) in found {
            let described = described.as_ref().ok();
            let first = KnownTopic {
                id: described.and_then(|d| d.id.clone()),
                exists: described.is_some(),
                age: TopicAge::Older,
            };
            known.insert(topic.clone(), first);
        }
    }

    /// Records a topic that exists, and returns its age.
    pub fn note(&self, topic: &str, described: &TopicDescription) -> TopicAge {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let topic = known.entry(topic.to_owned()).or_insert_with(|| KnownTopic {
            id: None,
            exists: false,
            age: TopicAge::Newer,
        });
        let has_new_id = topic.id.is_some() && topic.id != described.id;
        topic.age = match (has_new_id, topic.exists, &topic.id) {
            (true, ..) => TopicAge::Recreated,
            (_, false, None) => TopicAge::Newer,
            _ => topic.age,
        };
        topic.id.clone_from(&described.id);
        topic.exists = true;
        topic.age
    }

    /// Records a later look at the topics.
    pub fn note_all(&self, found: &Descriptions) {
        for (topic, described) in found {
            match described {
                Ok(described) => {
                    self.note(topic, described);
                }
                Err(code) if is_topic_missing(*code) => {
                    let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(topic) = known.get_mut(topic) {
                        topic.exists = false;
                    }
                }
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::types::RDKafkaErrorCode;

    use super::*;

    fn described(id: &str) -> TopicDescription {
        TopicDescription {
            id: Some(id.to_owned()),
            partitions: 1,
            is_internal: false,
        }
    }

    #[test]
    fn a_topic_is_older_newer_or_recreated() {
        let missing = || Err(RDKafkaErrorCode::UnknownTopicOrPartition);
        let found = |topic: &str, described| Descriptions::from([(topic.to_owned(), described)]);
        let known = KnownTopics::default();
        known.begin(&found("a", Ok(described("1"))));
        known.begin(&found("b", missing()));
        assert_eq!(known.note("a", &described("1")), TopicAge::Older);
        assert_eq!(known.note("b", &described("2")), TopicAge::Newer);
        assert_eq!(known.note("c", &described("3")), TopicAge::Newer);
        assert_eq!(known.note("a", &described("4")), TopicAge::Recreated);
        assert_eq!(known.note("a", &described("4")), TopicAge::Recreated);
        // Missing for a moment, and then the same topic.
        known.begin(&found("d", Ok(described("5"))));
        known.note_all(&found("d", missing()));
        assert_eq!(known.note("d", &described("5")), TopicAge::Older);
        known.note_all(&found("d", missing()));
        assert_eq!(known.note("d", &described("6")), TopicAge::Recreated);
    }
}
