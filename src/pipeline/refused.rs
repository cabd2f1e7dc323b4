//! Messages that a topic does not take for their timestamp or their lack of a key, and topics that are not there. The first
//! go in another shape, the others wait; no record is lost, and the stream goes on.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::PipelineError;
use super::publish::{LOOK_UP, Publisher, undeliverable};
use crate::kafka::Ticket;
use crate::message::Message;
use crate::record::Source;

/// So long messages to a topic go without a timestamp after it refused one that by its settings and this host's clock it
/// takes: the clocks differ.
const UNTIMED_FOR: Duration = Duration::from_secs(10);
/// How often it is asked whether a topic is there again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What topics refused.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// By topic, when it last refused a timestamp that it should take.
    untimed: HashMap<String, Instant>,
    absent: BTreeSet<String>,
    looked: Option<Instant>,
}

impl Publisher {
    /// The message with a timestamp and a key that its topic takes.
    pub(super) fn shaped(&mut self, sequence: u64, topic: &str, message: Message) -> Message {
        let mut message = message;
        if message
            .timestamp_ms
            .is_some_and(|time| !self.takes_time(topic, time))
        {
            let why = format!(
                "topic `{topic}` takes no such time, by its settings and this host's clock"
            );
            message.timestamp_ms = None;
            message.omit(&["timestamp"], &why);
            self.omits(sequence, &["timestamp"], &message.about, &why);
        }
        self.give_key(topic, &mut message);
        message
    }

    fn takes_time(&self, topic: &str, timestamp_ms: i64) -> bool {
        let refused = self.refusals.untimed.get(topic);
        let now = jiff::Timestamp::now().as_millisecond();
        refused.is_none_or(|at| at.elapsed() >= UNTIMED_FOR)
            && self.sink.limits().takes_time(topic, timestamp_ms, now)
    }

    /// A compacted topic refuses a message without a key, so the record's place becomes its key.
    pub(super) fn give_key(&self, topic: &str, message: &mut Message) {
        if message.key.is_none() && self.sink.limits().needs_key(topic) {
            let Source {
                topic,
                partition,
                offset,
            } = &message.about.source;
            message.key = Some(format!("{topic}-{partition}-{offset}").into_bytes());
        }
    }

    /// The brokers refused a message for its shape, or a batch for that of another in it. It goes again in the shape that
    /// the topic's settings want by now.
    ///
    /// # Errors
    /// When it has nothing left that a topic could refuse.
    pub(super) fn is_invalid(
        &mut self,
        ticket: Ticket,
        topic: String,
        message: Message,
        problem: String,
    ) -> Result<(), PipelineError> {
        self.sink.ask_limits();
        let needs_key = message.key.is_none() && self.sink.limits().needs_key(&topic);
        if let Some(time) = message.timestamp_ms {
            if !needs_key && self.takes_time(&topic, time) {
                self.refusals.untimed.insert(topic.clone(), Instant::now());
            }
        } else if !needs_key {
            let problem = format!("{problem}; is the clock of this host right?");
            return match &mut self.window {
                Some(window) => {
                    window.fails(problem);
                    Ok(())
                }
                None => Err(undeliverable(topic, problem)),
            };
        }
        match &mut self.window {
            // Its batch is judged again, and its messages take their shape again.
            Some(window) => window.fails_for_message(format!("topic {topic}: {problem}")),
            None => self.send(ticket.sequence, topic, message),
        }
        Ok(())
    }

    /// A topic is not there, or may not be written: everything waits for it.
    pub(super) fn is_absent(&mut self, topic: &str, problem: &str) {
        if self.refusals.absent.insert(topic.to_owned()) {
            tracing::warn!(
                "topic `{topic}` cannot be written: {problem}; verdicts wait until it is there again"
            );
            self.metrics.set_topic_missing(topic, true);
        }
        self.refusals.looked = Some(Instant::now());
    }

    /// Whether all topics can be written, as far as is known. Asks the brokers now and then about those that could not.
    pub(super) fn topics_are_there(&mut self) -> bool {
        if self.refusals.absent.is_empty() {
            return true;
        }
        let recently = |looked: Instant| looked.elapsed() < LOOK_EVERY;
        if self.refusals.looked.is_some_and(recently) {
            return false;
        }
        self.refusals.looked = Some(Instant::now());
        for topic in self.refusals.absent.clone() {
            if self.sink.has_topic(&topic) == Some(true) {
                tracing::info!("topic `{topic}` is there");
                self.metrics.set_topic_missing(&topic, false);
                self.refusals.absent.remove(&topic);
            }
        }
        self.refusals.absent.is_empty()
    }

    /// A transaction was aborted, and the brokers do not always say that it was for a topic that is gone. Waits for such a
    /// topic, or until nobody waits for this any more; `false` if there was nothing to wait for.
    pub(super) fn await_topics(&mut self) -> bool {
        for topic in self.sink.topics() {
            if self.sink.has_topic(&topic) == Some(false) {
                self.is_absent(&topic, "the brokers do not know it, or this user may not");
            }
        }
        if self.refusals.absent.is_empty() {
            return false;
        }
        while !self.abandon.is_requested() && !self.topics_are_there() {
            std::thread::sleep(LOOK_UP);
        }
        true
    }
}
