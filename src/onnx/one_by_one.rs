//! Keeps a single record from stopping the scorer. If the graph fails on a batch, its records are scored one by one.

use super::{ImageScores, Scorer, ScorerError};
use crate::batch::Scores;

/// The rows on which the graph failed, by their number in the batch, with the reason. Their score is NaN.
pub type Refused = Vec<(usize, String)>;

impl Scorer {
    /// Like [`Scorer::score`], but refuses a row on which the graph fails.
    ///
    /// # Errors
    /// When the graph also fails on a row of zeros, which it scored at the start. Then the rows are not at fault.
    pub fn score_or_refuse(
        &mut self,
        rows: &[f32],
        scores: &mut Scores,
    ) -> Result<Refused, ScorerError> {
        let Err(error) = self.score(rows, scores) else {
            return Ok(Vec::new());
        };
        self.rows_are_at_fault(error)?;
        scores.clear();
        let mut refused = Vec::new();
        for (number, row) in rows.chunks(self.width()).enumerate() {
            if let Err(error) = self.score(row, scores) {
                refused.push((number, self.rows_are_at_fault(error)?));
                scores.end_with_failed(number, self.width());
            }
        }
        Ok(refused)
    }

    /// Like [`Scorer::score_pixels`] for images, each given by its rows, but refuses an image on which the graph fails.
    ///
    /// # Errors
    /// As [`Scorer::score_or_refuse`].
    pub fn score_images_or_refuse(
        &mut self,
        images: &[&[u8]],
        together: &mut Vec<u8>,
        scores: &mut ImageScores,
    ) -> Result<Refused, ScorerError> {
        let scored = match images {
            [one] => self.score_pixels(one, scores),
            many => {
                together.clear();
                many.iter()
                    .for_each(|rows| together.extend_from_slice(rows));
                self.score_pixels(together, scores)
            }
        };
        let Err(error) = scored else {
            return Ok(Vec::new());
        };
        self.rows_are_at_fault(error)?;
        scores.clear();
        let (mut refused, mut values) = (Vec::new(), 0);
        for (place, rows) in images.iter().enumerate() {
            values += rows.len();
            if let Err(error) = self.score_pixels(rows, scores) {
                refused.push((place, self.rows_are_at_fault(error)?));
                self.fill(scores, values);
            }
        }
        Ok(refused)
    }

    /// Returns why the graph failed, if the rows are at fault.
    fn rows_are_at_fault(&mut self, error: ScorerError) -> Result<String, ScorerError> {
        let why = match &error {
            ScorerError::Graph(_) | ScorerError::Run(_) => error.to_string(),
            ScorerError::Provider { .. } | ScorerError::Interrupted => return Err(error),
        };
        match self.score_zeros() {
            Ok(()) => Ok(why),
            Err(ScorerError::Interrupted) => Err(ScorerError::Interrupted),
            Err(_) => Err(error),
        }
    }
}
