//! The outputs of the scorer for the rows of a table.

use std::ops::Index;

/// The model's outputs for rows, one row after the other.
#[derive(Debug, Default)]
pub struct Scores {
    /// [rows]
    pub scores: Vec<f32>,
    /// [rows, features]
    pub residuals: Vec<f32>,
    /// [rows, features]
    pub reconstructions: Vec<f32>,
}

impl Scores {
    /// Returns the number of rows.
    pub fn len(&self) -> usize {
        self.scores.len()
    }

    pub fn is_empty(&self) -> bool {
        self.scores.is_empty()
    }

    /// Empties the buffers for reuse.
    pub fn clear(&mut self) {
        self.scores.clear();
        self.residuals.clear();
        self.reconstructions.clear();
    }

    /// Truncates the outputs after `row`, on which the model failed. Sets its score to NaN and its `width` values to zero.
    pub fn end_with_failed(&mut self, row: usize, width: usize) {
        self.scores.truncate(row);
        self.scores.push(f32::NAN);
        for values in [&mut self.residuals, &mut self.reconstructions] {
            values.truncate(row * width);
            values.resize((row + 1) * width, 0.0);
        }
    }
}

impl Index<usize> for Scores {
    type Output = f32;

    /// Returns the score of a row.
    fn index(&self, row: usize) -> &f32 {
        &self.scores[row]
    }
}
