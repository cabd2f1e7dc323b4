//! Partitions that stand still, at a record whose schema is on its way, while the others go on. One counts as held until
//! a record got through.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use rdkafka::consumer::Consumer;
use rdkafka::{Offset, TopicPartitionList};

use super::progress::Name;
use super::{KafkaError, Source};
use crate::batch::TopicPartition;

/// How long a partition stands still when it cannot be read from its record again.
const TRY_AGAIN: Duration = Duration::from_millis(250);
const SEEK_WITHIN: Duration = Duration::from_secs(1);
/// How far to look ahead for schemas that will be needed too. These records are read again later.
const AHEAD_RECORDS: usize = 1000;
const AHEAD_BYTES: usize = 8 << 20;

pub(super) struct Held {
    pub from: TopicPartition,
    offset: i64,
    /// The schema that its record needs.
    schema: u32,
    /// What it waits for, in words.
    pub what: String,
    pub since: Timestamp,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The records behind are looked at, not taken.
    LooksAhead { records: usize, bytes: usize },
    /// Nothing is fetched. It is not tried before this time.
    Paused(Option<Instant>),
    /// It is read from its record again, and none got through yet.
    Tried,
}

impl Source {
    /// Stops a partition at a record whose schema is not known yet; [`Source::release`] delivers it again.
    pub fn hold(&mut self, from: TopicPartition, offset: i64, schema: u32) {
        let (topic, partition) = (&self.topics[from.topic], from.partition);
        self.progress.disturbed(topic, partition);
        let before = self.held.iter().position(|held| held.from == from);
        let before = before.map(|at| self.held.swap_remove(at));
        let since = before.filter(|held| held.offset == offset);
        self.held.push(Held {
            from,
            offset,
            schema,
            what: format!("schema {schema}"),
            since: since.map_or_else(Timestamp::now, |held| held.since),
            state: match self.paused {
                Some(_) => State::Paused(None),
                None => State::LooksAhead {
                    records: AHEAD_RECORDS,
                    bytes: AHEAD_BYTES,
                },
            },
        });
        self.count_paused();
    }

    /// Whether records of this partition are not to be taken now.
    pub fn stands_still(&self, from: TopicPartition) -> bool {
        let mut held = self.held.iter();
        held.any(|held| held.from == from && held.state != State::Tried)
    }

    /// A record behind the one that holds its partition was looked at.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn looked_ahead(&mut self, from: TopicPartition, size: usize) -> Result<(), KafkaError> {
        let Some(held) = self.held.iter_mut().find(|held| held.from == from) else {
            return Ok(());
        };
        let State::LooksAhead { records, bytes } = held.state else {
            return Ok(());
        };
        if records > 1 && bytes > size {
            held.state = State::LooksAhead {
                records: records - 1,
                bytes: bytes - size,
            };
            return Ok(());
        }
        held.state = State::Paused(None);
        Ok(self.consumer.pause(&self.one(from))?)
    }

    /// A record was taken: its partition is not held any more.
    pub fn got_through(&mut self, from: TopicPartition) {
        if let Some(at) = self.held.iter().position(|held| held.from == from) {
            self.held.swap_remove(at);
            self.count_paused();
        }
    }

    /// Reads held partitions from the record that held them, where `waits` says nothing to wait for; else what it says is
    /// shown.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn release(
        &mut self,
        now: Instant,
        waits: impl Fn(u32) -> Option<String>,
    ) -> Result<(), KafkaError> {
        for at in 0..self.held.len() {
            let held = &mut self.held[at];
            let paused = match held.state {
                State::Tried => continue,
                State::Paused(Some(next)) if now < next => continue,
                State::Paused(_) => true,
                State::LooksAhead { .. } => false,
            };
            match waits(held.schema) {
                Some(what) => held.what = what,
                None => self.try_again(at, paused, now)?,
            }
        }
        Ok(())
    }

    fn try_again(&mut self, at: usize, paused: bool, now: Instant) -> Result<(), KafkaError> {
        let Held { from, offset, .. } = self.held[at];
        let (topic, offset) = (&self.topics[from.topic], Offset::Offset(offset));
        let sought = self
            .consumer
            .seek(topic, from.partition, offset, SEEK_WITHIN);
        let state = match sought {
            Ok(()) => {
                // One that is not paused must not be resumed: librdkafka would then read it from where it began.
                if paused {
                    self.consumer.resume(&self.one(from))?;
                }
                State::Tried
            }
            Err(e) => {
                tracing::debug!("{topic}-{} stands still: {e}", from.partition);
                if !paused {
                    self.consumer.pause(&self.one(from))?;
                }
                State::Paused(Some(now + TRY_AGAIN))
            }
        };
        self.held[at].state = state;
        Ok(())
    }

    /// All partitions are paused: none looks ahead.
    pub(super) fn stop_looking_ahead(&mut self) {
        for held in &mut self.held {
            if let State::LooksAhead { .. } = held.state {
                held.state = State::Paused(None);
            }
        }
    }

    /// Whether it is held and not fetched in order to be tried again.
    pub(super) fn is_held_still(&self, name: &Name) -> bool {
        let held = self.held_at(name);
        held.is_some_and(|held| held.state != State::Tried)
    }

    pub(super) fn held_at(&self, (topic, partition): &Name) -> Option<&Held> {
        let mut held = self.held.iter();
        held.find(|h| h.from.partition == *partition && self.topics[h.from.topic] == *topic)
    }

    /// `all` but for those that stand still.
    pub(super) fn without_held(&self, all: &TopicPartitionList) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(all.count());
        for element in all.elements() {
            let name = (element.topic().to_owned(), element.partition());
            if !self.is_held_still(&name) {
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
