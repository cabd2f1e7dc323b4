//! `screen.json` and `screen.onnx`: a cheap network that finds clearly normal records, and its answers for records with known
//! scores.

use serde::Deserialize;

use super::p_value::{needed, rank};

/// Probes that score above this multiple of the threshold are ignored, because they are easier to find than real anomalies.
const HARD: f32 = 2.0;

/// Added to scores before the logarithm, to avoid log(0).
const LEAST: f32 = 1e-6;

/// The screen's graph, and the outputs from which its errors are bounded.
#[derive(Debug, Clone)]
pub struct Screen {
    pub answers: Answers,
    /// `screen.onnx`: `x` float32 [N, F] -> `screen` float32 [N], which approximates the logarithm of the score.
    pub model: Vec<u8>,
}

/// The outputs of screen and scorer for records that neither was trained on.
#[derive(Debug, Clone, Deserialize)]
pub struct Answers {
    /// The screen's outputs for the golden records, in their order.
    pub golden: Vec<f32>,
    pub normals: Pairs,
    /// Distorted normal records, which represent future anomalies.
    pub probes: Pairs,
}

/// The outputs of the screen and the scorer for the same records, in the same order.
#[derive(Debug, Clone, Deserialize)]
pub struct Pairs {
    pub screen: Vec<f32>,
    pub score: Vec<f32>,
}

/// Too few probes score above the threshold to bound the share of anomalies that the screen misses.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error(
    "only {count} of the screen's probes score above the threshold, but a missed share of at most {missed} requires {needed}: \
     add the screen again (residuald-train screen), allow a larger share, or set screen.mode = \"off\""
)]
pub struct TooFewProbes {
    missed: f64,
    count: usize,
    needed: u64,
}

impl Answers {
    /// Returns a message for each problem of the answers in a bundle with `golden` golden records.
    pub fn faults(&self, golden: usize) -> Vec<String> {
        let mut faults = Vec::new();
        if self.golden.len() != golden {
            let count = self.golden.len();
            faults.push(format!(
                "golden has {count} entries, but the bundle has {golden} golden records"
            ));
        }
        for (name, Pairs { screen, score }) in
            [("normals", &self.normals), ("probes", &self.probes)]
        {
            if screen.is_empty() || screen.len() != score.len() {
                faults.push(format!(
                    "{name} has {} values of `screen` and {} of `score`: both must have the same number, at least one",
                    screen.len(),
                    score.len()
                ));
            }
            if screen.iter().chain(score).any(|value| !value.is_finite()) {
                faults.push(format!("{name} has a value that is not finite"));
            }
            if score.iter().any(|score| *score < 0.0) {
                faults.push(format!("{name} has a negative score"));
            }
        }
        if self.golden.iter().any(|answer| !answer.is_finite()) {
            faults.push("golden has a value that is not finite".to_owned());
        }
        faults
    }

    /// Returns the screen output above which a record is scored. At most a share of `missed` of the records that score above
    /// `threshold` is then not scored. The bound is the lower of two, for two kinds of records:
    ///
    /// - Anomalies: a conformal bound over the probes, computed like thresholds. If the next anomaly is exchangeable with the n
    ///   probes above the threshold, each of the n + 1 ranks among them is equally likely.
    /// - Normal records that happen to score high: the logarithm of the threshold, less the amount by which the screen
    ///   underestimates such records. A share of `missed` of the highest tenth exceeds that amount. If the tenth has too few
    ///   records, it is the largest underestimate.
    ///
    /// # Errors
    /// [`TooFewProbes`] if fewer than 1 / `missed` - 1 probes score above the threshold.
    pub fn bound(&self, threshold: f32, missed: f64) -> Result<f32, TooFewProbes> {
        let pairs = self.probes.screen.iter().zip(&self.probes.score);
        let above = pairs.filter(|(_, score)| **score > threshold && **score <= HARD * threshold);
        let mut above: Vec<f32> = above.map(|(screen, _)| *screen).collect();
        above.sort_by(f32::total_cmp);
        match rank(missed, above.len()).checked_sub(1) {
            Some(index) => {
                let anomaly_bound = above[index.min(above.len() - 1)].next_down();
                Ok(anomaly_bound.min((threshold + LEAST).ln() + self.low_error(missed)))
            }
            None => Err(TooFewProbes {
                missed,
                count: above.len(),
                needed: needed(missed),
            }),
        }
    }

    /// Returns a low quantile of the screen's error on the highest-scoring tenth of the normal records: at most a share of
    /// `missed` of them has a lower error. The error is negative where the screen underestimates.
    fn low_error(&self, missed: f64) -> f32 {
        let Pairs { screen, score } = &self.normals;
        let mut order: Vec<usize> = (0..score.len()).collect();
        order.sort_by(|&a, &b| score[b].total_cmp(&score[a]));
        order.truncate(score.len().div_ceil(10));
        let error = |i: usize| screen[i] - (score[i] + LEAST).ln();
        let mut errors: Vec<f32> = order.into_iter().map(error).collect();
        errors.sort_by(f32::total_cmp);
        let index = rank(missed, errors.len()).saturating_sub(1);
        errors[index.min(errors.len() - 1)]
    }

    /// Returns the share of normal records that are not scored with this bound.
    pub fn cleared(&self, bound: f32) -> f64 {
        let below = self.normals.screen.iter().filter(|s| **s <= bound).count();
        below as f64 / self.normals.screen.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probes 1 to 2999: probe i has the score i and the output `screen(i)`. Normal records 1 to 100 are estimated correctly, except for
    /// the highest, which is underestimated by 0.5.
    fn answers(screen: impl Fn(f32) -> f32) -> Answers {
        let numbers = |n: usize| (1..=n).map(|i| i as f32);
        let mut rated: Vec<f32> = numbers(100).map(f32::ln).collect();
        rated[99] -= 0.5;
        Answers {
            golden: vec![0.0],
            normals: Pairs {
                screen: rated,
                score: numbers(100).collect(),
            },
            probes: Pairs {
                screen: numbers(2999).map(screen).collect(),
                score: numbers(2999).collect(),
            },
        }
    }

    #[test]
    fn the_bound_misses_no_more_of_the_probes_than_it_may() {
        // This threshold is low enough that the bound of the probes, not of the normal records, applies.
        let (low, answers) = (|score: f32| score / 1000.0, answers(|score| score / 1000.0));
        // 1,400 probes score between 1,400 and 2,800. With so many, the bound is just below the lowest of them, and none is
        // missed.
        for (missed, lowest_seen) in [(0.001, 1401.0), (0.5, 2100.0), (0.9999, 2800.0)] {
            let bound = answers.bound(1400.0, missed).unwrap();
            assert_eq!(bound, low(lowest_seen).next_down(), "{missed}");
        }
        assert_eq!(answers.cleared(50.5_f32.ln()), 0.5);
    }

    #[test]
    fn normal_records_that_score_high_are_seen_too() {
        let answers = answers(|_| 1e9);
        let near = |bound: f32, wanted: f32| (bound - wanted).abs() < 1e-5;
        // The highest tenth has ten records. The worst of them determines the bound until a share of them may be missed.
        let worst = answers.bound(1400.0, 0.01).unwrap();
        assert!(near(worst, 1400.0_f32.ln() - 0.5), "{worst}");
        let second = answers.bound(1400.0, 0.19).unwrap();
        assert!(near(second, 1400.0_f32.ln()), "{second}");
    }

    #[test]
    fn too_few_probes_are_no_bound() {
        let error = answers(f32::ln).bound(2001.0, 0.001).unwrap_err();
        assert_eq!((error.count, error.needed), (998, 999));
        assert!(answers(f32::ln).bound(2000.0, 0.001).is_ok());
        assert!(answers(f32::ln).bound(5000.0, 0.001).is_err());
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        assert_eq!(answers(f32::ln).faults(1), Vec::<String>::new());
        let mut broken = answers(f32::ln);
        broken.normals.score.pop();
        broken.probes.screen[3] = f32::NAN;
        assert_eq!(broken.faults(2).len(), 3, "{:?}", broken.faults(2));
        let mut broken = answers(f32::ln);
        broken.golden[0] = f32::INFINITY;
        broken.normals.score[0] = -1.0;
        assert_eq!(broken.faults(1).len(), 2, "{:?}", broken.faults(1));
    }
}
