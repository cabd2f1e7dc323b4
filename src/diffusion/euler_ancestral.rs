//! `EulerAncestralDiscreteScheduler`: an Euler step to below the next noise level, and noise back up to it (Crowson 2022, k-diffusion;
//! Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations", arXiv 2011.13456).
//!
//! σ_up² = σ_{i+1}² (σ_i² - σ_{i+1}²) / σ_i², σ_down² = σ_{i+1}² - σ_up².

use std::sync::Arc;

use super::config::Fields;
use super::euler::{self, Clean};
use super::noise_schedule::Defaults;
use super::numerics::interpolate;
use super::prediction::{EPSILON, PredictionType, V_PREDICTION};
use super::scheduler::{Batch, History, Method, Plan, Solver};
use super::spacing::{Linspace, Spacing};
use super::{Error, NoiseSchedule};

#[derive(Debug)]
pub(super) struct EulerAncestral {
    schedule: NoiseSchedule,
    prediction: PredictionType,
    spacing: Spacing,
}

impl EulerAncestral {
    pub const CLASS: &'static str = "EulerAncestralDiscreteScheduler";

    pub fn read(fields: &Fields<'_>) -> Result<EulerAncestral, Error> {
        let schedule = NoiseSchedule::read(fields, &Defaults::SIGMAS)?;
        Ok(EulerAncestral {
            prediction: PredictionType::read(fields, &[EPSILON, V_PREDICTION])?,
            spacing: Spacing::read(fields, Linspace, schedule.train_timesteps)?,
            schedule,
        })
    }
}

impl Method for EulerAncestral {
    fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    fn prediction(&self) -> PredictionType {
        self.prediction
    }

    fn plan(&self, steps: usize, _: f32) -> Result<Plan, Error> {
        let timesteps = self.spacing.fractional(steps);
        let table = self.schedule.sigmas();
        let sigma = |&t: &f32| interpolate(t.into(), &table) as f32;
        let sigmas: Vec<f32> = timesteps.iter().map(sigma).chain([0.0]).collect();
        let step = |pair: &[f32]| Step::new(pair[0], pair[1]);
        let solver = Steps {
            steps: sigmas.windows(2).map(step).collect(),
            prediction: self.prediction,
        };
        let solver = Arc::new(solver);
        Ok(euler::plan(steps, timesteps, &sigmas, self.spacing, solver))
    }
}

#[derive(Debug)]
struct Step {
    sigma: f32,
    up: f32,
    /// σ_down - σ.
    change: f32,
}

impl Step {
    fn new(sigma: f32, next: f32) -> Step {
        let (squared, next_squared) = (sigma * sigma, next * next);
        let up = (next_squared * (squared - next_squared) / squared).sqrt();
        let down = (next_squared - up * up).sqrt();
        Step {
            sigma,
            up,
            change: down - sigma,
        }
    }
}

#[derive(Debug)]
struct Steps {
    steps: Vec<Step>,
    prediction: PredictionType,
}

impl Solver for Steps {
    fn adds_noise(&self, i: usize) -> bool {
        self.steps[i].up != 0.0
    }

    fn step(&self, i: usize, batch: Batch<'_>, _: &mut History) {
        let step = &self.steps[i];
        let clean = Clean::new(self.prediction, step.sigma);
        for (x, &output) in batch.sample.iter_mut().zip(batch.output) {
            let derivative = (*x - clean.of(output, *x)) / step.sigma;
            *x += derivative * step.change;
        }
        if step.up != 0.0 {
            for (x, noise) in batch.sample.iter_mut().zip(batch.noise) {
                *x += noise * step.up;
            }
        }
    }
}
