//! Partitions that stand still, at a record whose schema is on its way, while the others go on.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::{Offset, TopicPartitionList};

use super::{KafkaError, Source};
use crate::batch::TopicPartition;

/// How long a partition stands still before its record is tried again.
const HOLD: Duration = Duration::from_millis(250);
const SEEK_WITHIN: Duration = Duration::from_secs(1);

pub(super) struct Held {
    pub from: TopicPartition,
    offset: i64,
    until: Instant,
}

impl Source {
    /// Stops a partition at a record that cannot be read yet; [`Source::resume`] delivers it again a little later.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn hold(&mut self, from: TopicPartition, offset: i64) -> Result<(), KafkaError> {
        self.consumer.pause(&self.one(from))?;
        let until = Instant::now() + HOLD;
        self.held.push(Held {
            from,
            offset,
            until,
        });
        self.count_paused()
    }

    /// Reads held partitions whose time has come from the record that held them.
    pub(super) fn try_held(&mut self, now: Instant) -> Result<(), KafkaError> {
        while let Some(at) = self.held.iter().position(|held| held.until <= now) {
            let Held { from, offset, .. } = self.held[at];
            let (topic, offset) = (&self.topics[from.topic], Offset::Offset(offset));
            let sought = self
                .consumer
                .seek(topic, from.partition, offset, SEEK_WITHIN);
            if let Err(e) = sought {
                tracing::debug!("{topic}-{} stands still: {e}", from.partition);
                self.held[at].until = now + HOLD;
                continue;
            }
            self.consumer.resume(&self.one(from))?;
            self.held.swap_remove(at);
            self.count_paused()?;
        }
        Ok(())
    }

    /// `all` but for those that stand still.
    pub(super) fn without_held(&self, all: &TopicPartitionList) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(all.count());
        for element in all.elements() {
            let is_held = |held: &Held| {
                held.from.partition == element.partition()
                    && &self.topics[held.from.topic] == element.topic()
            };
            if !self.held.iter().any(is_held) {
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
