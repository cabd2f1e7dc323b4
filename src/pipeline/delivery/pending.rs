//! Batches that are judged but not delivered yet.

use std::collections::VecDeque;
use std::time::Instant;

use crate::batch::Batch;

use super::super::tally::{Losses, Tally};

/// The pending batches, by consecutive sequence.
#[derive(Default)]
pub struct PendingBatches(VecDeque<Pending>);

pub struct Pending {
    pub batch: Batch,
    sequence: u64,
    /// The number of events the batch waits for: one for each message without an answer, or one for its transaction.
    pub outstanding: usize,
    pub tally: Tally,
    pub losses: Losses,
    pub published: Instant,
}

impl PendingBatches {
    /// Adds a batch that is being judged, which is one event to wait for.
    pub fn open(&mut self, sequence: u64) {
        self.0.push_back(Pending {
            batch: Batch::default(),
            sequence,
            outstanding: 1,
            tally: Tally::default(),
            losses: Losses::default(),
            published: Instant::now(),
        });
    }

    /// Adds a batch of which nothing is published.
    pub fn skip(&mut self, batch: Batch) {
        let (sequence, tally) = (batch.sequence, Tally::lost(&batch));
        self.open(sequence);
        let pending = self.of(sequence);
        (pending.batch, pending.tally, pending.outstanding) = (batch, tally, 0);
    }

    /// # Panics
    /// If the batch is not pending. That would be a bug, because everything that refers to a batch keeps it here.
    pub fn of(&mut self, sequence: u64) -> &mut Pending {
        let first = self.0[0].sequence;
        &mut self.0[(sequence - first) as usize]
    }

    /// Removes and returns the next batch that waits for nothing more, in order.
    pub fn take_finished(&mut self) -> Option<Pending> {
        let finished = self.0.front().is_some_and(|p| p.outstanding == 0);
        finished.then(|| self.0.pop_front().expect("seen above"))
    }

    /// Returns the batches that still wait.
    pub fn unfinished(&mut self) -> impl Iterator<Item = &mut Pending> {
        self.0.iter_mut().filter(|pending| pending.outstanding > 0)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Pending {
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Gives up the batch, because its partitions belong to another member of the group, which judges its records.
    pub fn give_up(&mut self) {
        self.tally = Tally::lost(&self.batch);
        self.losses = Losses::default();
        self.outstanding = 0;
    }
}
