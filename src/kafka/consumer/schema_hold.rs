//! Holds a partition at a record whose schema is not known yet, while other partitions are read. A partition counts as
//! held until that record, or a later one, is taken.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use rdkafka::consumer::Consumer;
use rdkafka::{Offset, TopicPartitionList};

use super::super::error::KafkaError;
use super::context::{GroupConsumer, PartitionName};
use super::topics::Topics;
use crate::batch::TopicPartition;

/// The wait before a failed seek is retried.
const SEEK_AGAIN_AFTER: Duration = Duration::from_millis(250);
const SEEK_WITHIN: Duration = Duration::from_secs(1);
/// How many records to look ahead for other schemas that will be needed. These records are read again later.
const AHEAD_RECORDS: usize = 1000;
const AHEAD_BYTES: usize = 8 << 20;

/// All partitions that wait for a schema.
pub(super) struct SchemaHolds {
    topics: Topics,
    holds: Vec<Hold>,
}

pub(super) struct Hold {
    from: TopicPartition,
    offset: i64,
    /// The schema that the record at `offset` needs.
    schema: u32,
    /// Describes what the partition waits for.
    pub waits_for: String,
    pub since: Timestamp,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Later records are looked at, but not taken.
    LooksAhead { records: usize, bytes: usize },
    /// Nothing is fetched. If a time is set, reading is not retried before it.
    Paused(Option<Instant>),
    /// Reading has restarted at the held record, but no record was taken yet.
    ReadAgain,
}

impl SchemaHolds {
    pub fn new(topics: Topics) -> SchemaHolds {
        SchemaHolds {
            topics,
            holds: Vec::new(),
        }
    }

    pub fn count(&self) -> usize {
        self.holds.len()
    }

    /// Holds a partition at `offset`. `is_paused` is true if no partition is being fetched now.
    pub fn hold(&mut self, from: TopicPartition, offset: i64, schema: u32, is_paused: bool) {
        let before = self.holds.iter().position(|hold| hold.from == from);
        let before = before.map(|at| self.holds.swap_remove(at));
        let since = before.filter(|hold| hold.offset == offset);
        self.holds.push(Hold {
            from,
            offset,
            schema,
            waits_for: format!("schema {schema}"),
            since: since.map_or_else(Timestamp::now, |hold| hold.since),
            state: match is_paused {
                true => State::Paused(None),
                false => State::LooksAhead {
                    records: AHEAD_RECORDS,
                    bytes: AHEAD_BYTES,
                },
            },
        });
    }

    /// Returns whether records of this partition must not be taken now.
    pub fn is_held(&self, from: TopicPartition) -> bool {
        let mut holds = self.holds.iter();
        holds.any(|hold| hold.from == from && hold.state != State::ReadAgain)
    }

    /// Like [`SchemaHolds::is_held`], by name.
    pub fn is_held_by_name(&self, name: &PartitionName) -> bool {
        let hold = self.get(name);
        hold.is_some_and(|hold| hold.state != State::ReadAgain)
    }

    pub fn get(&self, (topic, partition): &PartitionName) -> Option<&Hold> {
        let mut holds = self.holds.iter();
        holds.find(|h| h.from.partition == *partition && self.topics[h.from.topic] == *topic)
    }

    /// Counts a record after the held one. Pauses the partition once it has looked far enough ahead.
    pub fn looked_ahead(
        &mut self,
        consumer: &GroupConsumer,
        from: TopicPartition,
        size: usize,
    ) -> Result<(), KafkaError> {
        let Some(hold) = self.holds.iter_mut().find(|hold| hold.from == from) else {
            return Ok(());
        };
        let State::LooksAhead { records, bytes } = hold.state else {
            return Ok(());
        };
        if records > 1 && bytes > size {
            hold.state = State::LooksAhead {
                records: records - 1,
                bytes: bytes - size,
            };
            return Ok(());
        }
        hold.state = State::Paused(None);
        Ok(consumer.pause(&self.one(from))?)
    }

    /// Ends the hold on this partition, because one of its records was taken. Returns whether it was held.
    pub fn remove(&mut self, from: TopicPartition) -> bool {
        let held = self.holds.iter().position(|hold| hold.from == from);
        if let Some(at) = held {
            self.holds.swap_remove(at);
        }
        held.is_some()
    }

    /// Forgets partitions that are no longer assigned.
    pub fn revoke(&mut self, partitions: &TopicPartitionList) {
        let topics = &self.topics;
        self.holds.retain(|Hold { from, .. }| {
            let topic = &topics[from.topic];
            partitions.find_partition(topic, from.partition).is_none()
        });
    }

    /// Resumes held partitions for whose schema `waits_for` returns `None`. For the others, its answer is shown as the
    /// reason for waiting.
    pub fn release(
        &mut self,
        consumer: &GroupConsumer,
        now: Instant,
        waits_for: impl Fn(u32) -> Option<String>,
    ) -> Result<(), KafkaError> {
        for at in 0..self.holds.len() {
            let hold = &mut self.holds[at];
            let paused = match hold.state {
                State::ReadAgain => continue,
                State::Paused(Some(next)) if now < next => continue,
                State::Paused(_) => true,
                State::LooksAhead { .. } => false,
            };
            match waits_for(hold.schema) {
                Some(reason) => hold.waits_for = reason,
                None => self.read_again(consumer, at, paused, now)?,
            }
        }
        Ok(())
    }

    fn read_again(
        &mut self,
        consumer: &GroupConsumer,
        at: usize,
        paused: bool,
        now: Instant,
    ) -> Result<(), KafkaError> {
        let Hold { from, offset, .. } = self.holds[at];
        let (topic, offset) = (&self.topics[from.topic], Offset::Offset(offset));
        let state = match consumer.seek(topic, from.partition, offset, SEEK_WITHIN) {
            Ok(()) => {
                // A partition that is not paused must not be resumed: librdkafka would read it from its start again.
                if paused {
                    consumer.resume(&self.one(from))?;
                }
                State::ReadAgain
            }
            Err(e) => {
                tracing::debug!("{topic}-{} stays held: {e}", from.partition);
                if !paused {
                    consumer.pause(&self.one(from))?;
                }
                State::Paused(Some(now + SEEK_AGAIN_AFTER))
            }
        };
        self.holds[at].state = state;
        Ok(())
    }

    /// Stops looking ahead, because every partition was paused.
    pub fn stop_looking_ahead(&mut self) {
        for hold in &mut self.holds {
            if let State::LooksAhead { .. } = hold.state {
                hold.state = State::Paused(None);
            }
        }
    }

    /// Returns `all` without the held partitions.
    pub fn without_held(&self, all: &TopicPartitionList) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(all.count());
        for element in all.elements() {
            let name = (element.topic().to_owned(), element.partition());
            if !self.is_held_by_name(&name) {
                list.add_partition(element.topic(), element.partition());
            }
        }
        list
    }

    fn one(&self, from: TopicPartition) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition(&self.topics[from.topic], from.partition);
        list
    }
}
