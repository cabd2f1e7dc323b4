//! Draws values for the records of a batch that lack something, after the batch is scored.

use std::time::Instant;

use crate::batch::{Batch, Incomplete, Restored};
use crate::diffusion::Sample;
use crate::imputation::seed_at;
use crate::kafka::Topics;
use crate::metrics::Metrics;
use crate::onnx::{Imputer, ScorerError};

/// A worker's part of the restoration.
pub struct Restoration {
    pub imputer: Imputer,
    /// Mixed into the seed of every record.
    pub seed: u64,
    /// The names of topics, by [`crate::batch::TopicPartition::topic`].
    pub topics: Topics,
    pub metrics: Metrics,
}

impl Restoration {
    /// Fills in the batch. The seed of a record depends on its place alone, so a redelivered record gets the same values.
    ///
    /// # Errors
    /// When ONNX Runtime fails, and no record is at fault.
    pub fn restore(&mut self, batch: &mut Batch) -> Result<(), ScorerError> {
        if batch.incomplete_count() == 0 {
            return Ok(());
        }
        let started = Instant::now();
        let (mut rows, mut first, mut all) = (Vec::new(), Vec::new(), Vec::new());
        for (of, row) in batch.incomplete() {
            rows.extend_from_slice(row);
            all.push(of);
            first.push(Sample {
                seed: self.seed_of(batch, of),
                number: 0,
            });
        }
        let outcomes = self.imputer.impute_or_refuse(&rows, &first)?;
        log_failed(outcomes.iter().filter_map(|outcome| outcome.as_ref().err()));
        let restored = all.into_iter().zip(first).zip(outcomes);
        let restored = restored.map(|((of, first), outcome)| Restored {
            of,
            seed: first.seed,
            outcome,
        });
        batch.restored = restored.collect();
        self.metrics
            .restoration_seconds
            .observe(started.elapsed().as_secs_f64());
        Ok(())
    }

    fn seed_of(&self, batch: &Batch, of: Incomplete) -> u64 {
        match of {
            Incomplete::Record(i) => {
                let record = batch.record(i);
                seed_at(self.seed, &self.topics[record.from.topic], record.place())
            }
            Incomplete::DeadLetter(i) => {
                let source = &batch.dead_letters[i].source;
                seed_at(self.seed, &source.topic, source.place())
            }
        }
    }
}

/// Logs for how many records no values could be drawn, with the reason for the first of them.
fn log_failed<'o>(mut failed: impl Iterator<Item = &'o String>) {
    if let Some(why) = failed.next() {
        let records = 1 + failed.count();
        tracing::error!(
            records,
            "nothing could be filled in some records, which are published as they came: {why}"
        );
    }
}
