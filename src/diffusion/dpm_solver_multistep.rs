//! `DPMSolverMultistepScheduler`: `dpmsolver` (Lu et al. 2022, "DPM-Solver", arXiv 2206.00927) solves for the noise, `dpmsolver++`
//! (Lu et al. 2022, "DPM-Solver++", arXiv 2211.01095) for the clean sample; `sde-` are their stochastic forms.
//!
//! With λ = ln α - ln σ, h = λ_t - λ_s and the model's converted outputs m₀, m₁, …, the latest first, `dpmsolver++` of order 2 is
//! x_t = σ_t / σ_s x_s - α_t (e⁻ʰ - 1) (m₀ + ½ D), D = (m₀ - m₁) h / (λ_s - λ_r). Order 1 is DDIM.

use std::sync::Arc;

use super::Error;
use super::NoiseSchedule;
use super::config::Fields;
use super::multistep::{self, Level, Multistep};
use super::numerics::{exp, ln};
use super::prediction::PredictionType;
use super::scheduler::{Batch, History, Method, Plan, Solver, Variance, timesteps};
use super::sigmas::Final;

/// Fewer steps than this end with lower orders, with `lower_order_final`.
const FEW_STEPS: usize = 15;

#[derive(Debug, Clone, Copy)]
struct Algorithm {
    /// Solves for the clean sample rather than for the noise.
    clean: bool,
    stochastic: bool,
}

#[derive(Debug)]
pub(super) struct DpmSolverMultistep {
    solver: Arc<Dpm>,
    /// Only timesteps below this are visited, by `lambda_min_clipped`.
    last_timestep: usize,
}

#[derive(Debug)]
struct Dpm {
    multistep: Multistep,
    algorithm: Algorithm,
    heun: bool,
    lower_order_final: bool,
    euler_at_final: bool,
    learned_variance: bool,
}

impl DpmSolverMultistep {
    pub const CLASS: &'static str = "DPMSolverMultistepScheduler";

    pub fn read(fields: &Fields<'_>) -> Result<DpmSolverMultistep, Error> {
        let multistep = Multistep::read(fields, multistep::Solver::Dpm)?;
        let algorithm = |clean, stochastic| Algorithm { clean, stochastic };
        let algorithms = [
            ("dpmsolver++", (algorithm(true, false), true)),
            ("dpmsolver", (algorithm(false, false), false)),
            ("sde-dpmsolver++", (algorithm(true, true), true)),
            ("sde-dpmsolver", (algorithm(false, true), false)),
            // Diffusers solves it as dpmsolver++, and has it end as dpmsolver does.
            ("deis", (algorithm(true, false), false)),
        ];
        let (algorithm, may_end_at_zero) =
            fields.choice("algorithm_type", algorithms[0].1, &algorithms)?;
        if multistep.last == Final::Zero && !may_end_at_zero {
            let why = "with final_sigmas_type \"zero\" its last step would be infinite: set final_sigmas_type to \"sigma_min\"";
            return Err(fields.refused("algorithm_type", why));
        }
        if multistep.prediction == PredictionType::Flow && !algorithm.clean {
            let why = "only dpmsolver++ and sde-dpmsolver++ take it";
            return Err(fields.refused("prediction_type", why));
        }
        // The last three are names of other schedulers' solvers, which diffusers takes for midpoint.
        let types = ["midpoint", "heun", "logrho", "bh1", "bh2"];
        let heun = fields.choice(
            "solver_type",
            false,
            &types.map(|name| (name, name == "heun")),
        )?;
        // The fixed ones are DDPM's, whose files are often read as this class.
        let fixed = [
            "fixed_small",
            "fixed_small_log",
            "fixed_large",
            "fixed_large_log",
        ];
        let variances = fixed.iter().chain(&["learned", "learned_range"]);
        let variances: Vec<_> = variances
            .map(|name| (*name, name.starts_with("learned")))
            .collect();
        let learned = fields.optional_choice("variance_type", &variances)?;
        Ok(DpmSolverMultistep {
            last_timestep: last_timestep(fields, &multistep.schedule)?,
            solver: Arc::new(Dpm {
                algorithm,
                heun,
                lower_order_final: fields.boolean("lower_order_final", true)?,
                euler_at_final: fields.boolean("euler_at_final", false)?,
                learned_variance: learned == Some(true)
                    && multistep.prediction == PredictionType::Epsilon,
                multistep,
            }),
        })
    }
}

/// By `lambda_min_clipped`: the number of timesteps with ln(√ᾱ / √(1 - ᾱ)) at least that.
fn last_timestep(fields: &Fields<'_>, schedule: &NoiseSchedule) -> Result<usize, Error> {
    let least = fields.number("lambda_min_clipped", f64::NEG_INFINITY)? as f32;
    let lambda = |&alpha: &f32| ln(alpha.sqrt()) - ln((1.0 - alpha).sqrt());
    let ascending: Vec<f32> = schedule.alphas_cumprod.iter().rev().map(lambda).collect();
    let clipped = ascending.partition_point(|&lambda| lambda < least);
    match schedule.train_timesteps.checked_sub(clipped) {
        None | Some(0) => Err(fields.refused("lambda_min_clipped", "no timestep is left")),
        Some(last) => Ok(last),
    }
}

impl Method for DpmSolverMultistep {
    fn schedule(&self) -> &NoiseSchedule {
        &self.solver.multistep.schedule
    }

    fn prediction(&self) -> PredictionType {
        self.solver.multistep.prediction
    }

    fn plan(&self, steps: usize, _: f32) -> Result<Plan, Error> {
        let multistep = &self.solver.multistep;
        let spaced = multistep
            .spacing
            .whole_without_zero(steps, self.last_timestep);
        let (whole, levels) = multistep.levels(spaced, steps);
        let solver = Steps {
            dpm: Arc::clone(&self.solver),
            levels,
        };
        let algorithm = self.solver.algorithm;
        let orders = (0..whole.len()).map(|i| solver.order(i, i + 1));
        if algorithm.stochastic && !algorithm.clean && orders.max() == Some(3) {
            return Err(Error::Steps(format!(
                "{}: algorithm_type \"sde-dpmsolver\" has no solver_order 3: set solver_order to 2",
                Self::CLASS
            )));
        }
        Ok(Plan {
            requested: steps,
            timesteps: timesteps(&whole),
            init_noise_sigma: 1.0,
            input_divisors: Vec::new(),
            levels: solver.levels.iter().map(|l| (l.alpha, l.sigma)).collect(),
            solver: Arc::new(solver),
        })
    }
}

#[derive(Debug)]
struct Steps {
    dpm: Arc<Dpm>,
    /// The noise level of each step, then the final one.
    levels: Vec<Level>,
}

impl Steps {
    /// The order of step `i`, when `outputs` converted outputs are known, its own included.
    fn order(&self, i: usize, outputs: usize) -> usize {
        let dpm = &self.dpm;
        let left = self.levels.len() - 1 - i;
        let lowers = dpm.lower_order_final && self.levels.len() - 1 < FEW_STEPS;
        let ends = dpm.euler_at_final || lowers || dpm.multistep.last == Final::Zero;
        let most = match left {
            1 if ends => 1,
            2 if lowers => 2,
            _ => 3,
        };
        most.min(outputs).min(dpm.multistep.order)
    }

    /// The output that the algorithm solves for.
    fn convert(&self, batch: &Batch<'_>, level: &Level) -> Vec<f32> {
        let multistep = &self.dpm.multistep;
        let mut converted = multistep.convert(batch, level, self.dpm.algorithm.clean);
        if self.dpm.algorithm.clean || multistep.bound == super::bound::Bound::None {
            return converted;
        }
        // The clean sample is bounded, and the noise follows from it.
        let (alpha, sigma) = (level.alpha, level.sigma);
        let clean = |(noise, &x): (&mut f32, &f32)| *noise = (x - sigma * *noise) / alpha;
        converted
            .iter_mut()
            .zip(batch.sample.iter())
            .for_each(clean);
        for one in converted.chunks_exact_mut(batch.dimensions) {
            multistep.bound.apply(one);
        }
        let noise = |(clean, &x): (&mut f32, &f32)| *clean = (x - alpha * *clean) / sigma;
        converted
            .iter_mut()
            .zip(batch.sample.iter())
            .for_each(noise);
        converted
    }
}

/// x_t = x · x_s + Σ dᵢ Dᵢ + noise · ε, where Dᵢ are differences of outputs.
struct Coefficients {
    x: f32,
    d: [f32; 3],
    noise: f32,
}

impl Coefficients {
    fn new(dpm: &Dpm, order: usize, s: &Level, t: &Level) -> Coefficients {
        let h = t.lambda - s.lambda;
        let Algorithm { clean, stochastic } = dpm.algorithm;
        let (grown, drift) = match (clean, stochastic) {
            (true, false) => (exp(-h), -(t.alpha * (exp(-h) - 1.0))),
            (false, _) => (exp(h), -(t.sigma * (exp(h) - 1.0))),
            (true, true) => (exp(-2.0 * h), t.alpha * (1.0 - exp(-2.0 * h))),
        };
        let x = match (clean, stochastic) {
            (true, false) => t.sigma / s.sigma,
            (true, true) => t.sigma / s.sigma * exp(-h),
            (false, _) => t.alpha / s.alpha,
        };
        // The second and third order's integrals of (λ - λ_s) and (λ - λ_s)² / 2.
        let heun = match (clean, stochastic) {
            (true, false) => t.alpha * ((grown - 1.0) / h + 1.0),
            (false, false) => -(t.sigma * ((grown - 1.0) / h - 1.0)),
            (false, true) => -(2.0 * (t.sigma * ((grown - 1.0) / h - 1.0))),
            (true, true) => t.alpha * ((1.0 - grown) / (-2.0 * h) + 1.0),
        };
        let third = match (clean, stochastic) {
            (true, false) => -(t.alpha * ((grown - 1.0 + h) / (h * h) - 0.5)),
            (false, _) => -(t.sigma * ((grown - 1.0 - h) / (h * h) - 0.5)),
            (true, true) => {
                let twice = 2.0 * h;
                t.alpha * ((1.0 - grown - twice) / (twice * twice) - 0.5)
            }
        };
        let first = match (clean, stochastic) {
            (false, true) => 2.0 * drift,
            _ => drift,
        };
        let second = match (order, dpm.heun) {
            (2, false) if stochastic && !clean => drift,
            (2, false) => 0.5 * drift,
            _ => heun,
        };
        let noise = match (clean, stochastic) {
            (_, false) => 0.0,
            (true, true) => t.sigma * (1.0 - exp(-2.0 * h)).sqrt(),
            (false, true) => t.sigma * (exp(2.0 * h) - 1.0).sqrt(),
        };
        Coefficients {
            x,
            d: [first, second, third],
            noise,
        }
    }
}

impl Solver for Steps {
    fn is_multistep(&self) -> bool {
        self.dpm.multistep.order > 1
    }

    fn variance(&self) -> Variance {
        match self.dpm.learned_variance {
            true => Variance::Optional,
            false => Variance::None,
        }
    }

    fn adds_noise(&self, _: usize) -> bool {
        self.dpm.algorithm.stochastic
    }

    fn step(&self, i: usize, batch: Batch<'_>, history: &mut History) {
        let converted = self.convert(&batch, &self.levels[i]);
        history.push(converted, self.dpm.multistep.order);
        let order = self.order(i, history.outputs.len());
        let (t, s) = (&self.levels[i + 1], &self.levels[i]);
        let c = Coefficients::new(&self.dpm, order, s, t);
        let h = t.lambda - s.lambda;
        let ratio = |before: usize| {
            (self.levels[i + 1 - before].lambda - self.levels[i - before].lambda) / h
        };
        let m0 = &history.outputs[0];
        let sample = batch.sample.iter_mut();
        match order {
            1 => {
                for (x, m0) in sample.zip(m0) {
                    *x = c.x * *x + c.d[0] * m0;
                }
            }
            2 => {
                let inverse = 1.0 / ratio(1);
                for ((x, m0), m1) in sample.zip(m0).zip(&history.outputs[1]) {
                    let d1 = inverse * (m0 - m1);
                    *x = c.x * *x + c.d[0] * m0 + c.d[1] * d1;
                }
            }
            _ => {
                let (r0, r1) = (ratio(1), ratio(2));
                let (inverse0, inverse1) = (1.0 / r0, 1.0 / r1);
                let (share, inverse_sum) = (r0 / (r0 + r1), 1.0 / (r0 + r1));
                let before = history.outputs[1].iter().zip(&history.outputs[2]);
                for ((x, m0), (m1, m2)) in sample.zip(m0).zip(before) {
                    let (first, second) = (inverse0 * (m0 - m1), inverse1 * (m1 - m2));
                    let d1 = first + share * (first - second);
                    let d2 = inverse_sum * (first - second);
                    *x = c.x * *x + c.d[0] * m0 + c.d[1] * d1 + c.d[2] * d2;
                }
            }
        }
        if self.dpm.algorithm.stochastic {
            for (x, noise) in batch.sample.iter_mut().zip(batch.noise) {
                *x += c.noise * noise;
            }
        }
    }
}
