//! Leaves the group and joins it again, so that the start of every partition is looked up anew. This is the only way to
//! move to another offset that cannot overlap with a rebalance. It is slow, but seldom needed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;

use super::super::error::KafkaError;
use super::context::GroupConsumer;
use super::topic_watch::names;

/// The shortest time between two rejoins. A group that cannot keep up with its retention must get to read in between.
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

    /// The consumer leaves the group now, and will subscribe to `topics` again.
    pub fn begin(&mut self, now: Instant, topics: BTreeSet<String>) {
        self.left = Some(now);
        self.resubscribe = Some(topics);
    }

    /// Subscribes to `topics`, or notes them for the time when the consumer has left the group.
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

    /// Joins the group again if every partition is given back. `must_rejoin` is cleared, because the starts of all
    /// partitions will be looked up anyway.
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
