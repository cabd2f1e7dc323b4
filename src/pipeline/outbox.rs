//! Messages that wait until the brokers have answered for those before them, then go out together.
//!
//! librdkafka's idempotent producer sends no more of a partition while five of its messages are under way, and while others wait
//! for that past their `linger.ms`, its thread looks again and again without a pause: a third of all CPU that residuald took
//! behind a slow broker (`benches/profile/`). Here they wait at no cost, and the longer the answer takes, the more go at once.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::message::Message;

/// One partition whose leader does not answer must not hold the others up for longer.
const PATIENCE: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub struct Outbox {
    waiting: VecDeque<Outgoing>,
    /// Handed over, without an answer yet.
    under_way: usize,
    handed_over: Option<Instant>,
}

/// A message and the batch that it belongs to.
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

    /// What could not be handed over is next again.
    pub fn put_back(&mut self, outgoing: Outgoing) {
        self.waiting.push_front(outgoing);
    }

    pub fn take(&mut self) -> Option<Outgoing> {
        self.waiting.pop_front()
    }

    /// Whether something waits that may go.
    pub fn is_due(&self, now: Instant) -> bool {
        let patient = |handed_over| now.saturating_duration_since(handed_over) < PATIENCE;
        let waits = self.under_way > 0 && self.handed_over.is_some_and(patient);
        !self.waiting.is_empty() && !waits
    }

    pub fn handed_over(&mut self, now: Instant) {
        self.under_way += 1;
        self.handed_over = Some(now);
    }

    /// An answer may be to a message from before an abort.
    pub fn answered(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(sequence: u64) -> Outgoing {
        Outgoing {
            sequence,
            topic: "anomalies".to_owned(),
            message: Message {
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
}
