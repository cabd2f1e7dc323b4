//! The open transaction of exactly-once delivery. Knows when it is due, and whether it can still be committed.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct TransactionWindow {
    length: Duration,
    most_batches: usize,
    opened: Option<Instant>,
    batches: usize,
    /// The number of messages that the brokers have not acknowledged yet.
    outstanding: usize,
    /// The reason why the transaction cannot be committed, if any.
    failed: Option<Failed>,
}

#[derive(Debug)]
pub struct Failed {
    pub problem: String,
    /// Whether the next transaction will have another message in place of the refused one.
    pub next_differs: bool,
}

impl TransactionWindow {
    /// Creates a window whose transaction is due after `length`, or once it holds `most_batches`.
    pub fn new(length: Duration, most_batches: usize) -> TransactionWindow {
        TransactionWindow {
            length,
            most_batches,
            opened: None,
            batches: 0,
            outstanding: 0,
            failed: None,
        }
    }

    pub fn is_open(&self) -> bool {
        self.opened.is_some()
    }

    pub fn open(&mut self) {
        self.opened.get_or_insert_with(Instant::now);
    }

    pub fn add_batch(&mut self) {
        self.batches += 1;
    }

    /// Returns the time until an open transaction is due.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        let opened = self.opened?;
        Some(self.length.saturating_sub(now.duration_since(opened)))
    }

    pub fn is_due(&self, now: Instant) -> bool {
        let over = self.left(now).is_some_and(|left| left.is_zero());
        self.is_open() && (over || self.batches >= self.most_batches || self.failed.is_some())
    }

    pub fn sent(&mut self) {
        self.outstanding += 1;
    }

    pub fn acknowledged(&mut self) {
        self.outstanding = self.outstanding.saturating_sub(1);
    }

    pub fn awaits_acknowledgements(&self) -> bool {
        self.outstanding > 0 && self.failed.is_none()
    }

    pub fn fails(&mut self, problem: String) {
        self.failed.get_or_insert(Failed {
            problem,
            next_differs: false,
        });
    }

    /// Notes that a message was refused and that the next transaction sends it in another shape.
    pub fn fails_for_message(&mut self, problem: String) {
        self.fails(problem);
        if let Some(failed) = &mut self.failed {
            failed.next_differs = true;
        }
    }

    pub fn failed(&self) -> Option<&Failed> {
        self.failed.as_ref()
    }

    pub fn reset(&mut self) {
        *self = TransactionWindow::new(self.length, self.most_batches);
    }
}
