//! `DDPMScheduler`: ancestral sampling (Ho et al. 2020, "Denoising Diffusion Probabilistic Models", arXiv 2006.11239).
//!
//! x_{t-1} = √ᾱ_{t-1} β_t / (1 - ᾱ_t) x₀ + √α_t (1 - ᾱ_{t-1}) / (1 - ᾱ_t) x_t + σ_t ε, equation 7.

use std::sync::Arc;

use super::bound::Bound;
use super::config::Fields;
use super::noise_schedule::Defaults;
use super::numerics::{exp, ln};
use super::prediction::{EPSILON, PredictionType, SAMPLE, V_PREDICTION};
use super::scheduler::{
    Batch, History, Method, Plan, Solver, Variance, alphas_at, at_most, timesteps,
};
use super::spacing::{Leading, Spacing};
use super::{Error, NoiseSchedule};

/// σ_t² of the noise that a step adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum VarianceType {
    /// β̃_t = (1 - ᾱ_{t-1}) / (1 - ᾱ_t) β_t.
    FixedSmall,
    /// The same, by its logarithm.
    FixedSmallLog,
    /// β_t.
    FixedLarge,
    /// The model predicts it.
    Learned,
    /// The model predicts where it is between ln β̃_t and ln β_t (Nichol & Dhariwal 2021, equation 15, arXiv 2102.09672).
    LearnedRange,
}

#[derive(Debug)]
pub(super) struct Ddpm {
    schedule: NoiseSchedule,
    variance_type: VarianceType,
    prediction: PredictionType,
    bound: Bound,
    spacing: Spacing,
}

impl Ddpm {
    pub const CLASS: &'static str = "DDPMScheduler";

    pub fn read(fields: &Fields<'_>) -> Result<Ddpm, Error> {
        let schedule = NoiseSchedule::read(
            fields,
            &Defaults {
                more: true,
                ..Defaults::LINEAR
            },
        )?;
        let types = [
            ("fixed_small", Some(VarianceType::FixedSmall)),
            ("fixed_small_log", Some(VarianceType::FixedSmallLog)),
            ("fixed_large", Some(VarianceType::FixedLarge)),
            ("fixed_large_log", None),
            ("learned", Some(VarianceType::Learned)),
            ("learned_range", Some(VarianceType::LearnedRange)),
        ];
        // Without one, as in the file of a solver, diffusers takes the first.
        let variance_type = fields.optional_choice("variance_type", &types)?;
        let Some(variance_type) = variance_type.unwrap_or(types[0].1) else {
            let why = "diffusers takes the square root of its logarithm, which is negative: use fixed_large";
            return Err(fields.refused("variance_type", why));
        };
        Ok(Ddpm {
            variance_type,
            prediction: PredictionType::read(fields, &[EPSILON, SAMPLE, V_PREDICTION])?,
            bound: Bound::read(fields, true)?,
            spacing: Spacing::read(fields, Leading, schedule.train_timesteps)?,
            schedule,
        })
    }
}

impl Method for Ddpm {
    fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    fn prediction(&self) -> PredictionType {
        self.prediction
    }

    fn plan(&self, steps: usize, _: f32) -> Result<Plan, Error> {
        let most = self.schedule.train_timesteps;
        at_most(Self::CLASS, steps, most, "num_train_timesteps")?;
        let whole = self.spacing.whole(steps);
        let alphas = alphas_at(Self::CLASS, &self.schedule, &whole)?;
        let before = alphas[1..].iter().copied().chain([1.0]);
        let step = |((&t, &alpha), before)| Step::new(t, alpha, before);
        let solver = Steps {
            steps: whole.iter().zip(&alphas).zip(before).map(step).collect(),
            prediction: self.prediction,
            bound: self.bound,
            variance_type: self.variance_type,
        };
        Ok(Plan {
            requested: steps,
            timesteps: timesteps(&whole),
            init_noise_sigma: 1.0,
            input_divisors: Vec::new(),
            levels: levels(&alphas),
            solver: Arc::new(solver),
        })
    }
}

/// √ᾱ and √(1 - ᾱ).
pub(super) fn levels(alphas: &[f32]) -> Vec<(f32, f32)> {
    let level = |alpha: &f32| (alpha.sqrt(), (1.0 - alpha).sqrt());
    alphas.iter().map(level).collect()
}

#[derive(Debug)]
struct Step {
    /// √ᾱ_t.
    alpha: f32,
    /// √(1 - ᾱ_t).
    sigma: f32,
    clean: f32,
    sample: f32,
    adds_noise: bool,
    /// β̃_t.
    small_variance: f32,
    /// β_t.
    beta: f32,
}

impl Step {
    fn new(t: i64, alpha_cumprod: f32, before: f32) -> Step {
        let (rest, rest_before) = (1.0 - alpha_cumprod, 1.0 - before);
        let alpha = alpha_cumprod / before;
        let beta = 1.0 - alpha;
        Step {
            alpha: alpha_cumprod.sqrt(),
            sigma: rest.sqrt(),
            clean: before.sqrt() * beta / rest,
            sample: alpha.sqrt() * rest_before / rest,
            adds_noise: t > 0,
            small_variance: (rest_before / rest * beta).max(1e-20),
            beta,
        }
    }

    /// The standard deviation of the noise, unless the model predicts it.
    fn deviation(&self, variance_type: VarianceType) -> f32 {
        match variance_type {
            VarianceType::FixedSmallLog => exp(0.5 * ln(self.small_variance)),
            VarianceType::FixedLarge => self.beta.sqrt(),
            _ => self.small_variance.sqrt(),
        }
    }
}

#[derive(Debug)]
struct Steps {
    steps: Vec<Step>,
    prediction: PredictionType,
    bound: Bound,
    variance_type: VarianceType,
}

impl Solver for Steps {
    fn variance(&self) -> Variance {
        match self.variance_type {
            VarianceType::Learned | VarianceType::LearnedRange => Variance::Required,
            _ => Variance::None,
        }
    }

    fn adds_noise(&self, i: usize) -> bool {
        self.steps[i].adds_noise
    }

    fn step(&self, i: usize, batch: Batch<'_>, _: &mut History) {
        let step = &self.steps[i];
        let clean = clean(self.prediction, self.bound, &batch, step.alpha, step.sigma);
        for (x, clean) in batch.sample.iter_mut().zip(clean) {
            *x = step.clean * clean + step.sample * *x;
        }
        if !step.adds_noise {
            return;
        }
        let values = batch.sample.iter_mut().zip(batch.noise);
        match self.variance_type {
            VarianceType::Learned => {
                for ((x, noise), variance) in values.zip(batch.variance) {
                    *x += variance.sqrt() * noise;
                }
            }
            VarianceType::LearnedRange => {
                let (least, most) = (ln(step.small_variance), ln(step.beta));
                for ((x, noise), variance) in values.zip(batch.variance) {
                    let share = (variance + 1.0) / 2.0;
                    let log = share * most + (1.0 - share) * least;
                    *x += exp(0.5 * log) * noise;
                }
            }
            fixed => {
                let deviation = step.deviation(fixed);
                for (x, noise) in values {
                    *x += deviation * noise;
                }
            }
        }
    }
}

/// The bounded clean samples that follow from the model's output.
pub(super) fn clean(
    prediction: PredictionType,
    bound: Bound,
    batch: &Batch<'_>,
    alpha: f32,
    sigma: f32,
) -> Vec<f32> {
    let values = batch.output.iter().zip(batch.sample.iter());
    let mut clean: Vec<f32> = values
        .map(|(&output, &x)| prediction.clean(output, x, alpha, sigma))
        .collect();
    for one in clean.chunks_exact_mut(batch.dimensions) {
        bound.apply(one);
    }
    clean
}
