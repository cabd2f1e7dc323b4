//! One record must not end what scores the others: where the graph fails on a batch, its records are scored one by one.

use super::{Scorer, ScorerError, Seen};

/// What the graph fails on, by its place in the batch, and why. Its score is not a number.
pub type Refused = Vec<(usize, String)>;

impl Scorer {
    /// [`Scorer::score`], but a row that the graph fails on is refused instead.
    ///
    /// # Errors
    /// The graph fails on a row of zeros too, which it scored at the start: it is not the rows.
    pub fn score_apart(
        &mut self,
        rows: &[f32],
        scores: &mut Vec<f32>,
        residuals: &mut Vec<f32>,
        reconstructions: &mut Vec<f32>,
    ) -> Result<Refused, ScorerError> {
        let Err(error) = self.score(rows, scores, residuals, reconstructions) else {
            return Ok(Vec::new());
        };
        self.rows_are_at_fault(error)?;
        scores.clear();
        residuals.clear();
        reconstructions.clear();
        let mut refused = Vec::new();
        for (place, row) in rows.chunks(self.width()).enumerate() {
            if let Err(error) = self.score(row, scores, residuals, reconstructions) {
                refused.push((place, self.rows_are_at_fault(error)?));
                let values = (place + 1) * self.width();
                scores.resize(place + 1, f32::NAN);
                residuals.resize(values, 0.0);
                reconstructions.resize(values, 0.0);
            }
        }
        Ok(refused)
    }

    /// [`Scorer::score_pixels`] of pictures, each the rows of one, but a picture that the graph fails on is refused instead.
    ///
    /// # Errors
    /// As [`Scorer::score_apart`].
    pub fn score_pictures_apart(
        &mut self,
        pictures: &[&[u8]],
        together: &mut Vec<u8>,
        seen: &mut Seen,
    ) -> Result<Refused, ScorerError> {
        let scored = match pictures {
            [one] => self.score_pixels(one, seen),
            many => {
                together.clear();
                many.iter()
                    .for_each(|rows| together.extend_from_slice(rows));
                self.score_pixels(together, seen)
            }
        };
        let Err(error) = scored else {
            return Ok(Vec::new());
        };
        self.rows_are_at_fault(error)?;
        seen.clear();
        let (mut refused, mut values) = (Vec::new(), 0);
        for (place, rows) in pictures.iter().enumerate() {
            values += rows.len();
            if let Err(error) = self.score_pixels(rows, seen) {
                refused.push((place, self.rows_are_at_fault(error)?));
                self.fill(seen, values);
            }
        }
        Ok(refused)
    }

    /// Why the graph failed, if that is because of the rows.
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
