//! `LCMScheduler`: multistep consistency sampling (Luo et al. 2023, "Latent Consistency Models", algorithm 3, arXiv 2310.04378).
//!
//! x = c_skip x_t + c_out x₀; then √ᾱ x + √(1 - ᾱ) ε with ᾱ of the next timestep, but after the last.

use std::sync::Arc;

use super::bound::Bound;
use super::config::Fields;
use super::ddim::final_alpha;
use super::ddpm::{clean, levels};
use super::noise_schedule::Defaults;
use super::prediction::{EPSILON, PredictionType, SAMPLE, V_PREDICTION};
use super::scheduler::{Batch, History, Method, Plan, Solver, alphas_at, at_most, timesteps};
use super::spacing::{Leading, Spacing};
use super::{Error, NoiseSchedule};

/// σ_data².
const DATA_VARIANCE: f32 = 0.25;

#[derive(Debug)]
pub(super) struct Lcm {
    schedule: NoiseSchedule,
    /// The number of steps of the distillation.
    original_steps: usize,
    timestep_scaling: f32,
    prediction: PredictionType,
    bound: Bound,
}

impl Lcm {
    pub const CLASS: &'static str = "LCMScheduler";

    pub fn read(fields: &Fields<'_>) -> Result<Lcm, Error> {
        let schedule = NoiseSchedule::read(
            fields,
            &Defaults {
                beta_start: 0.00085,
                beta_end: 0.012,
                scaled: true,
                ..Defaults::LINEAR
            },
        )?;
        // The class has these fields, and its timesteps and steps do not depend on them.
        Spacing::read(fields, Leading, schedule.train_timesteps)?;
        final_alpha(fields, &schedule, true)?;
        Ok(Lcm {
            original_steps: fields.whole("original_inference_steps", 50, 1)? as usize,
            timestep_scaling: fields.number("timestep_scaling", 10.0)? as f32,
            prediction: PredictionType::read(fields, &[EPSILON, SAMPLE, V_PREDICTION])?,
            bound: Bound::read(fields, false)?,
            schedule,
        })
    }

    /// Every k-th timestep of the training, thinned to `steps`.
    fn timesteps(&self, steps: usize) -> Vec<i64> {
        let original = self.original_steps;
        let k = self.schedule.train_timesteps / original;
        let stride = original as f64 / steps as f64;
        let timestep = |i: usize| {
            let skipped = (i as f64 * stride).floor() as usize;
            ((original - skipped) * k) as i64 - 1
        };
        (0..steps).map(timestep).collect()
    }
}

impl Method for Lcm {
    fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    fn prediction(&self) -> PredictionType {
        self.prediction
    }

    fn plan(&self, steps: usize, _: f32) -> Result<Plan, Error> {
        let (original, most) = (self.original_steps, self.schedule.train_timesteps);
        at_most(Self::CLASS, original, most, "num_train_timesteps")?;
        at_most(Self::CLASS, steps, original, "original_inference_steps")?;
        let whole = self.timesteps(steps);
        let alphas = alphas_at(Self::CLASS, &self.schedule, &whole)?;
        let next = alphas[1..].iter().copied().map(Some).chain([None]);
        let step = |((&t, &alpha), next)| Step::new(t as f32 * self.timestep_scaling, alpha, next);
        let solver = Steps {
            steps: whole.iter().zip(&alphas).zip(next).map(step).collect(),
            prediction: self.prediction,
            bound: self.bound,
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
    skip: f32,
    out: f32,
    /// √ᾱ and √(1 - ᾱ) of the next timestep.
    next: Option<(f32, f32)>,
}

impl Step {
    fn new(scaled_timestep: f32, alpha: f32, next: Option<f32>) -> Step {
        let sum = scaled_timestep * scaled_timestep + DATA_VARIANCE;
        Step {
            alpha: alpha.sqrt(),
            sigma: (1.0 - alpha).sqrt(),
            skip: DATA_VARIANCE / sum,
            out: scaled_timestep / sum.sqrt(),
            next: next.map(|next| (next.sqrt(), (1.0 - next).sqrt())),
        }
    }
}

#[derive(Debug)]
struct Steps {
    steps: Vec<Step>,
    prediction: PredictionType,
    bound: Bound,
}

impl Solver for Steps {
    fn adds_noise(&self, i: usize) -> bool {
        self.steps[i].next.is_some()
    }

    fn step(&self, i: usize, batch: Batch<'_>, _: &mut History) {
        let step = &self.steps[i];
        let clean = clean(self.prediction, self.bound, &batch, step.alpha, step.sigma);
        for (x, clean) in batch.sample.iter_mut().zip(clean) {
            *x = step.out * clean + step.skip * *x;
        }
        if let Some((alpha, sigma)) = step.next {
            for (x, noise) in batch.sample.iter_mut().zip(batch.noise) {
                *x = alpha * *x + sigma * noise;
            }
        }
    }
}
