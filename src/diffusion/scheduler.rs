//! A scheduler, its plan for a number of steps, and a run through the plan.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::config::{Fields, MOST_TIMESTEPS, parse};
use super::ddim::Ddim;
use super::ddpm::Ddpm;
use super::dpm_solver_multistep::DpmSolverMultistep;
use super::euler::Euler;
use super::euler_ancestral::EulerAncestral;
use super::lcm::Lcm;
use super::pndm::Pndm;
use super::prediction::PredictionType;
use super::unipc_multistep::UniPcMultistep;
use super::{Error, NoiseSchedule};

/// The `_class_name`s that can be read.
pub const CLASSES: [&str; 8] = [
    Ddpm::CLASS,
    Ddim::CLASS,
    EulerAncestral::CLASS,
    Euler::CLASS,
    DpmSolverMultistep::CLASS,
    UniPcMultistep::CLASS,
    Lcm::CLASS,
    Pndm::CLASS,
];

/// How a class turns its configuration into steps.
pub(super) trait Method: fmt::Debug + Send + Sync {
    fn schedule(&self) -> &NoiseSchedule;
    fn prediction(&self) -> PredictionType;
    /// `eta` is DDIM's.
    fn plan(&self, steps: usize, eta: f32) -> Result<Plan, Error>;
}

/// Moves a batch by one step.
pub(super) trait Solver: fmt::Debug + Send + Sync {
    /// Whether a step depends on the steps before it.
    fn is_multistep(&self) -> bool {
        false
    }
    /// Whether the model's output holds a variance for each value, as its second half.
    fn variance(&self) -> Variance {
        Variance::None
    }
    /// Whether noise is added after step `i`.
    fn adds_noise(&self, i: usize) -> bool;
    fn step(&self, i: usize, batch: Batch<'_>, history: &mut History);
}

/// Whether a model also predicts a variance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variance {
    None,
    Optional,
    Required,
}

/// What a step works on: samples of `dimensions` values each, one after the other.
pub(super) struct Batch<'a> {
    pub dimensions: usize,
    pub output: &'a [f32],
    /// Empty, or a value for each of the sample.
    pub variance: &'a [f32],
    pub sample: &'a mut [f32],
    /// Empty, or a value for each of the sample.
    pub noise: &'a [f32],
}

/// What a multistep solver remembers.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Converted model outputs, the latest first.
    pub outputs: Vec<Vec<f32>>,
    pub last_sample: Vec<f32>,
    /// The number of steps taken, and the weighted sum of outputs so far, of PNDM.
    pub taken: usize,
    pub sum: Vec<f32>,
}

impl History {
    /// Puts `output` first and forgets what is older than `most` outputs.
    pub fn push(&mut self, output: Vec<f32>, most: usize) {
        self.outputs.truncate(most.saturating_sub(1));
        self.outputs.insert(0, output);
    }
}

/// A scheduler with its configuration.
#[derive(Debug, Clone)]
pub struct Scheduler {
    class: &'static str,
    method: Arc<dyn Method>,
    eta: f32,
    ignored: Vec<String>,
}

impl Scheduler {
    /// Reads the text of a `scheduler_config.json`.
    ///
    /// # Errors
    /// If it is not the configuration of one of [`CLASSES`], or asks for something that is not there.
    pub fn from_json(json: &str) -> Result<Scheduler, Error> {
        Scheduler::from_config(&parse(json)?, None)
    }

    /// Reads the text of a `scheduler_config.json` as the configuration of `class`, whichever class it names.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json).
    pub fn from_json_as(json: &str, class: &str) -> Result<Scheduler, Error> {
        Scheduler::from_config(&parse(json)?, Some(class))
    }

    /// Reads the fields of a `scheduler_config.json`. `class` replaces its `_class_name`.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json).
    pub fn from_config(
        config: &Map<String, Value>,
        class: Option<&str>,
    ) -> Result<Scheduler, Error> {
        let named = config.get("_class_name").and_then(Value::as_str);
        let Some(name) = class.or(named) else {
            return Err(Error::Config(
                "the scheduler's configuration names no `_class_name`".into(),
            ));
        };
        let Some(class) = CLASSES.into_iter().find(|class| *class == name) else {
            let name: String = name.chars().take(100).collect();
            return Err(Error::Config(format!(
                "the scheduler {name} is unknown: there are {}",
                CLASSES.join(", ")
            )));
        };
        Scheduler::read(config, class).map_err(|error| {
            let reads = |other: &&'static str| Scheduler::read(config, other).is_ok();
            let others: Vec<&str> = CLASSES.into_iter().filter(reads).collect();
            match others.is_empty() {
                true => error,
                false => Error::Config(format!("{error}; it can be read as {}", others.join(", "))),
            }
        })
    }

    /// Reads the fields as those of `class`, one of [`CLASSES`].
    fn read(config: &Map<String, Value>, class: &'static str) -> Result<Scheduler, Error> {
        let fields = Fields::new(class, config);
        let method: Arc<dyn Method> = match class {
            Ddpm::CLASS => Arc::new(Ddpm::read(&fields)?),
            Ddim::CLASS => Arc::new(Ddim::read(&fields)?),
            EulerAncestral::CLASS => Arc::new(EulerAncestral::read(&fields)?),
            Euler::CLASS => Arc::new(Euler::read(&fields)?),
            DpmSolverMultistep::CLASS => Arc::new(DpmSolverMultistep::read(&fields)?),
            UniPcMultistep::CLASS => Arc::new(UniPcMultistep::read(&fields)?),
            Pndm::CLASS => Arc::new(Pndm::read(&fields)?),
            _ => Arc::new(Lcm::read(&fields)?),
        };
        Ok(Scheduler {
            class,
            method,
            eta: 0.0,
            ignored: fields.ignored(),
        })
    }

    /// Has DDIM add noise: none with an `eta` of 0, as much as DDPM with 1 (Song et al. 2020, equation 16, arXiv 2010.02502).
    ///
    /// # Errors
    /// If `eta` is not from 0 to 1, or above 0 for another scheduler.
    pub fn with_eta(self, eta: f32) -> Result<Scheduler, Error> {
        if !(0.0..=1.0).contains(&eta) {
            return Err(Error::Config(format!(
                "eta is {eta}: it must be from 0 to 1"
            )));
        }
        if eta > 0.0 && self.class != Ddim::CLASS {
            return Err(Error::Config(format!(
                "eta is {eta}: only {} has it, not {}",
                Ddim::CLASS,
                self.class
            )));
        }
        Ok(Scheduler { eta, ..self })
    }

    /// The `_class_name`.
    pub fn class(&self) -> &'static str {
        self.class
    }

    /// The fields of the configuration that this class does not have. They are ignored, as diffusers does.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// ᾱ of the training's timesteps.
    pub fn schedule(&self) -> &NoiseSchedule {
        self.method.schedule()
    }

    /// What the model predicts.
    pub fn prediction(&self) -> PredictionType {
        self.method.prediction()
    }

    /// Plans `steps` steps.
    ///
    /// # Errors
    /// If the scheduler cannot take that many steps.
    pub fn plan(&self, steps: usize) -> Result<Plan, Error> {
        if !(1..=MOST_TIMESTEPS).contains(&steps) {
            return Err(Error::Steps(format!(
                "{steps} steps: a sampler takes 1 to {MOST_TIMESTEPS}"
            )));
        }
        self.method.plan(steps, self.eta)
    }
}

/// The steps of a sampler, from pure noise to the sample.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(super) requested: usize,
    pub(super) timesteps: Vec<f32>,
    pub(super) init_noise_sigma: f32,
    /// What the sample is divided by before the model sees it, for each step. Empty if it is not.
    pub(super) input_divisors: Vec<f32>,
    /// α and σ of a noisy sample α x₀ + σ ε, for each step.
    pub(super) levels: Vec<(f32, f32)>,
    pub(super) solver: Arc<dyn Solver>,
}

impl Plan {
    /// The number of steps. It may differ from the number that was asked for by a few, as in diffusers.
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// The number of steps that was asked for.
    pub fn requested(&self) -> usize {
        self.requested
    }

    /// Returns the step at which an image enters: as in diffusers, the last `strength` of the steps that were asked for are taken, and one
    /// more where a scheduler repeats a timestep.
    ///
    /// # Errors
    /// [`Error::Steps`] if the strength is not from 0 to 1, or leaves no step.
    pub fn first_step(&self, strength: f64) -> Result<usize, Error> {
        if !(0.0..=1.0).contains(&strength) {
            return Err(Error::Steps(format!("{strength}: it must be from 0 to 1")));
        }
        let steps = self.requested;
        let taken = (steps as f64 * strength) as usize;
        match steps - taken {
            first if taken > 0 && first < self.steps() => Ok(first),
            _ => Err(Error::Steps(format!(
                "{strength} of {steps} steps leaves no step: give more of either"
            ))),
        }
    }

    /// What the model gets as `timestep`, for each step. Whole numbers but for the Euler schedulers.
    pub fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    /// The standard deviation of the initial noise.
    pub fn init_noise_sigma(&self) -> f32 {
        self.init_noise_sigma
    }

    /// Whether any step adds noise.
    pub fn is_stochastic(&self) -> bool {
        (0..self.steps()).any(|i| self.solver.adds_noise(i))
    }

    /// Whether step `i` adds noise.
    pub fn adds_noise(&self, i: usize) -> bool {
        self.solver.adds_noise(i)
    }

    /// Whether a run remembers earlier outputs of the model.
    pub fn is_multistep(&self) -> bool {
        self.solver.is_multistep()
    }

    /// Makes standard normals the initial noise.
    pub fn scale_noise(&self, noise: &mut [f32]) {
        for x in noise {
            *x *= self.init_noise_sigma;
        }
    }

    /// Writes what the model gets as `sample` in step `i`.
    ///
    /// # Panics
    /// If the plan has no such step.
    pub fn scale_input(&self, i: usize, sample: &[f32], input: &mut [f32]) {
        match self.input_divisors.is_empty() {
            true => input.copy_from_slice(sample),
            false => {
                let divisor = self.input_divisors[i];
                for (y, &x) in input.iter_mut().zip(sample) {
                    *y = x / divisor;
                }
            }
        }
    }

    /// Writes the noisy sample with which step `i` begins, for a clean sample: where a sampler enters the process midway.
    ///
    /// # Panics
    /// If the plan has no such step.
    pub fn add_noise(&self, i: usize, clean: &[f32], noise: &[f32], noisy: &mut [f32]) {
        let (alpha, sigma) = self.levels[i];
        super::forward::mix(alpha, sigma, clean, noise, noisy);
    }

    /// Starts a run with samples of `dimensions` values each.
    pub fn start(&self, dimensions: usize) -> Run {
        Run {
            solver: Arc::clone(&self.solver),
            steps: self.steps(),
            dimensions,
            next: None,
            history: History::default(),
        }
    }
}

/// A run of one batch of samples through a plan.
#[derive(Debug)]
pub struct Run {
    solver: Arc<dyn Solver>,
    steps: usize,
    dimensions: usize,
    next: Option<usize>,
    history: History,
}

impl Run {
    /// Takes step `i`: moves `sample`, [N, D] flat, by what the model predicts for it.
    ///
    /// `output` has the size of `sample`, or twice that if the model also predicts a variance (for each sample D predictions, then D
    /// variances). `noise` are standard normals of the size of `sample`; empty if the step adds none.
    ///
    /// # Errors
    /// If the sizes do not fit, or a multistep solver's steps do not follow each other.
    pub fn step(
        &mut self,
        i: usize,
        output: &[f32],
        sample: &mut [f32],
        noise: &[f32],
    ) -> Result<(), Error> {
        self.check(i, output.len(), sample.len(), noise.len())?;
        let split;
        let (output, variance) = match output.len() == sample.len() {
            true => (output, [].as_slice()),
            false => {
                split = halves(output, self.dimensions);
                (split.0.as_slice(), split.1.as_slice())
            }
        };
        let batch = Batch {
            dimensions: self.dimensions,
            output,
            variance,
            sample,
            noise,
        };
        self.solver.step(i, batch, &mut self.history);
        self.next = Some(i + 1);
        Ok(())
    }

    fn check(&self, i: usize, output: usize, sample: usize, noise: usize) -> Result<(), Error> {
        let fail = |problem: String| Err(Error::Shape(problem));
        if i >= self.steps {
            return fail(format!("step {i}: the plan has {} steps", self.steps));
        }
        if let Some(next) = self.next
            && self.solver.is_multistep()
            && next != i
        {
            return fail(format!("step {i}: the solver needs step {next} first"));
        }
        if self.dimensions == 0 || !sample.is_multiple_of(self.dimensions) {
            return fail(format!(
                "{sample} values are no samples of {} each",
                self.dimensions
            ));
        }
        let wanted: &[usize] = match self.solver.variance() {
            Variance::None => &[1],
            Variance::Optional => &[1, 2],
            Variance::Required => &[2],
        };
        if !wanted.iter().any(|times| output == sample * times) {
            return fail(match self.solver.variance() {
                Variance::Required => format!(
                    "the model's output has {output} values, and a learned variance needs twice the sample's {sample}"
                ),
                _ => format!("the model's output has {output} values, the sample {sample}"),
            });
        }
        if noise != sample && (noise != 0 || self.solver.adds_noise(i)) {
            return fail(format!(
                "step {i}: the noise has {noise} values, the sample {sample}"
            ));
        }
        if let Some(before) = self.history.outputs.first()
            && self.solver.is_multistep()
            && before.len() != sample
        {
            return fail(format!(
                "step {i}: {sample} values, and {} in the step before",
                before.len()
            ));
        }
        Ok(())
    }
}

/// For each sample its first `dimensions` values, and for each its second.
fn halves(output: &[f32], dimensions: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for one in output.chunks_exact(2 * dimensions) {
        first.extend_from_slice(&one[..dimensions]);
        second.extend_from_slice(&one[dimensions..]);
    }
    (first, second)
}

/// Whole timesteps as a model gets them.
pub(super) fn timesteps(whole: &[i64]) -> Vec<f32> {
    whole.iter().map(|&t| t as f32).collect()
}

/// ᾱ of whole timesteps.
pub(super) fn alphas_at(
    class: &str,
    schedule: &NoiseSchedule,
    whole: &[i64],
) -> Result<Vec<f32>, Error> {
    let alpha = |&t: &i64| {
        schedule.alpha_cumprod(t).ok_or_else(|| {
            let count = schedule.alphas_cumprod.len();
            Error::Steps(format!(
                "{class}: {} steps need timestep {t}, and the schedule has 0 to {}: take another number of steps, timestep_spacing or steps_offset",
                whole.len(),
                count - 1
            ))
        })
    };
    whole.iter().map(alpha).collect()
}

/// Refuses more steps than the training had.
pub(super) fn at_most(class: &str, steps: usize, most: usize, what: &str) -> Result<(), Error> {
    match steps > most {
        true => Err(Error::Steps(format!(
            "{class}: {steps} steps are more than {what}, {most}"
        ))),
        false => Ok(()),
    }
}
