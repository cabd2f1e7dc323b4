//! What the multistep solvers share: noise levels, and the conversion of model outputs.

use super::bound::Bound;
use super::config::Fields;
use super::noise_schedule::Defaults;
use super::numerics::{interpolate, linspace, ln};
use super::prediction::{EPSILON, FLOW, PredictionType, SAMPLE, V_PREDICTION};
use super::scheduler::Batch;
use super::sigmas::{Final, Limits, Spread, first_sigma, timestep_of};
use super::spacing::{Linspace, Spacing};
use super::{Error, NoiseSchedule};

/// Where the two solvers of diffusers differ in the noise levels that they make of one configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Solver {
    Dpm,
    UniPc,
}

/// The configuration of the noise levels and of the model's output.
#[derive(Debug)]
pub(super) struct Multistep {
    solver: Solver,
    pub schedule: NoiseSchedule,
    pub spacing: Spacing,
    pub prediction: PredictionType,
    pub order: usize,
    pub bound: Bound,
    spread: Spread,
    /// `use_lu_lambdas`: evenly in ln σ, as DPM-Solver was proposed.
    lu: bool,
    limits: Limits,
    pub last: Final,
    flow: Option<Flow>,
}

/// `use_flow_sigmas`: α = 1 - σ with σ from 1 to 0 (Lipman et al. 2022, "Flow Matching for Generative Modeling", arXiv 2210.02747).
#[derive(Debug, Clone, Copy)]
struct Flow {
    /// σ' = s σ / (1 + (s - 1) σ) (Esser et al. 2024, "Scaling Rectified Flow Transformers", section 5.3.2, arXiv 2403.03206).
    shift: f64,
    /// `shift_terminal`: 1 - σ is stretched, so that this is the last σ.
    terminal: Option<f64>,
}

impl Multistep {
    pub fn read(fields: &Fields<'_>, solver: Solver) -> Result<Multistep, Error> {
        let schedule = NoiseSchedule::read(fields, &Defaults::SIGMAS)?;
        let order = fields.whole("solver_order", 2, 1)? as usize;
        if order > 3 {
            return Err(fields.refused("solver_order", "it must be 1, 2 or 3"));
        }
        let spread = Spread::read(fields)?;
        let lu = solver == Solver::Dpm && fields.boolean("use_lu_lambdas", false)?;
        let flow = Flow::read(fields, solver)?;
        if flow.is_some() && (lu || !(spread == Spread::Timesteps || solver.has_flow(spread))) {
            let why = "it cannot be combined with noise levels of another kind";
            return Err(fields.refused("use_flow_sigmas", why));
        }
        fields.choice(
            "time_shift_type",
            (),
            &[("exponential", ()), ("linear", ())],
        )?;
        Ok(Multistep {
            solver,
            spacing: Spacing::read(fields, Linspace, schedule.train_timesteps)?,
            prediction: PredictionType::read(fields, &[EPSILON, SAMPLE, V_PREDICTION, FLOW])?,
            order,
            bound: Bound::read_threshold(fields)?,
            lu: lu && spread != Spread::Karras,
            spread,
            limits: Limits::read(fields)?,
            last: Final::read(fields)?,
            flow,
            schedule,
        })
    }

    /// The timesteps of `steps` steps, and their noise levels with the final one. `spaced` are the timesteps unless the levels have
    /// a spread of their own.
    pub fn levels(&self, spaced: Vec<i64>, steps: usize) -> (Vec<i64>, Vec<Level>) {
        let table = self.schedule.sigmas();
        let log_sigmas = self.schedule.log_sigmas();
        let (greatest, least) = (f64::from(table[table.len() - 1]), f64::from(table[0]));
        let (timesteps, mut sigmas) = if self.lu {
            let (first, last) = (log_sigmas[0], log_sigmas[log_sigmas.len() - 1]);
            let logs = linspace(0.0, 1.0, steps).into_iter();
            let (first, last) = (f64::from(first), f64::from(last));
            let sigmas: Vec<f64> = logs.map(|at| (last + at * (first - last)).exp()).collect();
            let rounds = !self.schedule.is_cosine;
            (timesteps_of(&sigmas, &log_sigmas, rounds), sigmas)
        } else if self.spread != Spread::Timesteps {
            let (greatest, least) = self.limits.of(greatest, least);
            let sigmas = self.spread.levels(greatest, least, steps);
            match self.flow {
                Some(_) => self.flow_timesteps(sigmas.into_iter().map(|s| s / (s + 1.0))),
                None => {
                    let rounds = self.spread == Spread::Karras
                        && (self.solver == Solver::UniPc || !self.schedule.is_cosine);
                    (timesteps_of(&sigmas, &log_sigmas, rounds), sigmas)
                }
            }
        } else if let Some(flow) = self.flow {
            let sigmas = flow.levels(self.schedule.train_timesteps, steps, self.solver);
            self.flow_timesteps(sigmas.into_iter())
        } else {
            let sigma = |&t: &i64| interpolate(t as f64, &table);
            let sigmas = spaced.iter().map(sigma).collect();
            (spaced, sigmas)
        };
        let follows = self.solver == Solver::UniPc
            && (self.spread != Spread::Timesteps || self.flow.is_some());
        sigmas.push(match (self.last, sigmas.last()) {
            (Final::Zero, _) => 0.0,
            (Final::SigmaMin, Some(&last)) if follows => last,
            (Final::SigmaMin, _) => first_sigma(&self.schedule).into(),
        });
        let level = |sigma: f64| Level::new(sigma as f32, self.flow.is_some());
        (timesteps, sigmas.into_iter().map(level).collect())
    }

    fn flow_timesteps(&self, sigmas: impl Iterator<Item = f64>) -> (Vec<i64>, Vec<f64>) {
        let sigmas: Vec<f64> = sigmas.collect();
        let timestep = |sigma: &f64| (sigma * self.schedule.train_timesteps as f64) as i64;
        (sigmas.iter().map(timestep).collect(), sigmas)
    }

    /// The clean sample, bounded, or the noise that follows from each value of the model's output.
    pub fn convert(&self, batch: &Batch<'_>, level: &Level, wants_clean: bool) -> Vec<f32> {
        // As in diffusers, a flow prediction gives x - σ v even if the noise levels do not belong to a flow.
        let (alpha, sigma) = match self.prediction {
            PredictionType::Flow => (1.0, level.ratio),
            _ => (level.alpha, level.sigma),
        };
        let values = batch.output.iter().zip(batch.sample.iter());
        let mut converted: Vec<f32> = match wants_clean {
            true => values
                .map(|(&output, &x)| self.prediction.clean(output, x, alpha, sigma))
                .collect(),
            false => values
                .map(|(&output, &x)| self.prediction.noise(output, x, alpha, sigma))
                .collect(),
        };
        if wants_clean {
            for one in converted.chunks_exact_mut(batch.dimensions) {
                self.bound.apply(one);
            }
        }
        converted
    }
}

impl Solver {
    /// Whether diffusers has flow levels in this spread.
    fn has_flow(self, spread: Spread) -> bool {
        self == Solver::UniPc && spread == Spread::Karras
    }
}

impl Flow {
    fn read(fields: &Fields<'_>, solver: Solver) -> Result<Option<Flow>, Error> {
        let used = fields.boolean("use_flow_sigmas", false)?;
        let shift = fields.number("flow_shift", 1.0)?;
        let dynamic = fields.boolean("use_dynamic_shifting", false)?;
        let terminal = match solver {
            Solver::Dpm => None,
            Solver::UniPc => fields.optional_number("shift_terminal")?,
        };
        if solver == Solver::UniPc && dynamic {
            let why =
                "the shift would depend on the image's size, which only pipelines of words have";
            return Err(fields.refused("use_dynamic_shifting", why));
        }
        if terminal.is_some() && !used {
            return Err(fields.refused("shift_terminal", "it needs use_flow_sigmas"));
        }
        let terminal = terminal.filter(|&terminal| terminal != 0.0);
        Ok(used.then_some(Flow { shift, terminal }))
    }

    /// Levels in descending order.
    fn levels(&self, train_timesteps: usize, steps: usize, solver: Solver) -> Vec<f64> {
        let shifted = |sigma: f64| self.shift * sigma / (1.0 + (self.shift - 1.0) * sigma);
        let ramp = linspace(1.0, 1.0 / train_timesteps as f64, steps + 1);
        if solver == Solver::Dpm {
            let sigmas = ramp.into_iter().map(|alpha| shifted(1.0 - alpha));
            return sigmas.skip(1).rev().collect();
        }
        let mut sigmas: Vec<f64> = ramp[..steps].iter().map(|&sigma| shifted(sigma)).collect();
        if let Some(terminal) = self.terminal {
            let scale = (1.0 - sigmas[steps - 1]) / (1.0 - terminal);
            for sigma in &mut sigmas {
                *sigma = 1.0 - (1.0 - *sigma) / scale;
            }
        }
        // At 1, α is 0 and its logarithm infinite.
        if (sigmas[0] - 1.0).abs() < 1e-6 {
            sigmas[0] -= 1e-6;
        }
        sigmas
    }
}

/// A noisy sample is α x₀ + σ ε.
#[derive(Debug, Clone, Copy)]
pub(super) struct Level {
    /// σ / α, or σ of a flow.
    ratio: f32,
    pub alpha: f32,
    pub sigma: f32,
    /// ln α - ln σ.
    pub lambda: f32,
}

impl Level {
    /// Of σ as in [`NoiseSchedule::sigmas`], or of a flow's.
    fn new(ratio: f32, is_flow: bool) -> Level {
        let (alpha, sigma) = match is_flow {
            true => (1.0 - ratio, ratio),
            false => {
                let alpha = 1.0 / (ratio * ratio + 1.0).sqrt();
                (alpha, ratio * alpha)
            }
        };
        Level {
            ratio,
            alpha,
            sigma,
            lambda: ln(alpha) - ln(sigma),
        }
    }
}

fn timesteps_of(sigmas: &[f64], log_sigmas: &[f32], rounds: bool) -> Vec<i64> {
    let timestep = |&sigma: &f64| match rounds {
        true => timestep_of(sigma, log_sigmas).round_ties_even() as i64,
        false => timestep_of(sigma, log_sigmas) as i64,
    };
    sigmas.iter().map(timestep).collect()
}
