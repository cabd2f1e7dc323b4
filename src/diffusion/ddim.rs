//! `DDIMScheduler` (Song et al. 2020, "Denoising Diffusion Implicit Models", arXiv 2010.02502).
//!
//! x_{t-1} = √ᾱ_{t-1} x₀ + √(1 - ᾱ_{t-1} - σ²) ε + σ z, equation 12, with σ² = η² (1 - ᾱ_{t-1}) / (1 - ᾱ_t) (1 - ᾱ_t / ᾱ_{t-1}),
//! equation 16, and new noise z.

use std::sync::Arc;

use super::bound::Bound;
use super::config::Fields;
use super::ddpm::{clean, levels};
use super::noise_schedule::Defaults;
use super::prediction::{EPSILON, PredictionType, SAMPLE, V_PREDICTION};
use super::scheduler::{Batch, History, Method, Plan, Solver, alphas_at, at_most, timesteps};
use super::spacing::{Leading, Spacing};
use super::{Error, NoiseSchedule};

#[derive(Debug)]
pub(super) struct Ddim {
    schedule: NoiseSchedule,
    /// ᾱ before the first timestep.
    final_alpha: f32,
    prediction: PredictionType,
    bound: Bound,
    spacing: Spacing,
}

impl Ddim {
    pub const CLASS: &'static str = "DDIMScheduler";

    pub fn read(fields: &Fields<'_>) -> Result<Ddim, Error> {
        let schedule = NoiseSchedule::read(fields, &Defaults::LINEAR)?;
        Ok(Ddim {
            final_alpha: final_alpha(fields, &schedule, true)?,
            prediction: PredictionType::read(fields, &[EPSILON, SAMPLE, V_PREDICTION])?,
            bound: Bound::read(fields, true)?,
            spacing: Spacing::read(fields, Leading, schedule.train_timesteps)?,
            schedule,
        })
    }
}

/// By `set_alpha_to_one`: ᾱ before the first timestep.
pub(super) fn final_alpha(
    fields: &Fields<'_>,
    schedule: &NoiseSchedule,
    default: bool,
) -> Result<f32, Error> {
    Ok(match fields.boolean("set_alpha_to_one", default)? {
        true => 1.0,
        false => schedule.alphas_cumprod[0],
    })
}

impl Method for Ddim {
    fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    fn prediction(&self) -> PredictionType {
        self.prediction
    }

    fn plan(&self, steps: usize, eta: f32) -> Result<Plan, Error> {
        let most = self.schedule.train_timesteps;
        at_most(Self::CLASS, steps, most, "num_train_timesteps")?;
        let whole = self.spacing.whole(steps);
        let alphas = alphas_at(Self::CLASS, &self.schedule, &whole)?;
        let stride = (most / steps) as i64;
        let step = |(&t, &alpha): (&i64, &f32)| {
            let before = self.schedule.alpha_cumprod(t - stride);
            Step::new(alpha, before.unwrap_or(self.final_alpha), eta)
        };
        let solver = Steps {
            steps: whole.iter().zip(&alphas).map(step).collect(),
            prediction: self.prediction,
            bound: self.bound,
            adds_noise: eta > 0.0,
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

#[derive(Debug)]
struct Step {
    /// √ᾱ_t.
    alpha: f32,
    /// √(1 - ᾱ_t).
    sigma: f32,
    /// √ᾱ_{t-1}.
    clean: f32,
    /// √(1 - ᾱ_{t-1} - σ²).
    noise: f32,
    /// σ.
    deviation: f32,
}

impl Step {
    fn new(alpha: f32, before: f32, eta: f32) -> Step {
        let variance = (1.0 - before) / (1.0 - alpha) * (1.0 - alpha / before);
        let deviation = eta * variance.sqrt();
        Step {
            alpha: alpha.sqrt(),
            sigma: (1.0 - alpha).sqrt(),
            clean: before.sqrt(),
            noise: (1.0 - before - deviation * deviation).sqrt(),
            deviation,
        }
    }
}

#[derive(Debug)]
struct Steps {
    steps: Vec<Step>,
    prediction: PredictionType,
    bound: Bound,
    adds_noise: bool,
}

impl Solver for Steps {
    fn adds_noise(&self, _: usize) -> bool {
        self.adds_noise
    }

    fn step(&self, i: usize, batch: Batch<'_>, _: &mut History) {
        let step = &self.steps[i];
        let clean = clean(self.prediction, self.bound, &batch, step.alpha, step.sigma);
        let values = batch.sample.iter_mut().zip(batch.output).zip(clean);
        for ((x, &output), clean) in values {
            let noise = self.prediction.noise(output, *x, step.alpha, step.sigma);
            *x = step.clean * clean + step.noise * noise;
        }
        if self.adds_noise {
            for (x, noise) in batch.sample.iter_mut().zip(batch.noise) {
                *x += step.deviation * noise;
            }
        }
    }
}
