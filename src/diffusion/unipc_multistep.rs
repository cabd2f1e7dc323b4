//! `UniPCMultistepScheduler` (Zhao et al. 2023, "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion
//! Models", arXiv 2302.04867): each step first corrects the sample with the new output, then predicts the next sample.
//!
//! With λ = ln α - ln σ, h = λ_t - λ_s, hh = -h (for clean samples) and the outputs m₀, m₁, …, the latest first: x_t = σ_t / σ_s x_s -
//! α_t (e^hh - 1) m₀ - α_t B(h) Σ ρₖ (mₖ - m₀) / rₖ, where rₖ = (λₖ - λ_s) / h and ρ solves the Vandermonde system of algorithm 1.

use std::sync::Arc;

use super::Error;
use super::NoiseSchedule;
use super::config::Fields;
use super::multistep::{self, Level, Multistep};
use super::numerics::exp_m1;
use super::prediction::PredictionType;
use super::scheduler::{Batch, History, Method, Plan, Solver, timesteps};
use super::sigmas::Final;

#[derive(Debug)]
pub(super) struct UniPcMultistep {
    solver: Arc<UniPc>,
}

#[derive(Debug)]
struct UniPc {
    multistep: Multistep,
    /// Solves for the clean sample rather than for the noise.
    clean: bool,
    /// B(h) = hh rather than e^hh - 1.
    bh1: bool,
    lower_order_final: bool,
    /// Steps after which the sample is not corrected.
    disable_corrector: Vec<i64>,
}

impl UniPcMultistep {
    pub const CLASS: &'static str = "UniPCMultistepScheduler";

    pub fn read(fields: &Fields<'_>) -> Result<UniPcMultistep, Error> {
        let multistep = Multistep::read(fields, multistep::Solver::UniPc)?;
        let clean = fields.boolean("predict_x0", true)?;
        if multistep.prediction == PredictionType::Flow && !clean {
            return Err(fields.refused("prediction_type", "it needs predict_x0"));
        }
        fields.must_be_unset("solver_p", "a predictor of another scheduler is not there")?;
        // The last three are names of other schedulers' solvers, which diffusers takes for bh2.
        let types = ["bh1", "bh2", "midpoint", "heun", "logrho"];
        let bh1 = fields.choice(
            "solver_type",
            false,
            &types.map(|name| (name, name == "bh1")),
        )?;
        Ok(UniPcMultistep {
            solver: Arc::new(UniPc {
                multistep,
                clean,
                bh1,
                lower_order_final: fields.boolean("lower_order_final", true)?,
                disable_corrector: fields.wholes("disable_corrector")?,
            }),
        })
    }
}

impl Method for UniPcMultistep {
    fn schedule(&self) -> &NoiseSchedule {
        &self.solver.multistep.schedule
    }

    fn prediction(&self) -> PredictionType {
        self.solver.multistep.prediction
    }

    fn plan(&self, steps: usize, _: f32) -> Result<Plan, Error> {
        let multistep = &self.solver.multistep;
        let last = multistep.schedule.train_timesteps;
        let spaced = multistep.spacing.whole_without_zero(steps, last);
        let (whole, levels) = multistep.levels(spaced, steps);
        let solver = Steps {
            unipc: Arc::clone(&self.solver),
            levels,
        };
        let final_order = solver.order(whole.len() - 1, whole.len());
        if multistep.last == Final::Zero && final_order > 1 {
            return Err(Error::Steps(format!(
                "{}: with lower_order_final false, the last step to final_sigmas_type \"zero\" would be infinite: set it to \"sigma_min\"",
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
    unipc: Arc<UniPc>,
    /// The noise level of each step, then the final one.
    levels: Vec<Level>,
}

/// What predictor and corrector share for a move from one level to the next.
struct Move {
    /// The factors of x_s and of m₀.
    x: f32,
    m0: f32,
    /// The factor of the sum of differences.
    differences: f32,
    /// r₁, r₂, … of the outputs before the latest, and 1.
    ratios: Vec<f32>,
    /// The right side of the system for ρ.
    b: Vec<f32>,
}

impl Steps {
    /// The order of the predictor of step `i`, when `outputs` outputs are known, its own included.
    fn order(&self, i: usize, outputs: usize) -> usize {
        let left = self.levels.len() - 1 - i;
        let order = self.unipc.multistep.order;
        let most = match self.unipc.lower_order_final {
            true => order.min(left),
            false => order,
        };
        most.min(outputs)
    }

    /// The move of the given order to level `to`.
    fn to(&self, to: usize, order: usize) -> Move {
        let (t, s) = (&self.levels[to], &self.levels[to - 1]);
        let h = t.lambda - s.lambda;
        let ratio = |k: usize| (self.levels[to - 1 - k].lambda - s.lambda) / h;
        let hh = if self.unipc.clean { -h } else { h };
        let phi_1 = exp_m1(hh);
        let b_h = if self.unipc.bh1 { hh } else { phi_1 };
        let mut phi_k = phi_1 / hh - 1.0;
        let (mut factorial, mut b) = (1.0_f32, Vec::new());
        for k in 1..=order {
            b.push(phi_k * factorial / b_h);
            factorial *= (k + 1) as f32;
            phi_k = phi_k / hh - 1.0 / factorial;
        }
        let (x, scale) = match self.unipc.clean {
            true => (t.sigma / s.sigma, t.alpha),
            false => (t.alpha / s.alpha, t.sigma),
        };
        Move {
            x,
            m0: scale * phi_1,
            differences: scale * b_h,
            ratios: (1..order).map(ratio).chain([1.0]).collect(),
            b,
        }
    }

    /// The sample of step `i`, corrected with the new output `m`.
    fn corrected(&self, i: usize, m: &[f32], history: &History) -> Vec<f32> {
        let order = self.order(i - 1, history.outputs.len());
        let to = self.to(i, order);
        let rho = match order {
            1 => vec![0.5],
            _ => solve(&to.ratios, &to.b),
        };
        let (last, before) = (rho[order - 1], &rho[..order - 1]);
        let m0 = &history.outputs[0];
        let corrected = |at: usize| {
            let differences = to.sum(before, history, at) + last * (m[at] - m0[at]);
            to.x * history.last_sample[at] - to.m0 * m0[at] - to.differences * differences
        };
        (0..m.len()).map(corrected).collect()
    }

    /// Moves the sample of step `i` to the next level.
    fn predict(&self, i: usize, sample: &mut [f32], history: &History) {
        let order = self.order(i, history.outputs.len());
        let to = self.to(i + 1, order);
        let rho = match order {
            1 => Vec::new(),
            2 => vec![0.5],
            _ => solve(&to.ratios[..order - 1], &to.b[..order - 1]),
        };
        let m0 = &history.outputs[0];
        for (at, x) in sample.iter_mut().enumerate() {
            let linear = to.x * *x - to.m0 * m0[at];
            *x = linear - to.differences * to.sum(&rho, history, at);
        }
    }
}

impl Move {
    /// Σ ρₖ (mₖ - m₀) / rₖ of one value.
    fn sum(&self, rho: &[f32], history: &History, at: usize) -> f32 {
        let m0 = history.outputs[0][at];
        let outputs = history.outputs[1..].iter().map(|m| m[at]);
        let terms = rho.iter().zip(&self.ratios).zip(outputs);
        terms.fold(0.0, |sum, ((rho, r), m)| sum + rho * ((m - m0) / r))
    }
}

/// Solves Σⱼ rⱼⁱ ρⱼ = bᵢ for ρ, i from 0, by elimination with row pivots.
fn solve(ratios: &[f32], b: &[f32]) -> Vec<f32> {
    let count = b.len();
    let mut rows: Vec<Vec<f32>> = (0..count)
        .map(|i| {
            let powers = ratios.iter().map(|r| r.powi(i as i32));
            powers.chain([b[i]]).collect()
        })
        .collect();
    for column in 0..count {
        let size = |&row: &usize| rows[row][column].abs();
        let pivot = (column..count).max_by(|a, b| size(a).total_cmp(&size(b)));
        rows.swap(column, pivot.unwrap_or(column));
        let (above, below) = rows.split_at_mut(column + 1);
        let pivot = &above[column];
        for row in below {
            let factor = row[column] / pivot[column];
            for (value, pivot) in row.iter_mut().zip(pivot).skip(column) {
                *value -= factor * pivot;
            }
        }
    }
    let mut rho = vec![0.0; count];
    for i in (0..count).rev() {
        let known: f32 = (i + 1..count).map(|j| rows[i][j] * rho[j]).sum();
        rho[i] = (rows[i][count] - known) / rows[i][i];
    }
    rho
}

impl Solver for Steps {
    fn is_multistep(&self) -> bool {
        true
    }

    fn adds_noise(&self, _: usize) -> bool {
        false
    }

    fn step(&self, i: usize, batch: Batch<'_>, history: &mut History) {
        let multistep = &self.unipc.multistep;
        let converted = multistep.convert(&batch, &self.levels[i], self.unipc.clean);
        let is_corrected =
            !history.outputs.is_empty() && !self.unipc.disable_corrector.contains(&(i as i64 - 1));
        if is_corrected {
            let corrected = self.corrected(i, &converted, history);
            batch.sample.copy_from_slice(&corrected);
        }
        history.push(converted, multistep.order);
        history.last_sample.clear();
        history.last_sample.extend_from_slice(batch.sample);
        self.predict(i, batch.sample, history);
    }
}
