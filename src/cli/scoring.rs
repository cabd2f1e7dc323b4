//! Rows scored on all cores, a chunk at a time; what came of them in the order in which they went in.

use std::thread;

use crate::batch::Batch;
use crate::config::{Inference, Provider};
use crate::onnx::Scorer;
use crate::verdict::Scored;

use super::failure::Failure;

/// Rows that are worth sharing out to the cores.
pub const CHUNK: usize = 16_384;
/// Rows a core scores at once.
pub const BATCH: usize = 256;

/// A session for each core.
pub fn all_cores() -> Inference {
    Inference {
        provider: Provider::Cpu,
        fallback: false,
        workers: thread::available_parallelism().map_or(1, usize::from),
    }
}

pub struct Scoring {
    scorers: Vec<Scorer>,
    width: usize,
}

impl Scoring {
    /// For rows of `width` columns.
    pub fn new(scorers: Vec<Scorer>, width: usize) -> Scoring {
        Scoring { scorers, width }
    }

    /// Scores `rows`, [records, width], and calls `each` with the number of the row, from 0, and what was found.
    ///
    /// # Errors
    /// When ONNX Runtime fails, and what `each` fails with.
    pub fn score(
        &mut self,
        rows: &[f32],
        mut each: impl FnMut(usize, Scored<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let width = self.width;
        let records = rows.len() / width;
        let per_scorer = records.div_ceil(self.scorers.len()).max(1) * width;
        let parts = thread::scope(|scope| {
            let threads: Vec<_> = self
                .scorers
                .iter_mut()
                .zip(rows.chunks(per_scorer))
                .map(|(scorer, rows)| {
                    scope.spawn(move || {
                        let mut part = Batch::default();
                        scorer
                            .score(
                                rows,
                                &mut part.scores,
                                &mut part.residuals,
                                &mut part.reconstructions,
                            )
                            .map(|()| part)
                    })
                })
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.collect::<Vec<_>>()
        });
        let mut row = 0;
        for (part, rows) in parts.into_iter().zip(rows.chunks(per_scorer)) {
            let part = part.map_err(|_| Failure::internal("a scoring thread panicked"))??;
            for (i, &score) in part.scores.iter().enumerate() {
                let columns = i * width..(i + 1) * width;
                let scored = Scored {
                    score,
                    row: &rows[columns.clone()],
                    residual: &part.residuals[columns.clone()],
                    reconstruction: &part.reconstructions[columns],
                };
                each(row, scored)?;
                row += 1;
            }
        }
        Ok(())
    }
}

/// The entries with the highest scores, the highest first.
pub struct Highest<T> {
    most: usize,
    entries: Vec<(f32, T)>,
}

impl<T> Highest<T> {
    pub fn new(most: usize) -> Highest<T> {
        Highest {
            most,
            entries: Vec::new(),
        }
    }

    /// Whether an entry with this score would be among them.
    pub fn takes(&self, score: f32) -> bool {
        match self.entries.last() {
            _ if self.entries.len() < self.most => true,
            Some((least, _)) => score > *least,
            None => false,
        }
    }

    pub fn insert(&mut self, score: f32, entry: T) {
        let place = self.entries.partition_point(|(s, _)| *s >= score);
        self.entries.insert(place, (score, entry));
        self.entries.truncate(self.most);
    }

    pub fn iter(&self) -> impl Iterator<Item = &(f32, T)> {
        self.entries.iter()
    }
}
