//! Exactly-once: batches that are published together, in one transaction with their offsets.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::PipelineError;
use super::publish::{LOOK_UP, Publisher};
use super::tally::{Losses, Tally};
use crate::batch::TopicPartition;
use crate::kafka::{KafkaError, Outcome};
use crate::metrics::{ABORTED, COMMITTED};

/// A window that is aborted this often in a row will not go through.
const ATTEMPTS: u32 = 10;
/// How long the brokers may take to let another producer in.
pub(super) const REPLACED_WITHIN: Duration = Duration::from_secs(30);
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

/// When a transaction ends, and the open one.
#[derive(Debug)]
pub struct Window {
    length: Duration,
    batches: usize,
    opened: Option<Instant>,
    /// Batches in it.
    size: usize,
    /// Messages of it that the brokers have not acknowledged yet.
    outstanding: usize,
    /// Why it cannot be committed.
    failed: Option<String>,
    /// That is because of a message's size or shape, which the next one changes.
    pub(super) for_message: bool,
}

impl Window {
    /// Ends after `length`, or with `batches` in it.
    pub fn new(length: Duration, batches: usize) -> Window {
        Window {
            length,
            batches,
            opened: None,
            size: 0,
            outstanding: 0,
            failed: None,
            for_message: false,
        }
    }

    /// What is left of the open one.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        let opened = self.opened?;
        Some(self.length.saturating_sub(now.duration_since(opened)))
    }

    pub fn sent(&mut self) {
        self.outstanding += 1;
    }

    pub fn acknowledged(&mut self) {
        self.outstanding = self.outstanding.saturating_sub(1);
    }

    /// A message of it was refused.
    pub fn fails(&mut self, problem: String) {
        self.failed.get_or_insert(problem);
    }

    fn reset(&mut self) {
        *self = Window::new(self.length, self.batches);
    }

    fn is_due(&self, now: Instant) -> bool {
        let over = self.left(now).is_some_and(|left| left.is_zero());
        over || self.size >= self.batches || self.failed.is_some()
    }
}

impl Publisher {
    /// A batch is about to be published: with exactly-once it needs a transaction.
    pub(super) fn open_window(&mut self) -> Result<(), KafkaError> {
        let Some(window) = &mut self.window else {
            return Ok(());
        };
        if window.opened.is_none() {
            self.sink.begin()?;
            window.opened = Some(Instant::now());
        }
        window.size += 1;
        Ok(())
    }

    pub(super) fn commit_if_due(&mut self) -> Result<(), PipelineError> {
        match &self.window {
            Some(window) if window.opened.is_some() && window.is_due(Instant::now()) => {
                self.commit()
            }
            _ => Ok(()),
        }
    }

    /// Commits the open transaction. One that is aborted is sent again, without the batches whose partitions are lost,
    /// from the batches themselves: they are still here, and judging them again says the same.
    fn commit(&mut self) -> Result<(), PipelineError> {
        let mut backoff = FIRST_BACKOFF;
        let mut attempts = 0;
        while attempts < ATTEMPTS {
            let problem = match self.try_commit()? {
                Outcome::Committed => {
                    self.count(COMMITTED);
                    self.window().reset();
                    self.forget_refusals();
                    for pending in &mut self.pending {
                        pending.outstanding = 0;
                    }
                    return Ok(());
                }
                Outcome::Aborted(problem) => problem,
                Outcome::Stuck => {
                    self.replace_sink()?;
                    "librdkafka does not come back from it".to_owned()
                }
            };
            self.count(ABORTED);
            tracing::warn!("transaction aborted: {problem}; its records are sent again in another");
            // The next one has other messages: it is not the same attempt, and nothing is to be waited for.
            if !self.window().for_message && !self.await_topics() {
                attempts += 1;
                std::thread::sleep(backoff);
                backoff = LONGEST_BACKOFF.min(2 * backoff);
            }
            self.make_small_batches()?;
            if self.abandon.is_requested() || !self.send_again()? {
                return Ok(());
            }
        }
        let problem = format!("aborted {ATTEMPTS} times in a row, see the log");
        Err(KafkaError::Transaction(problem).into())
    }

    fn try_commit(&mut self) -> Result<Outcome, PipelineError> {
        self.await_deliveries()?;
        if let Some(problem) = self.window().failed.take() {
            return Ok(self.sink.abort(problem, &self.abandon)?);
        }
        // Later batches overwrite the offsets of earlier ones.
        let mut offsets: BTreeMap<TopicPartition, i64> = BTreeMap::new();
        let open = || self.pending.iter().filter(|p| p.outstanding > 0);
        for pending in open() {
            offsets.extend(pending.batch.offsets.iter().copied());
        }
        let first = open().next().expect("a window is not empty");
        let offsets: Vec<_> = offsets.into_iter().collect();
        let sequence = first.batch.sequence;
        let committed = self
            .sink
            .commit(&self.membership, sequence, &offsets, &self.abandon);
        Ok(committed?)
    }

    /// Until every message of the window has its acknowledgement, or one has failed: librdkafka would tell at the commit,
    /// but what this is about is worth a look of one's own.
    fn await_deliveries(&mut self) -> Result<(), PipelineError> {
        let deliveries = self.sink.deliveries().clone();
        self.hand_over()?;
        while self.window().outstanding > 0 && self.window().failed.is_none() {
            if self.abandon.is_requested() {
                self.window().fails("given up".to_owned());
            } else if let Ok(delivery) = deliveries.recv_timeout(LOOK_UP) {
                self.delivered(delivery)?;
                self.hand_over()?;
            }
        }
        Ok(())
    }

    /// Opens another transaction with the batches of the aborted one that are still ours; `false` if none is.
    fn send_again(&mut self) -> Result<bool, PipelineError> {
        // The abort has waited for all of them; they tell what was too large.
        while let Ok(delivery) = self.sink.deliveries().try_recv() {
            self.delivered(delivery)?;
        }
        self.outbox.clear();
        self.window().reset();
        let mut ours = Vec::new();
        for (i, pending) in self.pending.iter_mut().enumerate() {
            if pending.outstanding == 0 {
                continue;
            }
            if self.membership.is_lost(pending.batch.sequence) {
                pending.tally = Tally::lost(&pending.batch);
                pending.outstanding = 0;
                pending.losses = Losses::default();
            } else {
                ours.push(i);
            }
        }
        for &i in &ours {
            self.open_window()?;
            self.pending[i].losses = Losses::default();
            let batch = std::mem::take(&mut self.pending[i].batch);
            let emitted = self.emit(&batch);
            self.pending[i].batch = batch;
            emitted?;
        }
        Ok(!ours.is_empty())
    }

    fn replace_sink(&mut self) -> Result<(), KafkaError> {
        if self.abandon.is_requested() {
            return Ok(());
        }
        tracing::warn!("a transaction is stuck; another producer takes its place");
        self.sink.replace(REPLACED_WITHIN, &self.abandon)
    }

    fn window(&mut self) -> &mut Window {
        self.window.as_mut().expect("only exactly-once commits")
    }

    fn count(&self, outcome: &str) {
        self.metrics
            .transactions
            .with_label_values(&[outcome])
            .inc();
    }
}
