//! Messages that wait until the brokers have answered the messages before them, and then go out together.
//!
//! Without the outbox, librdkafka wastes CPU time behind a slow broker. Its idempotent producer stops sending to a
//! partition while five of its messages are in flight. While other messages wait past their `linger.ms`, its thread polls
//! without a pause, which took a third of all CPU time of residuald (`benches/profile/`). Messages in the outbox cost
//! nothing while they wait. The longer an answer takes, the more messages go out together.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::message::Message;

/// The longest wait for answers. One partition whose leader does not answer must not delay the others for longer.
const PATIENCE: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub struct Outbox {
    waiting: VecDeque<Outgoing>,
    /// The number of messages handed over without an answer yet.
    in_flight: usize,
    handed_over: Option<Instant>,
    /// The number of messages that must still go one by one.
    one_by_one: usize,
}

/// A message and the sequence of its batch.
#[derive(Debug)]
pub struct Outgoing {
    pub sequence: u64,
    pub topic: String,
    pub message: Message,
}

impl Outbox {
    pub fn put(&mut self, outgoing: Outgoing) {
        self.waiting.push_back(outgoing);
    }

    /// Puts a message that could not be handed over back to the front.
    pub fn put_back(&mut self, outgoing: Outgoing) {
        self.waiting.push_front(outgoing);
    }

    pub fn take(&mut self) -> Option<Outgoing> {
        match self.is_alone() && self.in_flight > 0 {
            true => None,
            false => self.waiting.pop_front(),
        }
    }

    /// Makes the next `count` messages go one by one, because a Kafka batch was refused and it is unknown which message
    /// caused that.
    pub fn go_alone(&mut self, count: usize) {
        self.one_by_one = count;
    }

    pub fn is_alone(&self) -> bool {
        self.one_by_one > 0
    }

    /// Forgets all waiting messages and all messages in flight.
    pub fn clear(&mut self) {
        *self = Outbox {
            one_by_one: self.one_by_one,
            ..Outbox::default()
        };
    }

    /// Returns whether a message waits and may go now.
    pub fn is_due(&self, now: Instant) -> bool {
        let patient = |handed_over| now.saturating_duration_since(handed_over) < PATIENCE;
        let answer_is_near = self.handed_over.is_some_and(patient);
        let waits = self.in_flight > 0 && (self.is_alone() || answer_is_near);
        !self.waiting.is_empty() && !waits
    }

    pub fn handed_over(&mut self, now: Instant) {
        self.in_flight += 1;
        self.handed_over = Some(now);
        self.one_by_one = self.one_by_one.saturating_sub(1);
    }

    /// Counts an answer. The answer may belong to a message from before an abort.
    pub fn answered(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{About, Kind};
    use crate::record::Origin;

    fn message(sequence: u64) -> Outgoing {
        Outgoing {
            sequence,
            topic: "anomalies".to_owned(),
            message: Message {
                about: About {
                    source: Origin {
                        topic: "in".to_owned(),
                        partition: 0,
                        offset: 0,
                        index: None,
                    },
                    kind: Kind::Map,
                },
                key: None,
                headers: Vec::new(),
                payload: Vec::new(),
                timestamp_ms: None,
            },
        }
    }

    #[test]
    fn what_comes_meanwhile_waits_for_all_answers() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        assert!(!outbox.is_due(now), "there is nothing");
        outbox.put(message(0));
        outbox.put(message(1));
        assert!(outbox.is_due(now), "the first go at once");
        while outbox.take().is_some() {
            outbox.handed_over(now);
        }
        outbox.put(message(2));
        outbox.answered();
        assert!(!outbox.is_due(now), "one answer is missing");
        outbox.answered();
        assert!(outbox.is_due(now));
    }

    #[test]
    fn an_answer_that_does_not_come_holds_up_for_a_moment_only() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        outbox.handed_over(now);
        outbox.put(message(1));
        assert!(!outbox.is_due(now));
        assert!(outbox.is_due(now + PATIENCE));
    }

    #[test]
    fn after_a_refused_batch_messages_go_one_by_one_for_a_while() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        for sequence in 0..4 {
            outbox.put(message(sequence));
        }
        outbox.go_alone(2);
        for _ in 0..2 {
            assert!(outbox.is_due(now) && outbox.is_alone());
            assert!(outbox.take().is_some());
            outbox.handed_over(now);
            outbox.answered();
        }
        assert!(!outbox.is_alone(), "the rest go together");
        outbox.go_alone(1);
        outbox.take().unwrap();
        outbox.handed_over(now);
        outbox.go_alone(1);
        assert!(!outbox.is_due(now + 2 * PATIENCE), "an answer is missing");
        assert!(outbox.take().is_none());
        outbox.clear();
        assert!(outbox.is_alone() && !outbox.is_due(now));
    }
}
