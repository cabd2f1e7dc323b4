//! Detects drift by comparing recent scores with the calibration. Data that changes shifts the whole distribution, not
//! only its tail.

/// The quantile of the calibration with which scores are compared.
pub const QUANTILE: f64 = 0.9;
/// The time constant of the average, in records.
const MEMORY: f64 = 10_000.0;

/// An exponential moving average of the share of scores above the calibration's [`QUANTILE`].
#[derive(Debug)]
pub struct Drift {
    line: f32,
    share: f64,
}

impl Drift {
    /// `line` is the calibration's score at [`QUANTILE`].
    pub fn new(line: f32) -> Drift {
        Drift {
            line,
            share: 1.0 - QUANTILE,
        }
    }

    /// Adds finite scores, in any order. Returns the share above the line, relative to the calibration: 1 means as
    /// calibrated, 10 means that every record is above the line.
    pub fn see(&mut self, scores: impl Iterator<Item = f32>) -> f64 {
        for score in scores {
            let above = f64::from(u8::from(score > self.line));
            self.share += (above - self.share) / MEMORY;
        }
        self.share / (1.0 - QUANTILE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_as_calibrated_and_ten_is_everything_above() {
        let mut drift = Drift::new(0.9);
        let spread: Vec<f32> = (0..100_000_u64)
            .map(|i| (i * 7919 % 1000) as f32 / 1000.0)
            .collect();
        let all = |score: f32| std::iter::repeat_n(score, 100_000);
        assert!((drift.see(spread.into_iter()) - 1.0).abs() < 0.05);
        assert!((drift.see(all(2.0)) - 10.0).abs() < 0.01);
        assert!(drift.see(all(0.0)) < 0.01);
    }
}
