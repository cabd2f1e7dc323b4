//! `EulerDiscreteScheduler`: Euler's method on the probability flow ODE (Karras et al. 2022, "Elucidating the Design Space of
//! Diffusion-Based Generative Models", algorithm 1, arXiv 2206.00364).
//!
//! x_{i+1} = x_i + (σ_{i+1} - σ_i) (x_i - x₀) / σ_i, where the noisy sample is x₀ + σ ε. The model sees x / √(σ² + 1).

use std::sync::Arc;

use super::config::Fields;
use super::noise_schedule::Defaults;
use super::numerics::{exp, interpolate, linspace_f32, ln};
use super::prediction::{EPSILON, PredictionType, SAMPLE, V_PREDICTION};
use super::scheduler::{Batch, History, Method, Plan, Solver};
use super::sigmas::{Final, Limits, Spread, first_sigma, timestep_of};
use super::spacing::{Leading, Linspace, Spacing};
use super::{Error, NoiseSchedule};

#[derive(Debug)]
pub(super) struct Euler {
    schedule: NoiseSchedule,
    prediction: PredictionType,
    spacing: Spacing,
    /// `interpolation_type` is `log_linear`.
    log_linear: bool,
    spread: Spread,
    limits: Limits,
    last: Final,
    /// The model gets ln σ / 4 for a timestep.
    continuous: bool,
}

impl Euler {
    pub const CLASS: &'static str = "EulerDiscreteScheduler";

    pub fn read(fields: &Fields<'_>) -> Result<Euler, Error> {
        let schedule = NoiseSchedule::read(fields, &Defaults::SIGMAS)?;
        let original = ("original_sample", PredictionType::Sample);
        let predictions = [EPSILON, SAMPLE, V_PREDICTION, original];
        let prediction = PredictionType::read(fields, &predictions)?;
        let interpolations = [("linear", false), ("log_linear", true)];
        let types = [("discrete", false), ("continuous", true)];
        let continuous = fields.choice("timestep_type", false, &types)?;
        Ok(Euler {
            prediction,
            spacing: Spacing::read(fields, Linspace, schedule.train_timesteps)?,
            log_linear: fields.choice("interpolation_type", false, &interpolations)?,
            spread: Spread::read(fields)?,
            limits: Limits::read(fields)?,
            last: Final::read(fields)?,
            // As in diffusers, other predictions keep discrete timesteps.
            continuous: continuous && prediction == PredictionType::V,
            schedule,
        })
    }

    /// The timesteps, and their noise levels with the final one. With `log_linear` there may be one level more, which no step uses.
    fn levels(&self, steps: usize) -> (Vec<f32>, Vec<f32>) {
        let mut timesteps = self.spacing.fractional(steps);
        let table = self.schedule.sigmas();
        let log_sigmas = self.schedule.log_sigmas();
        let mut sigmas: Vec<f64> = match self.log_linear {
            false => {
                let sigma = |&t: &f32| interpolate(t.into(), &table);
                timesteps.iter().map(sigma).collect()
            }
            true => {
                let (last, first) = (log_sigmas[log_sigmas.len() - 1], log_sigmas[0]);
                let logs = linspace_f32(last.into(), first.into(), steps + 1);
                logs.into_iter().map(|log| exp(log).into()).collect()
            }
        };
        if self.spread != Spread::Timesteps {
            let (greatest, least) = self.limits.of(sigmas[0], sigmas[sigmas.len() - 1]);
            sigmas = self.spread.levels(greatest, least, steps);
            let timestep = |&sigma: &f64| timestep_of(sigma, &log_sigmas) as f32;
            timesteps = sigmas.iter().map(timestep).collect();
        }
        let mut sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).collect();
        sigmas.push(match self.last {
            Final::Zero => 0.0,
            Final::SigmaMin => first_sigma(&self.schedule),
        });
        if self.continuous {
            let quarter_log = |&sigma: &f32| 0.25 * ln(sigma);
            timesteps = sigmas[..sigmas.len() - 1].iter().map(quarter_log).collect();
        }
        (timesteps, sigmas)
    }
}

impl Method for Euler {
    fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    fn prediction(&self) -> PredictionType {
        self.prediction
    }

    fn plan(&self, steps: usize, _: f32) -> Result<Plan, Error> {
        let (timesteps, sigmas) = self.levels(steps);
        let solver = Steps {
            steps: sigmas.windows(2).map(|pair| (pair[0], pair[1])).collect(),
            prediction: self.prediction,
        };
        Ok(plan(
            steps,
            timesteps,
            &sigmas,
            self.spacing,
            Arc::new(solver),
        ))
    }
}

/// A plan whose noisy sample is x₀ + σ ε.
pub(super) fn plan(
    requested: usize,
    timesteps: Vec<f32>,
    sigmas: &[f32],
    spacing: Spacing,
    solver: Arc<dyn Solver>,
) -> Plan {
    let greatest = sigmas.iter().copied().fold(f32::MIN, f32::max);
    let used = &sigmas[..timesteps.len()];
    Plan {
        requested,
        init_noise_sigma: match spacing.kind {
            Leading => (greatest * greatest + 1.0).sqrt(),
            _ => greatest,
        },
        input_divisors: used.iter().map(|s| (s * s + 1.0).sqrt()).collect(),
        levels: used.iter().map(|&s| (1.0, s)).collect(),
        timesteps,
        solver,
    }
}

#[derive(Debug)]
struct Steps {
    /// σ of each step and of the next.
    steps: Vec<(f32, f32)>,
    prediction: PredictionType,
}

impl Solver for Steps {
    fn adds_noise(&self, _: usize) -> bool {
        false
    }

    fn step(&self, i: usize, batch: Batch<'_>, _: &mut History) {
        let (sigma, next) = self.steps[i];
        let clean = Clean::new(self.prediction, sigma);
        for (x, &output) in batch.sample.iter_mut().zip(batch.output) {
            let derivative = (*x - clean.of(output, *x)) / sigma;
            *x += derivative * (next - sigma);
        }
    }
}

/// x₀ where the noisy sample is x = x₀ + σ ε.
pub(super) struct Clean {
    prediction: PredictionType,
    sigma: f32,
    /// -σ / √(σ² + 1).
    out: f32,
    /// σ² + 1.
    skip: f32,
}

impl Clean {
    pub fn new(prediction: PredictionType, sigma: f32) -> Clean {
        let skip = sigma * sigma + 1.0;
        Clean {
            prediction,
            sigma,
            out: -sigma / skip.sqrt(),
            skip,
        }
    }

    #[inline]
    pub fn of(&self, output: f32, x: f32) -> f32 {
        match self.prediction {
            PredictionType::V => output * self.out + x / self.skip,
            other => other.clean(output, x, 1.0, self.sigma),
        }
    }
}
