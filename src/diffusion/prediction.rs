//! What a model predicts, and the clean sample or the noise that follows from it.

use super::Error;
use super::config::Fields;

/// What a model predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PredictionType {
    /// The noise ε.
    Epsilon,
    /// The clean sample x₀.
    Sample,
    /// v = √ᾱ ε - √(1 - ᾱ) x₀ (Salimans & Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models", arXiv
    /// 2202.00512).
    V,
    /// The flow ε - x₀ (Lipman et al. 2022, "Flow Matching for Generative Modeling", arXiv 2210.02747).
    Flow,
}

use PredictionType::{Epsilon, Flow, Sample, V};

pub(super) const EPSILON: (&str, PredictionType) = ("epsilon", Epsilon);
pub(super) const SAMPLE: (&str, PredictionType) = ("sample", Sample);
pub(super) const V_PREDICTION: (&str, PredictionType) = ("v_prediction", V);
pub(super) const FLOW: (&str, PredictionType) = ("flow_prediction", Flow);

impl PredictionType {
    pub(super) fn read(
        fields: &Fields<'_>,
        choices: &[(&str, PredictionType)],
    ) -> Result<PredictionType, Error> {
        fields.choice("prediction_type", Epsilon, choices)
    }

    /// x₀ where the noisy sample is x = α x₀ + σ ε.
    #[inline]
    pub fn clean(self, output: f32, x: f32, alpha: f32, sigma: f32) -> f32 {
        match self {
            Epsilon => (x - sigma * output) / alpha,
            Sample => output,
            V => alpha * x - sigma * output,
            Flow => x - sigma * output,
        }
    }

    /// ε where the noisy sample is x = α x₀ + σ ε.
    #[inline]
    pub(super) fn noise(self, output: f32, x: f32, alpha: f32, sigma: f32) -> f32 {
        match self {
            Epsilon => output,
            Sample => (x - alpha * output) / sigma,
            V => alpha * output + sigma * x,
            // From x = (1 - σ) x₀ + σ ε and v = ε - x₀.
            Flow => x + (1.0 - sigma) * output,
        }
    }
}
