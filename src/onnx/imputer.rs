//! Draws values for what rows lack.

use std::time::{Duration, Instant};

use super::generative::{DrawError, Sampler};
use super::{BATCH, ScorerError};
use crate::bundle::Feature;
use crate::diffusion::Sample;
use crate::imputation::{Imputation, impute_row};

/// Fills in rows from several draws of each. A row gets the same values in any batch.
#[derive(Debug)]
pub struct Imputer {
    sampler: Sampler,
    features: Vec<Feature>,
    /// Number of draws for each row.
    draws: usize,
    /// Share of the draws that an interval holds.
    interval: f32,
}

/// The values that were drawn for a row, or the reason why drawing failed.
pub type Outcome = Result<Imputation, String>;

impl Imputer {
    pub fn new(sampler: Sampler, features: &[Feature], draws: usize, interval: f32) -> Imputer {
        Imputer {
            sampler,
            features: features.to_vec(),
            draws,
            interval,
        }
    }

    /// Draws values for rows [N, F]. NaN is a missing value. `first`, [N]: the first sample of each row; the others have the next
    /// numbers.
    ///
    /// # Errors
    /// ONNX Runtime fails, or the denoiser returns NaN.
    pub fn impute(&mut self, rows: &[f32], first: &[Sample]) -> Result<Vec<Imputation>, DrawError> {
        let (width, draws) = (self.features.len(), self.draws);
        let each_row = rows.chunks_exact(width);
        let x: Vec<f32> = each_row.clone().flat_map(|row| row.repeat(draws)).collect();
        let known: Vec<f32> = x.iter().map(|value| f32::from(!value.is_nan())).collect();
        let x: Vec<f32> = x
            .iter()
            .map(|value| if value.is_nan() { 0.0 } else { *value })
            .collect();
        let samples = first.iter().flat_map(|first| {
            (0..draws as u64).map(|draw| Sample {
                number: first.number + draw,
                ..*first
            })
        });
        let samples: Vec<Sample> = samples.collect();
        let drawn = self.sampler.draw_samples(&samples, &x, &known)?;
        let both = each_row.zip(drawn.chunks_exact(draws * width));
        let imputed =
            both.map(|(row, drawn)| impute_row(&self.features, row, drawn, self.interval));
        Ok(imputed.collect())
    }

    /// Like [`impute`](Self::impute), a few rows at a time. A row on which the graphs fail gets the reason in place of values.
    ///
    /// # Errors
    /// When the graphs also fail on a row without any value, for which they worked at the start. Then the rows are not at fault.
    pub fn impute_or_refuse(
        &mut self,
        rows: &[f32],
        first: &[Sample],
    ) -> Result<Vec<Outcome>, ScorerError> {
        let width = self.features.len();
        let at_once = (BATCH / self.draws).max(1);
        let mut outcomes = Vec::with_capacity(first.len());
        for (rows, first) in rows.chunks(at_once * width).zip(first.chunks(at_once)) {
            match self.impute(rows, first) {
                Ok(imputed) => outcomes.extend(imputed.into_iter().map(Ok)),
                Err(error) => {
                    self.rows_are_at_fault(error)?;
                    for (row, first) in rows.chunks(width).zip(first) {
                        let outcome = match self.impute(row, std::slice::from_ref(first)) {
                            Ok(mut imputed) => Ok(imputed.swap_remove(0)),
                            Err(error) => Err(self.rows_are_at_fault(error)?),
                        };
                        outcomes.push(outcome);
                    }
                }
            }
        }
        Ok(outcomes)
    }

    /// Returns why the graphs failed, if the rows are at fault.
    fn rows_are_at_fault(&mut self, error: DrawError) -> Result<String, ScorerError> {
        let why = error.to_string();
        match error {
            DrawError::Graph(ScorerError::Interrupted) => Err(ScorerError::Interrupted),
            DrawError::Graph(error) => match self.impute_nothing() {
                Ok(()) => Ok(why),
                Err(DrawError::Graph(ScorerError::Interrupted)) => Err(ScorerError::Interrupted),
                Err(_) => Err(error),
            },
            DrawError::Scheduler(_) | DrawError::States(_) | DrawError::NotFinite { .. } => Ok(why),
        }
    }

    /// Draws values for a row that lacks all of them.
    fn impute_nothing(&mut self) -> Result<(), DrawError> {
        let seed = self.sampler.seed();
        let row = vec![f32::NAN; self.features.len()];
        self.impute(&row, &[Sample { seed, number: 0 }]).map(|_| ())
    }

    /// Proves that the graphs work together. Returns how long the values of one row take.
    ///
    /// # Errors
    /// ONNX Runtime fails, or the denoiser returns NaN.
    pub fn warm_up(&mut self) -> Result<Duration, DrawError> {
        // The first run allocates.
        self.impute_nothing()?;
        let started = Instant::now();
        self.impute_nothing()?;
        Ok(started.elapsed())
    }
}
