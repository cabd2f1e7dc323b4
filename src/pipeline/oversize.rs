//! Messages that the client or the brokers would not take as they are, most often for their size. They leave something out; about a record of which nothing
//! can be said even so, that is counted and logged, and the stream goes on.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::publish::Publisher;
use super::window::{REPLACED_WITHIN, Window};
use crate::kafka::{KafkaError, Ticket};
use crate::message::{About, Kind, Message};

/// After a refusal that may be about the whole batch, so many messages go one by one.
const ALONE: usize = 1000;
/// So often a window tries what a topic takes; then it leaves out whatever is larger than the last guess.
const GUESSES: u32 = 20;
const SAID_EVERY: Duration = Duration::from_secs(10);

/// With exactly-once, what a topic refused since the last commit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusal {
    /// Messages of this size and more leave something out...
    from: usize,
    /// ...to be no larger than this.
    fit: usize,
    guesses: u32,
}

/// What messages lacked since that was last said.
#[derive(Debug, Default)]
pub(super) struct Omissions {
    said: Option<Instant>,
    parts: BTreeMap<&'static str, u64>,
}

impl Publisher {
    /// The brokers found a message too large.
    pub(super) fn is_refused(&mut self, ticket: &Ticket, topic: String, message: Message) {
        let size = message.size();
        if let Some(window) = &mut self.window {
            window.fails_for_message(format!("a message is too large for topic {topic}"));
            match self.fit(&topic, size, self.has_small_batches) {
                None => self.wants_small_batches = true,
                Some(fit) => self.learn(topic, size, fit),
            }
            return;
        }
        let mut fit = self.fit(&topic, size, ticket.alone);
        if fit.is_none() && !self.outbox.is_alone() {
            self.sink.ask_limits();
            fit = self.fit(&topic, size, ticket.alone);
        }
        let again = match fit {
            None => {
                self.outbox.go_alone(ALONE);
                Some(message)
            }
            Some(fit) => self.slimmed(ticket.sequence, &topic, &message, size, fit),
        };
        if let Some(again) = again {
            self.send(ticket.sequence, topic, again);
        }
    }

    /// The client found a message too large: it did not even send it.
    pub(super) fn is_too_large_here(
        &mut self,
        sequence: u64,
        topic: &str,
        message: &Message,
    ) -> Option<Message> {
        let (size, client) = (message.size(), self.sink.limits().client());
        let fit = if client < size { client } else { size / 2 };
        self.slimmed(sequence, topic, message, size, fit)
    }

    /// The size that a topic may take in place of `size`, which it refused; `None` if the refusal may be about others in the
    /// same batch, which it is not if the message was alone in it.
    fn fit(&self, topic: &str, size: usize, alone: bool) -> Option<usize> {
        match self.sink.limits().topic(topic) {
            Some(limit) if limit < size => Some(limit),
            _ if alone => Some(size / 2),
            _ => None,
        }
    }

    /// A transaction failed for the size of a batch: another producer makes smaller ones.
    pub(super) fn make_small_batches(&mut self) -> Result<(), KafkaError> {
        if std::mem::take(&mut self.wants_small_batches) && !self.abandon.is_requested() {
            self.sink.shrink_batches(REPLACED_WITHIN, &self.abandon)?;
            self.has_small_batches = true;
        }
        Ok(())
    }

    /// What was refused is judged again from its batch, so its size is remembered.
    fn learn(&mut self, topic: String, size: usize, fit: usize) {
        let refusal = self.too_large.entry(topic).or_insert(Refusal {
            from: usize::MAX,
            fit: usize::MAX,
            guesses: 0,
        });
        refusal.guesses += 1;
        refusal.fit = refusal.fit.min(fit);
        let tired = refusal.guesses > GUESSES;
        refusal.from = if tired {
            refusal.fit
        } else {
            refusal.from.min(size)
        };
    }

    /// The message as it may go to a topic after what that refused; `None` if it cannot.
    pub(super) fn fitted(
        &mut self,
        sequence: u64,
        topic: &str,
        message: Message,
    ) -> Option<Message> {
        match self.too_large.get(topic).copied() {
            Some(refusal) if message.size() >= refusal.from => {
                self.slimmed(sequence, topic, &message, refusal.from, refusal.fit)
            }
            _ => Some(message),
        }
    }

    /// The message in `fit` bytes, or at least in less than `refused` bytes. If that cannot be, its record counts as
    /// undeliverable.
    fn slimmed(
        &mut self,
        sequence: u64,
        topic: &str,
        message: &Message,
        refused: usize,
        fit: usize,
    ) -> Option<Message> {
        let hint = self.sink.limits().hint(topic);
        let why = format!("too large for topic `{topic}`");
        let (mut slim, parts) = message.slimmed(fit, &why);
        self.give_key(topic, &mut slim);
        if slim.size() >= refused {
            self.is_undeliverable(sequence, topic, &message.about, &hint);
            return None;
        }
        self.omits(sequence, &parts, &message.about, &format!("{why}: {hint}"));
        Some(slim)
    }

    /// Counts what is left out of a message, and says so from time to time.
    pub(super) fn omits(
        &mut self,
        sequence: u64,
        parts: &[&'static str],
        about: &About,
        why: &str,
    ) {
        for part in parts {
            let losses = &mut self.pending_of(sequence).losses;
            *losses.omitted.entry(part).or_default() += 1;
            *self.omissions.parts.entry(part).or_default() += 1;
        }
        let (now, source) = (Instant::now(), &about.source);
        let recently = |said| now.saturating_duration_since(said) < SAID_EVERY;
        if self.omissions.said.is_some_and(recently) {
            return;
        }
        let parts = std::mem::take(&mut self.omissions.parts);
        let parts: Vec<String> = parts
            .iter()
            .map(|(part, n)| format!("{part} {n}"))
            .collect();
        tracing::warn!(
            topic = source.topic,
            partition = source.partition,
            offset = source.offset,
            left_out = parts.join(", "),
            "messages about records like this one leave parts out, which their header residuald.omitted names: {why}"
        );
        self.omissions.said = Some(now);
    }

    /// Nothing can be published about a record.
    fn is_undeliverable(&mut self, sequence: u64, topic: &str, about: &About, hint: &str) {
        let what = match about.kind {
            Kind::Verdict => "verdict",
            Kind::DeadLetter(_) => "dead letter",
            Kind::Map => "map",
            Kind::Record => "copy",
        };
        let source = &about.source;
        tracing::error!(
            topic = source.topic,
            partition = source.partition,
            offset = source.offset,
            "the {what} of this record is too large for topic `{topic}` even with all left out that it can do without; it is not published: {hint}"
        );
        self.pending_of(sequence).losses.lose(about);
    }

    /// A message that was counted as on its way is not sent.
    pub(super) fn is_given_up(&mut self, sequence: u64) {
        match &mut self.window {
            Some(window) => window.acknowledged(),
            None => self.pending_of(sequence).outstanding -= 1,
        }
    }

    /// A window went through: what its topics refused may be compressed better the next time.
    pub(super) fn forget_refusals(&mut self) {
        self.too_large.clear();
        self.has_small_batches = false;
    }
}

impl Window {
    pub(super) fn fails_for_message(&mut self, problem: String) {
        self.fails(problem);
        self.for_message = true;
    }
}
