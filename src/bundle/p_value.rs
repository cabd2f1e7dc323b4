//! The distribution of the scores of normal records, stored as quantiles and an exact tail. It converts a score to a p-value, and
//! a false-alarm rate to a threshold.

use serde::{Deserialize, Serialize};

/// Maximum number of calibration records. More do not fit into memory, so a larger count must be a mistake.
const MOST_RECORDS: usize = 1_000_000_000;
/// Maximum number of intervals between quantiles.
const MOST_PARTS: usize = 100_000;
/// Number of largest scores that are stored exactly.
pub const TAIL: usize = 10_000;
/// Number of intervals between quantiles.
pub const PARTS: usize = 1000;

/// A summary of `count` scores, from which p-values and thresholds are computed.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct ScoreDistribution {
    pub count: usize,
    /// Evenly spaced empirical quantiles, from the minimum to the maximum.
    quantiles: Vec<f32>,
    /// The largest scores, exact and in ascending order.
    tail: Vec<f32>,
}

/// A false-alarm rate that is too small for the number of calibration records.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "a false-alarm rate of {rate:e} needs at least {needed} calibration records, but the bundle has {count}: \
     set a rate of {supported:.1e} or more, or calibrate on more normal records"
)]
pub struct RateTooFine {
    pub rate: f64,
    pub needed: u64,
    pub count: usize,
    pub supported: f64,
}

impl ScoreDistribution {
    /// Builds the distribution from at least one score. All must be finite, in any order. It stores the quantiles at the bounds
    /// of `parts` intervals and the `tail` largest scores. The trainer computes the same.
    pub fn of(scores: Vec<f32>, parts: usize, tail: usize) -> ScoreDistribution {
        let mut scores = scores;
        scores.sort_by(f32::total_cmp);
        let last = scores.len() - 1;
        let quantile = |part: usize| {
            let position = part as f64 / parts as f64 * last as f64;
            let below = position.floor() as usize;
            let low = f64::from(scores[below]);
            let high = f64::from(scores[(below + 1).min(last)]);
            (low + (high - low) * (position - below as f64)) as f32
        };
        ScoreDistribution {
            count: scores.len(),
            quantiles: (0..=parts).map(quantile).collect(),
            tail: scores[scores.len().saturating_sub(tail)..].to_vec(),
        }
    }

    /// Returns a message for each problem of the distribution.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.count == 0 || self.tail.is_empty() || self.tail.len() > self.count {
            faults.push(
                "count and tail do not match: tail must have at least one score and at most count"
                    .to_owned(),
            );
        }
        if self.count > MOST_RECORDS {
            faults.push(format!(
                "count is {}: it must be at most {MOST_RECORDS}",
                self.count
            ));
        }
        if self.quantiles.len() > MOST_PARTS + 1 {
            let count = self.quantiles.len();
            faults.push(format!(
                "quantiles has {count} entries, but at most {} are allowed",
                MOST_PARTS + 1
            ));
        }
        for (name, scores) in [("quantiles", &self.quantiles), ("tail", &self.tail)] {
            if scores.iter().any(|s| !s.is_finite() || *s < 0.0) || !scores.is_sorted() {
                faults.push(format!(
                    "{name} must be finite, non-negative values in ascending order"
                ));
            }
        }
        if self.quantiles.len() < 2 {
            faults.push(
                "quantiles must have at least two values, the minimum and the maximum".to_owned(),
            );
        }
        if self.quantiles.last() != self.tail.last() {
            faults.push(
                "the last values of quantiles and tail differ: both must be the largest score"
                    .to_owned(),
            );
        }
        faults
    }

    /// Returns the conformal p-value of a score: (1 + #{calibration >= score}) / (count + 1). It is the probability that a normal
    /// record scores at least this high (Vovk, Gammerman & Shafer 2005). It is exact in the tail and interpolated between the
    /// quantiles below it.
    pub fn p_value(&self, score: f32) -> f64 {
        (1.0 + self.at_least(score)) / (self.count as f64 + 1.0)
    }

    /// Returns the number of calibration scores that are at least `score`. It is exact in the tail.
    pub fn at_least(&self, score: f32) -> f64 {
        if score > self.tail[0] || self.tail.len() == self.count {
            return (self.tail.len() - self.tail.partition_point(|&s| s < score)) as f64;
        }
        let body = (1.0 - self.quantile_level(score)) * self.count as f64;
        body.max(self.tail.len() as f64)
    }

    /// Returns the share of calibration scores below `score`, by linear interpolation between the quantiles.
    fn quantile_level(&self, score: f32) -> f64 {
        let above = self.quantiles.partition_point(|&q| q < score);
        let last = self.quantiles.len() - 1;
        if above == 0 {
            return 0.0;
        }
        if above > last {
            return 1.0;
        }
        let (low, high) = (self.quantiles[above - 1], self.quantiles[above]);
        let inside = f64::from(score - low) / f64::from(high - low);
        (above as f64 - 1.0 + inside) / last as f64
    }

    /// Returns the threshold that a normal record's score exceeds with a probability of at most `rate`. A record is flagged if
    /// `score > threshold`. While the threshold lies in the exact tail, that is equivalent to `p_value(score) <= rate`.
    ///
    /// # Errors
    /// [`RateTooFine`] if there are too few calibration scores for so small a rate.
    pub fn threshold_at(&self, rate: f64) -> Result<f32, RateTooFine> {
        // The threshold is the k-th largest score.
        let k = rank(rate, self.count);
        if k == 0 {
            return Err(RateTooFine {
                rate,
                needed: needed(rate),
                count: self.count,
                supported: self.finest_rate(),
            });
        }
        if k <= self.tail.len() {
            return Ok(self.tail[self.tail.len() - k]);
        }
        Ok(self.quantile(1.0 - rate))
    }

    /// Returns the score at the quantile `level` in [0, 1], by linear interpolation.
    pub fn quantile(&self, level: f64) -> f32 {
        let position = level.clamp(0.0, 1.0) * (self.quantiles.len() - 1) as f64;
        let below = position.floor() as usize;
        let above = (below + 1).min(self.quantiles.len() - 1);
        let (low, high) = (
            f64::from(self.quantiles[below]),
            f64::from(self.quantiles[above]),
        );
        (low + (high - low) * (position - below as f64)) as f32
    }

    /// Returns the smallest false-alarm rate that the sample supports: 1 / (count + 1).
    pub fn finest_rate(&self) -> f64 {
        1.0 / (self.count as f64 + 1.0)
    }

    /// Returns the largest calibration score.
    pub fn largest(&self) -> f32 {
        self.tail[self.tail.len() - 1]
    }
}

/// Returns the largest rank k such that a new record falls beyond the k-th of `count` records with a probability of at most
/// `share`: floor(share * (count + 1)). It is 0 if there are too few records. The small term absorbs rounding in `share`.
pub(crate) fn rank(share: f64, count: usize) -> usize {
    (share * (count as f64 + 1.0) + 1e-9).floor() as usize
}

/// Returns the number of records from which on [`rank`] is at least 1.
pub(super) fn needed(share: f64) -> u64 {
    (1.0 / share - 1e-9).ceil() as u64 - 1
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// `count` evenly spaced scores from 1 to `count`, of which `tail` are in the tail.
    pub(crate) fn evenly_spaced(count: usize, tail: usize) -> ScoreDistribution {
        let score = |i: f64| (1.0 + i * (count as f64 - 1.0)) as f32;
        ScoreDistribution {
            count,
            quantiles: (0..=1000).map(|i| score(f64::from(i) / 1000.0)).collect(),
            tail: (count - tail + 1..=count).map(|i| i as f32).collect(),
        }
    }

    #[test]
    fn it_is_made_as_the_trainer_makes_it() {
        let scores: Vec<f32> = (0..12_345)
            .map(|i| (i * 7919 % 10_007) as f32 / 10_007.0)
            .collect();
        let made = ScoreDistribution::of(scores, PARTS, TAIL);
        assert!(made.faults().is_empty());
        assert_eq!((made.count, made.tail.len()), (12_345, 10_000));
        // numpy.quantile(scores.astype(float64), part / 1000, method="linear")
        for (part, expected) in [
            (0, 0.0_f32),
            (1, 0.0009337464),
            (250, 0.24992505),
            (500, 0.49995002),
            (777, 0.776885),
            (999, 0.99896634),
            (1000, 0.99990004),
        ] {
            let got = made.quantiles[part];
            assert!((got - expected).abs() <= 1e-7, "{part}: {got} {expected}");
        }
        assert_eq!(made.tail[0], 0.19006695);
        let one = ScoreDistribution::of(vec![2.0], PARTS, TAIL);
        assert!(one.faults().is_empty() && one.quantile(0.3) == 2.0);
    }

    #[test]
    fn p_value_is_the_conformal_one() {
        let scores = evenly_spaced(99, 99);
        assert_eq!(scores.p_value(1e9), 1.0 / 100.0);
        assert_eq!(scores.p_value(99.0), 2.0 / 100.0);
        assert_eq!(scores.p_value(98.5), 2.0 / 100.0);
        assert_eq!(scores.p_value(0.0), 1.0);
    }

    #[test]
    fn flagged_is_the_same_as_a_small_p_value() {
        let scores = evenly_spaced(999, 999);
        for rate in [0.001, 0.01, 0.1] {
            let threshold = scores.threshold_at(rate).unwrap();
            for score in (0..11_000).map(|i| i as f32 / 10.0) {
                let flagged = score > threshold;
                assert_eq!(
                    flagged,
                    scores.p_value(score) <= rate + 1e-12,
                    "{rate} {score}"
                );
            }
        }
    }

    #[test]
    fn below_the_tail_the_quantiles_take_over_without_a_jump() {
        let scores = evenly_spaced(100_000, 10_000);
        let exact = |score: f64| (1.0 + (100_001.0 - score)) / 100_001.0;
        for score in [10.0, 5_000.0, 50_000.0, 89_000.0, 90_500.0, 99_000.0] {
            let got = scores.p_value(score as f32);
            assert!(
                (got - exact(score)).abs() < 2e-4,
                "{score}: {got} {}",
                exact(score)
            );
        }
        let threshold = scores.threshold_at(0.5).unwrap();
        assert!((threshold - 50_000.0).abs() < 100.0, "{threshold}");
    }

    #[test]
    fn a_rate_finer_than_the_sample_is_refused_with_what_it_needs() {
        let scores = evenly_spaced(999, 999);
        assert_eq!(scores.threshold_at(0.001).unwrap(), 999.0);
        let refused = scores.threshold_at(0.0005).unwrap_err();
        assert_eq!(refused.needed, 1999);
        let text = refused.to_string();
        assert!(text.contains("1999") && text.contains("999"), "{text}");
    }

    #[test]
    fn faults_are_found() {
        let mut scores = evenly_spaced(99, 99);
        assert!(scores.faults().is_empty());
        scores.tail[5] = f32::NAN;
        assert!(!scores.faults().is_empty());
        for count in [0, 98, MOST_RECORDS + 1, 1 << 62, usize::MAX] {
            let mut scores = evenly_spaced(99, 99);
            scores.count = count;
            assert_eq!(scores.faults().len(), 1, "{count}");
        }
        let mut scores = evenly_spaced(99, 99);
        scores.quantiles = vec![99.0; MOST_PARTS + 2];
        assert_eq!(scores.faults().len(), 1);
    }
}
