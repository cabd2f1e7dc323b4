//! Batches that are judged and not yet delivered.

use std::collections::VecDeque;
use std::time::Instant;

use crate::batch::Batch;

use super::super::tally::{Losses, Tally};

/// By consecutive sequence.
#[derive(Default)]
pub struct PendingBatches(VecDeque<Pending>);

pub struct Pending {
    pub batch: Batch,
    sequence: u64,
    /// What it waits for: each message that is not acknowledged, or the one transaction that it is in.
    pub outstanding: usize,
    pub tally: Tally,
    pub losses: Losses,
    pub published: Instant,
}

impl PendingBatches {
    /// Room for a batch that is being judged, which waits for one thing.
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

    /// A batch of which nothing is published.
    pub fn skip(&mut self, batch: Batch) {
        let (sequence, tally) = (batch.sequence, Tally::lost(&batch));
        self.open(sequence);
        let pending = self.of(sequence);
        (pending.batch, pending.tally, pending.outstanding) = (batch, tally, 0);
    }

    /// # Panics
    /// If it is not pending, which would be a bug: whatever refers to it keeps it here.
    pub fn of(&mut self, sequence: u64) -> &mut Pending {
        let first = self.0[0].sequence;
        &mut self.0[(sequence - first) as usize]
    }

    /// The next batch that waits for nothing any more, in order.
    pub fn take_finished(&mut self) -> Option<Pending> {
        let finished = self.0.front().is_some_and(|p| p.outstanding == 0);
        finished.then(|| self.0.pop_front().expect("seen above"))
    }

    /// Those that wait for something.
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

    /// Its partitions belong to another member of the group, who judges its records.
    pub fn give_up(&mut self) {
        self.tally = Tally::lost(&self.batch);
        self.losses = Losses::default();
        self.outstanding = 0;
    }
}
