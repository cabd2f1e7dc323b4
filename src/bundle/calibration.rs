//! `calibration.json`: the scores of held-out normal records, from which p-values and thresholds follow.

use serde::{Deserialize, Serialize};

use super::manifest::ModelInput;
use super::score_distribution::{PARTS, ScoreDistribution, TAIL};
use super::segments::Segments;

/// Scores of normal records that the model never saw.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Calibration {
    /// The scores of all records.
    #[serde(flatten)]
    pub all: ScoreDistribution,
    /// Mean residual of each feature on normal records, in manifest order; empty for images.
    #[serde(default)]
    pub residual_scale: Vec<f32>,
    /// Scores by segment, if the bundle has segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segments: Option<Segments>,
}

impl Calibration {
    /// Takes the scores of normal records, at least one and all finite, in any order.
    pub fn of(
        scores: Vec<f32>,
        residual_scale: Vec<f32>,
        segments: Option<Segments>,
    ) -> Calibration {
        Calibration {
            all: ScoreDistribution::of(scores, PARTS, TAIL),
            residual_scale,
            segments,
        }
    }

    /// Everything that is wrong with the calibration of a bundle that reads `input`, in words.
    pub fn faults(&self, input: &ModelInput) -> Vec<String> {
        let features = input.features().len();
        let mut faults = self.all.faults();
        if self.residual_scale.len() != features {
            faults.push(format!(
                "residual_scale has {} entries, the schema {features} features",
                self.residual_scale.len()
            ));
        }
        let sound = |residual: &f32| residual.is_finite() && *residual >= 0.0;
        if !self.residual_scale.iter().all(sound) {
            faults.push("residual_scale must be finite and not negative".to_owned());
        }
        if let Some(segments) = &self.segments {
            faults.extend(segments.faults(input, self.all.count));
        }
        faults
    }
}
