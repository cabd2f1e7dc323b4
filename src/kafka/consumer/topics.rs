//! The topics that are read, by number. The list only grows, because in-flight batches refer to topics by number.

use std::ops::Index;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use rdkafka::{Offset, TopicPartitionList};
use rustc_hash::FxHashMap;

use super::commit_metadata::CommitMetadata;
use crate::batch::TopicPartition;

/// The list of topics, shared by the stages that need topic names.
#[derive(Clone, Default)]
pub struct Topics(Arc<RwLock<Numbered>>);

#[derive(Default)]
struct Numbered {
    /// Topics are never freed, so that a name can be used without the lock. The list is no longer than the number of
    /// topics ever read.
    all: Vec<&'static Topic>,
    numbers: FxHashMap<&'static str, usize>,
}

struct Topic {
    name: String,
    /// Describes the topic to which the assigned partitions belong. A recreated topic has different metadata.
    metadata: RwLock<Option<CommitMetadata>>,
    deleted: AtomicBool,
    /// When a partition of this topic was last assigned.
    assigned: RwLock<Option<Instant>>,
}

impl Topics {
    /// Returns the number of a topic. A new topic gets the next number.
    pub fn number(&self, name: &str) -> usize {
        let known = self.read(|topics| topics.numbers.get(name).copied());
        known.unwrap_or_else(|| self.add(name))
    }

    fn add(&self, name: &str) -> usize {
        let mut topics = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = topics.numbers.get(name) {
            return *number;
        }
        let topic: &'static Topic = Box::leak(Box::new(Topic {
            name: name.to_owned(),
            metadata: RwLock::default(),
            deleted: AtomicBool::new(false),
            assigned: RwLock::default(),
        }));
        let number = topics.all.len();
        topics.all.push(topic);
        topics.numbers.insert(&topic.name, number);
        number
    }

    /// Returns the metadata to commit with the topic's offsets.
    pub(super) fn metadata(&self, number: usize) -> Option<CommitMetadata> {
        let metadata = self.topic(number).metadata.read();
        metadata.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_metadata(&self, number: usize, metadata: Option<CommitMetadata>) {
        let topic = self.topic(number);
        *topic
            .metadata
            .write()
            .unwrap_or_else(PoisonError::into_inner) = metadata;
    }

    /// Returns these offsets with the metadata of their topics, for a commit.
    pub(super) fn with_metadata(&self, offsets: &[(TopicPartition, i64)]) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for (from, next) in offsets {
            let mut element = list.add_partition(&self[from.topic], from.partition);
            element
                .set_offset(Offset::Offset(*next))
                .expect("an offset from a record is valid");
            if let Some(metadata) = self.metadata(from.topic) {
                element.set_metadata(metadata.to_string());
            }
        }
        list
    }

    /// Returns whether the brokers have reported more than once that the topic does not exist.
    pub(super) fn is_deleted(&self, number: usize) -> bool {
        self.topic(number).deleted.load(Ordering::Acquire)
    }

    /// Sets whether the topic is deleted, from the answer to a request made at `requested_at`. The answer that it is
    /// deleted is ignored if the topic was assigned after that time.
    pub(super) fn set_deleted(&self, number: usize, deleted: bool, requested_at: Instant) {
        let topic = self.topic(number);
        let assigned = topic.assigned.read();
        let outdated = assigned
            .unwrap_or_else(PoisonError::into_inner)
            .is_some_and(|assigned| assigned >= requested_at);
        topic.deleted.store(deleted && !outdated, Ordering::Release);
    }

    /// Notes that a partition of the topic was assigned. The topic therefore exists.
    pub(super) fn set_assigned(&self, number: usize) {
        let topic = self.topic(number);
        let assigned = topic.assigned.write();
        *assigned.unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        topic.deleted.store(false, Ordering::Release);
    }

    fn topic(&self, number: usize) -> &'static Topic {
        self.read(|topics| topics.all[number])
    }

    fn read<T>(&self, of: impl FnOnce(&Numbered) -> T) -> T {
        of(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Index<usize> for Topics {
    type Output = str;

    fn index(&self, number: usize) -> &str {
        &self.topic(number).name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_is_assigned_again_is_not_deleted() {
        let topics = Topics::default();
        let topic = topics.number("a");
        let before = Instant::now();
        topics.set_deleted(topic, true, before);
        assert!(topics.is_deleted(topic));
        topics.set_assigned(topic);
        assert!(!topics.is_deleted(topic));
        // The answer to a request from before the assignment.
        topics.set_deleted(topic, true, before);
        assert!(!topics.is_deleted(topic));
        topics.set_deleted(topic, true, Instant::now());
        assert!(topics.is_deleted(topic));
    }

    #[test]
    fn a_topic_keeps_its_number_while_others_come() {
        let topics = Topics::default();
        assert_eq!((topics.number("a"), topics.number("b")), (0, 1));
        let shared = topics.clone();
        assert_eq!((shared.number("c"), topics.number("a")), (2, 0));
        assert_eq!(&topics[2], "c");
    }
}
