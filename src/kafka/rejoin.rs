//! Leaves the group and joins it again, so that every partition is asked for anew: the one way to another place in a
//! partition that cannot meet a rebalance half way. It is for what seldom happens.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer;

use super::{KafkaError, Source};

/// A group that cannot keep up with its retention must get to read between two of these.
const NOT_SOONER_THAN: Duration = Duration::from_secs(10);

impl Source {
    /// If the brokers do not have the next record of some partition, or a topic was made again.
    pub(super) fn rejoin_if_astray(&mut self, now: Instant) -> Result<(), KafkaError> {
        if let Some(topics) = self.resubscribe.take() {
            if self.consumer.assignment()?.count() > 0 {
                self.resubscribe = Some(topics);
                return Ok(());
            }
            // Everything is asked for anyway.
            self.watch.astray.store(false, Ordering::Relaxed);
            let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
            self.consumer.subscribe(&topics)?;
            return Ok(());
        }
        let rested = self
            .rejoined
            .is_none_or(|last| now.saturating_duration_since(last) >= NOT_SOONER_THAN);
        if rested && self.watch.astray.swap(false, Ordering::Relaxed) {
            tracing::info!("leaving the group and joining it again, to ask where to read on");
            self.rejoined = Some(now);
            self.resubscribe = Some(self.watch.subscribed.clone());
            if let Some(assigning) = self.assigning.take() {
                // Taken, so that they can be given back; nothing of them is read until they are.
                self.assign(&assigning.partitions)?;
                self.consumer.pause(&assigning.partitions)?;
            }
            self.consumer.unsubscribe();
        }
        Ok(())
    }

    /// A topic of which nothing is read any more may be another when it comes back.
    pub(super) fn forget_marks(&self, partitions: &TopicPartitionList) -> Result<(), KafkaError> {
        for element in partitions.elements() {
            if !self.reads(element.topic())? {
                let number = self.topics.number(element.topic());
                self.topics.set_mark(number, None);
            }
        }
        Ok(())
    }
}
