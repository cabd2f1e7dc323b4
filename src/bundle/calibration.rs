//! `calibration.json`: the scores of held-out normal records, from which p-values and thresholds are computed.

use serde::{Deserialize, Serialize};

use super::manifest::ModelInput;
use super::p_value::{PARTS, ScoreDistribution, TAIL};
use super::segments::Segments;

/// The scores of normal records that the model was not trained on.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Calibration {
    /// The scores of all records.
    #[serde(flatten)]
    pub all: ScoreDistribution,
    /// Mean residual of each feature on normal records, in manifest order. Empty for images.
    #[serde(default)]
    pub residual_scale: Vec<f32>,
    /// Scores by segment, if the bundle has segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segments: Option<Segments>,
}

impl Calibration {
    /// Builds the calibration from the scores of normal records, in any order. At least one is required, and all must be finite.
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

    /// Returns a message for each problem of this calibration in a bundle that reads `input`.
    pub fn faults(&self, input: &ModelInput) -> Vec<String> {
        let features = input.features().len();
        let mut faults = self.all.faults();
        if self.residual_scale.len() != features {
            faults.push(format!(
                "residual_scale has {} entries, but the manifest has {features} features",
                self.residual_scale.len()
            ));
        }
        let sound = |residual: &f32| residual.is_finite() && *residual >= 0.0;
        if !self.residual_scale.iter().all(sound) {
            faults.push("every value of residual_scale must be finite and not negative".to_owned());
        }
        if let Some(segments) = &self.segments {
            faults.extend(segments.faults(input, self.all.count));
        }
        faults
    }
}
