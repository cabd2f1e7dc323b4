//! Two-stage scoring. The screen sees every row. The scorer sees the rows that are not clearly normal, and a sample of
//! the others to audit the screen.

use crate::batch::{Batch, Screened};
use crate::bundle::TooFewProbes;
use crate::bundle::segments::ScoreLimits;
use crate::config::{self, ScreenMode};
use crate::onnx::{Scorer, ScorerError, ScreenSession};
use crate::verdict::Judge;

/// With the screen on, one record in this many is scored whatever the screen answers.
const AUDIT_ONE_IN: u64 = 64;

/// Returns the screen's output above which a record is scored, so that for each threshold of `judge` at most the share `missed`
/// of the flagged records is not scored.
///
/// # Errors
/// [`TooFewProbes`], if the calibration has too few probes for one of the thresholds.
pub fn bounds(
    screen: &crate::bundle::Screen,
    judge: &Judge,
    missed: f64,
) -> Result<ScoreLimits, TooFewProbes> {
    let thresholds = judge.thresholds();
    let segments = thresholds.segments.iter();
    Ok(ScoreLimits {
        all: screen.answers.bound(thresholds.all, missed)?,
        segments: segments
            .map(|threshold| screen.answers.bound(*threshold, missed))
            .collect::<Result<_, _>>()?,
    })
}

/// A worker's screen with its bounds.
#[derive(Debug)]
pub struct Screening {
    screen: ScreenSession,
    bounds: ScoreLimits,
    audits_all: bool,
    answers: Vec<f32>,
    picked: Vec<f32>,
}

impl Screening {
    /// Returns `None` if the settings turn the screen off.
    pub fn new(
        screen: ScreenSession,
        bounds: ScoreLimits,
        settings: config::ScreenSettings,
    ) -> Option<Screening> {
        Some(Screening {
            screen,
            bounds,
            audits_all: match settings.mode {
                ScreenMode::Off => return None,
                ScreenMode::On => false,
                ScreenMode::Audit => true,
            },
            answers: Vec::new(),
            picked: Vec::new(),
        })
    }

    /// Decides for each record whether it is scored, and scores those.
    ///
    /// # Errors
    /// [`ScorerError::Run`] if ONNX Runtime fails.
    pub fn score(&mut self, scorer: &mut Scorer, batch: &mut Batch) -> Result<(), ScorerError> {
        self.answers.clear();
        self.picked.clear();
        if let Err(error) = self.screen.ask(&batch.rows, &mut self.answers) {
            if matches!(error, ScorerError::Interrupted) {
                return Err(error);
            }
            tracing::error!(
                "the screen failed on a batch, so all of its records are scored: {error}"
            );
            self.answers.clear();
            self.answers.resize(batch.scorable(), f32::NAN);
        }
        let width = batch.rows.len() / batch.scorable();
        let mut screened = std::mem::take(&mut batch.screened);
        for (i, (record, answer)) in batch.records().zip(&self.answers).enumerate() {
            // A comparison with NaN is false, so NaN does not clear a record.
            let cleared = *answer <= self.bounds.of(record.segment);
            let score_index = self.picked.len() / width;
            let outcome = if self.audits_all || is_audited(record.offset) {
                Screened::Audited {
                    score_index,
                    cleared,
                }
            } else if cleared {
                Screened::Cleared
            } else {
                Screened::Passed { score_index }
            };
            if outcome != Screened::Cleared {
                let row = &batch.rows[i * width..(i + 1) * width];
                self.picked.extend_from_slice(row);
            }
            screened.push(outcome);
        }
        batch.screened = screened;
        batch.refused = scorer.score_or_refuse(&self.picked, &mut batch.scores)?;
        Ok(())
    }
}

/// Returns whether the record at this offset is audited. The result depends only on the offset, so that a replay audits
/// the same records. The offset is hashed, because a stream may be periodic.
fn is_audited(offset: i64) -> bool {
    let hash = offset.cast_unsigned().wrapping_mul(0x9E37_79B9_7F4A_7C15);
    hash >> (u64::BITS - AUDIT_ONE_IN.ilog2()) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_record_in_64_is_audited_whatever_the_stride() {
        for stride in [1, 2, 3, 10, 64, 1000] {
            let audited = (0..64_000).filter(|i| is_audited(i * stride)).count();
            assert!(
                (900..1100).contains(&audited),
                "{audited} of stride {stride}"
            );
        }
    }
}
