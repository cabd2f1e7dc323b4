//! Tracks output topics that do not exist, or that this user may not write. Messages wait until these topics can be
//! written.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::kafka::Sink;
use crate::metrics::Metrics;

/// How often the brokers are asked whether a topic can be written again.
const ASK_EVERY: Duration = Duration::from_secs(1);

pub struct AbsentTopics {
    absent: BTreeSet<String>,
    asked: Instant,
    metrics: Metrics,
}

impl AbsentTopics {
    /// Counts all topics of `sink` as present.
    pub fn new(sink: &Sink, metrics: Metrics) -> AbsentTopics {
        for topic in sink.topics() {
            metrics.set_topic_missing(&topic, false);
        }
        AbsentTopics {
            absent: BTreeSet::new(),
            asked: Instant::now(),
            metrics,
        }
    }

    pub fn add(&mut self, topic: &str, problem: &str) {
        if self.absent.insert(topic.to_owned()) {
            tracing::warn!(
                "topic `{topic}` cannot be written: {problem}; verdicts wait until it can be written again"
            );
            self.metrics.set_topic_missing(topic, true);
        }
        self.asked = Instant::now();
    }

    /// Returns whether messages have to wait. Asks the brokers from time to time.
    pub fn block(&mut self, sink: &Sink) -> bool {
        if self.absent.is_empty() {
            return false;
        }
        if self.asked.elapsed() < ASK_EVERY {
            return true;
        }
        self.look_for_all(sink);
        !self.absent.is_empty()
    }

    /// Asks the brokers about every topic. If one topic is missing, others may be missing too, and a transaction that
    /// fails because of a missing topic does not always name it.
    pub fn look_for_all(&mut self, sink: &Sink) {
        for topic in sink.topics() {
            match sink.has_topic(&topic) {
                Some(false) => {
                    self.add(&topic, "it does not exist, or this user may not write it");
                }
                Some(true) if self.absent.remove(&topic) => {
                    tracing::info!("topic `{topic}` can be written again");
                    self.metrics.set_topic_missing(&topic, false);
                }
                _ => {}
            }
        }
        self.asked = Instant::now();
    }
}
