//! The topics that are read, by number. The list only grows, because batches in flight name their topic by its number.

use std::ops::Index;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustc_hash::FxHashMap;

use super::mark::Mark;

/// Shared by all who need a topic's name.
#[derive(Clone, Default)]
pub struct Topics(Arc<RwLock<Numbered>>);

#[derive(Default)]
struct Numbered {
    /// Never freed, so that a name outlives the lock: there are only as many as were ever read.
    all: Vec<&'static Topic>,
    numbers: FxHashMap<&'static str, usize>,
}

struct Topic {
    name: String,
    /// The topic that the assigned partitions belong to; one that is made again is another.
    mark: RwLock<Option<Mark>>,
    deleted: AtomicBool,
}

impl Topics {
    /// The number of a topic; a new one gets the next.
    pub(super) fn number(&self, name: &str) -> usize {
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
            mark: RwLock::default(),
            deleted: AtomicBool::new(false),
        }));
        let number = topics.all.len();
        topics.all.push(topic);
        topics.numbers.insert(&topic.name, number);
        number
    }

    /// What a commit says of the topic besides the offset.
    pub(super) fn mark(&self, number: usize) -> Option<Mark> {
        let mark = self.topic(number).mark.read();
        mark.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_mark(&self, number: usize, mark: Option<Mark>) {
        let topic = self.topic(number);
        *topic.mark.write().unwrap_or_else(PoisonError::into_inner) = mark;
    }

    /// The brokers have said more than once that there is no such topic.
    pub(super) fn is_deleted(&self, number: usize) -> bool {
        self.topic(number).deleted.load(Ordering::Acquire)
    }

    pub(super) fn set_deleted(&self, number: usize, deleted: bool) {
        self.topic(number).deleted.store(deleted, Ordering::Release);
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
    fn a_topic_keeps_its_number_while_others_come() {
        let topics = Topics::default();
        assert_eq!((topics.number("a"), topics.number("b")), (0, 1));
        let shared = topics.clone();
        assert_eq!((shared.number("c"), topics.number("a")), (2, 0));
        assert_eq!(&topics[2], "c");
    }
}
