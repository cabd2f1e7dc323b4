//! Two stages: the screen looks at every row, the scorer at those that are not clearly normal and at a few to keep the
//! screen honest.

use crate::batch::{Batch, Screened};
use crate::bundle::{SegmentId, TooFewProbes};
use crate::config::{self, ScreenMode};
use crate::onnx::{Scorer, ScorerError, ScreenSession};
use crate::verdict::Judge;

/// With the screen on, one record in this many is scored whatever the screen says.
const AUDIT_ONE_IN: u64 = 64;

/// What a record's screen must exceed for the scorer to be asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Bounds {
    pub all: f32,
    /// Of each segment.
    segments: Vec<f32>,
}

impl Bounds {
    /// So that of what each threshold of `judge` flags at most a share of `missed` is not scored.
    ///
    /// # Errors
    /// [`TooFewProbes`] for one of the thresholds.
    pub fn new(
        screen: &crate::bundle::Screen,
        judge: &Judge,
        missed: f64,
    ) -> Result<Bounds, TooFewProbes> {
        let segments = judge.segments().map_or(0, |(_, count)| count);
        let ids = (0..segments).map(|at| SegmentId(at as u32));
        let thresholds = ids.map(|id| judge.threshold_of(Some(id)));
        Ok(Bounds {
            all: screen.answers.bound(judge.threshold, missed)?,
            segments: thresholds
                .map(|threshold| screen.answers.bound(threshold, missed))
                .collect::<Result<_, _>>()?,
        })
    }

    fn of(&self, segment: Option<SegmentId>) -> f32 {
        segment.map_or(self.all, |SegmentId(at)| self.segments[at as usize])
    }
}

/// A worker's screen.
#[derive(Debug)]
pub struct Screening {
    screen: ScreenSession,
    bounds: Bounds,
    audits_all: bool,
    answers: Vec<f32>,
    picked: Vec<f32>,
}

impl Screening {
    /// `None` if the settings want none.
    pub fn new(
        screen: ScreenSession,
        bounds: Bounds,
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

    /// Says of each record whether it is scored, and has those scored that are.
    ///
    /// # Errors
    /// [`ScorerError::Run`] when ONNX Runtime fails.
    pub fn score(&mut self, scorer: &mut Scorer, batch: &mut Batch) -> Result<(), ScorerError> {
        self.answers.clear();
        self.picked.clear();
        if let Err(error) = self.screen.ask(&batch.rows, &mut self.answers) {
            if matches!(error, ScorerError::Interrupted) {
                return Err(error);
            }
            tracing::error!("the screen fails on a batch, which is scored in full: {error}");
            self.answers.clear();
            self.answers.resize(batch.scorable(), f32::NAN);
        }
        let width = batch.rows.len() / batch.scorable();
        let mut screened = std::mem::take(&mut batch.screened);
        for (i, (record, answer)) in batch.records().zip(&self.answers).enumerate() {
            // Not a number is not clearly normal.
            let cleared = *answer <= self.bounds.of(record.segment);
            let place = self.picked.len() / width;
            let outcome = if self.audits_all || is_audited(record.offset) {
                Screened::Audited { place, cleared }
            } else if cleared {
                Screened::Cleared
            } else {
                Screened::Passed { place }
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

/// By the offset alone, so that a replay audits the same records; hashed, as what comes may have a period.
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
