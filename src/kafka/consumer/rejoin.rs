//! Leaves and rejoins the group, so that the start of every partition is looked up again. This is the only way to move
//! to another offset that cannot overlap with a rebalance. It is slow, but seldom needed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;

use super::super::error::KafkaError;
use super::context::GroupConsumer;
use super::topic_watch::names;

/// The shortest time between two rejoins. A group that cannot keep up with retention must have time to read in between.
const INTERVAL: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct Rejoin {
    /// When the consumer last left the group.
    left: Option<Instant>,
    /// The topics to subscribe to once every partition is given back.
    resubscribe: Option<BTreeSet<String>>,
}

impl Rejoin {
    pub fn is_leaving(&self) -> bool {
        self.resubscribe.is_some()
    }

    pub fn is_allowed(&self, now: Instant) -> bool {
        let rested = |left: Instant| now.saturating_duration_since(left) >= INTERVAL;
        self.left.is_none_or(rested)
    }

    /// Notes that the consumer leaves the group now and will subscribe to `topics` again.
    pub fn begin(&mut self, now: Instant, topics: BTreeSet<String>) {
        self.left = Some(now);
        self.resubscribe = Some(topics);
    }

    /// Subscribes to `topics`. If the consumer is leaving the group, this only stores them for later.
    pub fn subscribe(
        &mut self,
        consumer: &GroupConsumer,
        topics: &BTreeSet<String>,
    ) -> Result<(), KafkaError> {
        match (&mut self.resubscribe, topics.is_empty()) {
            (Some(next), _) => next.clone_from(topics),
            (None, true) => consumer.unsubscribe(),
            (None, false) => consumer.subscribe(&names(topics.iter()))?,
        }
        Ok(())
    }

    /// Rejoins the group if every partition is given back. Clears `must_rejoin`, because the starts of all partitions
    /// will be looked up anyway.
    pub fn finish(
        &mut self,
        consumer: &GroupConsumer,
        must_rejoin: &AtomicBool,
    ) -> Result<(), KafkaError> {
        if consumer.assignment()?.count() > 0 {
            return Ok(());
        }
        if let Some(topics) = self.resubscribe.take() {
            must_rejoin.store(false, Ordering::Relaxed);
            consumer.subscribe(&names(topics.iter()))?;
        }
        Ok(())
    }
}
