//! `PNDMScheduler` (Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds", arXiv 2202.09778): Runge-Kutta steps
//! unless `skip_prk_steps` is set, equation 13, then linear multistep ones, equation 12. Both move a sample by equation 11:
//!
//! x_s = √(ᾱ_s / ᾱ_t) x_t - (ᾱ_s - ᾱ_t) ε / (ᾱ_t √(1 - ᾱ_s) + √(ᾱ_t (1 - ᾱ_t) ᾱ_s))

use std::sync::Arc;

use super::config::Fields;
use super::ddim::final_alpha;
use super::ddpm::levels;
use super::noise_schedule::Defaults;
use super::prediction::{EPSILON, PredictionType, V_PREDICTION};
use super::scheduler::{Batch, History, Method, Plan, Solver, alphas_at, at_most, timesteps};
use super::spacing::{Leading, Spacing};
use super::{Error, NoiseSchedule};

/// The order of both methods.
const ORDER: usize = 4;

#[derive(Debug)]
pub(super) struct Pndm {
    schedule: NoiseSchedule,
    /// ᾱ before the first timestep.
    final_alpha: f32,
    prediction: PredictionType,
    spacing: Spacing,
    skip_runge_kutta: bool,
}

impl Pndm {
    pub const CLASS: &'static str = "PNDMScheduler";

    pub fn read(fields: &Fields<'_>) -> Result<Pndm, Error> {
        let defaults = Defaults {
            rescales: false,
            ..Defaults::LINEAR
        };
        let schedule = NoiseSchedule::read(fields, &defaults)?;
        Ok(Pndm {
            final_alpha: final_alpha(fields, &schedule, false)?,
            prediction: PredictionType::read(fields, &[EPSILON, V_PREDICTION])?,
            spacing: Spacing::read(fields, Leading, schedule.train_timesteps)?,
            skip_runge_kutta: fields.boolean("skip_prk_steps", false)?,
            schedule,
        })
    }
}

impl Method for Pndm {
    fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    fn prediction(&self) -> PredictionType {
        self.prediction
    }

    fn plan(&self, steps: usize, _: f32) -> Result<Plan, Error> {
        let most = self.schedule.train_timesteps;
        at_most(Self::CLASS, steps, most, "num_train_timesteps")?;
        let spaced = self.spacing.whole(steps);
        let stride = (most / steps) as i64;
        let (whole, runge_kutta) = match self.skip_runge_kutta {
            true => (repeated(&spaced), Vec::new()),
            false => {
                let runge_kutta = runge_kutta(&spaced, stride / 2)?;
                let rest = &spaced[ORDER - 1..];
                ([runge_kutta.as_slice(), rest].concat(), runge_kutta)
            }
        };
        let alphas = alphas_at(Self::CLASS, &self.schedule, &whole)?;
        // The second step starts anew from where the first did.
        if let (true, Some(second)) = (self.skip_runge_kutta, whole.get(1)) {
            alphas_at(Self::CLASS, &self.schedule, &[second + stride])?;
        }
        let solver = Steps {
            schedule: self.schedule.clone(),
            final_alpha: self.final_alpha,
            prediction: self.prediction,
            stride,
            timesteps: whole.clone(),
            runge_kutta,
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

/// The second of the descending timesteps comes twice.
fn repeated(spaced: &[i64]) -> Vec<i64> {
    let again = spaced.get(1).copied();
    let (first, rest) = spaced.split_at(spaced.len().min(2));
    first
        .iter()
        .copied()
        .chain(again)
        .chain(rest.iter().copied())
        .collect()
}

/// Four timesteps for each of three Runge-Kutta steps: start, twice the middle, end.
fn runge_kutta(spaced: &[i64], half: i64) -> Result<Vec<i64>, Error> {
    if spaced.len() < ORDER {
        return Err(Error::Steps(format!(
            "{}: {} steps are too few: Runge-Kutta steps need {ORDER}; take more, or set skip_prk_steps",
            Pndm::CLASS,
            spaced.len()
        )));
    }
    let step = |pair: &[i64]| [pair[0], pair[1] + half, pair[1] + half, pair[1]];
    Ok(spaced[..ORDER].windows(2).flat_map(step).collect())
}

#[derive(Debug)]
struct Steps {
    schedule: NoiseSchedule,
    final_alpha: f32,
    prediction: PredictionType,
    /// Timesteps of the training from one step to the next.
    stride: i64,
    timesteps: Vec<i64>,
    /// Those of the Runge-Kutta steps.
    runge_kutta: Vec<i64>,
}

impl Solver for Steps {
    fn is_multistep(&self) -> bool {
        true
    }

    fn adds_noise(&self, _: usize) -> bool {
        false
    }

    /// As in diffusers, what a step does depends on how many were taken, also where a run begins midway.
    fn step(&self, i: usize, batch: Batch<'_>, history: &mut History) {
        let taken = history.taken;
        history.taken += 1;
        match taken < self.runge_kutta.len() {
            true => self.runge_kutta_step(taken, self.timesteps[i], batch, history),
            false => self.multistep(taken, self.timesteps[i], batch, history),
        }
    }
}

impl Steps {
    fn runge_kutta_step(&self, taken: usize, t: i64, batch: Batch<'_>, history: &mut History) {
        let mut output = batch.output.to_vec();
        let weight = match taken % 4 {
            0 => {
                history.push(output.clone(), ORDER);
                history.last_sample = batch.sample.to_vec();
                history.sum = vec![0.0; output.len()];
                1.0 / 6.0
            }
            1 | 2 => 1.0 / 3.0,
            _ => 1.0 / 6.0,
        };
        for (sum, output) in history.sum.iter_mut().zip(&output) {
            *sum += weight * output;
        }
        if taken % 4 == 3 {
            output.copy_from_slice(&history.sum);
        }
        let to = match taken % 2 {
            0 => t - self.stride / 2,
            _ => t,
        };
        batch.sample.copy_from_slice(&history.last_sample);
        self.advance(self.runge_kutta[taken / 4 * 4], to, &output, batch.sample);
    }

    fn multistep(&self, taken: usize, t: i64, batch: Batch<'_>, history: &mut History) {
        let (mut from, mut to) = (t, t - self.stride);
        let mut again = Vec::new();
        match taken {
            1 => {
                (from, to) = (t + self.stride, t);
                again = batch.output.to_vec();
                batch.sample.copy_from_slice(&history.last_sample);
            }
            _ => history.push(batch.output.to_vec(), ORDER),
        }
        if taken == 0 {
            history.last_sample = batch.sample.to_vec();
        }
        let e = |before: usize, at: usize| history.outputs[before][at];
        let combined = |at: usize| match (history.outputs.len(), taken) {
            (1, 1) => (again[at] + e(0, at)) / 2.0,
            (1, _) => e(0, at),
            (2, _) => (3.0 * e(0, at) - e(1, at)) / 2.0,
            (3, _) => (23.0 * e(0, at) - 16.0 * e(1, at) + 5.0 * e(2, at)) / 12.0,
            _ => {
                let sum = 55.0 * e(0, at) - 59.0 * e(1, at) + 37.0 * e(2, at) - 9.0 * e(3, at);
                1.0 / 24.0 * sum
            }
        };
        let output: Vec<f32> = (0..batch.output.len()).map(combined).collect();
        self.advance(from, to, &output, batch.sample);
    }

    /// Moves a sample from one timestep to another.
    fn advance(&self, from: i64, to: i64, output: &[f32], sample: &mut [f32]) {
        let alpha = |t: i64| self.schedule.alpha_cumprod(t).unwrap_or(self.final_alpha);
        let (a, b) = (alpha(from), alpha(to));
        let keep = (b / a).sqrt();
        let divisor = a * (1.0 - b).sqrt() + (a * (1.0 - a) * b).sqrt();
        let (root, deviation) = (a.sqrt(), (1.0 - a).sqrt());
        for (x, &output) in sample.iter_mut().zip(output) {
            let noise = self.prediction.noise(output, *x, root, deviation);
            *x = keep * *x - (b - a) * noise / divisor;
        }
    }
}
