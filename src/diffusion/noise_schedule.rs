//! Noise schedules: how much of a sample is left, and how much is noise, at each timestep of the training.

use super::Error;
use super::config::Fields;
use super::numerics::{cumulative_product, exp, linspace_f32, numpy_ln};

/// ᾱₜ = Π (1 - βₛ) for t = 0, 1, …: a noisy sample is √ᾱₜ x₀ + √(1 - ᾱₜ) ε (Ho et al. 2020, "Denoising Diffusion Probabilistic
/// Models", equation 4, arXiv 2006.11239).
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseSchedule {
    /// T values in (0, 1], descending.
    pub alphas_cumprod: Vec<f32>,
    /// `num_train_timesteps`. The same as T unless `trained_betas` has another length.
    pub(super) train_timesteps: usize,
    /// `beta_schedule` is `squaredcos_cap_v2`.
    pub(super) is_cosine: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Betas {
    Linear,
    ScaledLinear,
    Cosine,
    Laplace,
    Sigmoid,
}

/// What a class of schedulers takes.
pub(super) struct Defaults {
    pub beta_start: f64,
    pub beta_end: f64,
    pub scaled: bool,
    /// Also `laplace` and `sigmoid`.
    pub more: bool,
    /// ᾱ of the last timestep is 2⁻²⁴ rather than 0 with `rescale_betas_zero_snr`, because σ would be infinite.
    pub finite_sigmas: bool,
    /// The class has `rescale_betas_zero_snr`.
    pub rescales: bool,
}

impl Defaults {
    pub const LINEAR: Defaults = Defaults {
        beta_start: 0.0001,
        beta_end: 0.02,
        scaled: false,
        more: false,
        finite_sigmas: false,
        rescales: true,
    };
    pub const SIGMAS: Defaults = Defaults {
        finite_sigmas: true,
        ..Defaults::LINEAR
    };
}

impl NoiseSchedule {
    pub(super) fn read(fields: &Fields<'_>, defaults: &Defaults) -> Result<NoiseSchedule, Error> {
        let count = fields.whole("num_train_timesteps", 1000, 1)? as usize;
        let start = fields.number("beta_start", defaults.beta_start)?;
        let end = fields.number("beta_end", defaults.beta_end)?;
        let choices = [
            ("linear", Betas::Linear),
            ("scaled_linear", Betas::ScaledLinear),
            ("squaredcos_cap_v2", Betas::Cosine),
            ("laplace", Betas::Laplace),
            ("sigmoid", Betas::Sigmoid),
        ];
        let choices = &choices[..if defaults.more { 5 } else { 3 }];
        let default = match defaults.scaled {
            true => Betas::ScaledLinear,
            false => Betas::Linear,
        };
        let kind = fields.choice("beta_schedule", default, choices)?;
        let mut betas = match fields.numbers("trained_betas")? {
            Some(betas) => betas.into_iter().map(|beta| beta as f32).collect(),
            None => betas(kind, start, end, count),
        };
        let rescaled = defaults.rescales && fields.boolean("rescale_betas_zero_snr", false)?;
        if rescaled {
            betas = with_zero_terminal_snr(&betas);
        }
        if !betas.iter().all(|beta| (0.0..=1.0).contains(beta)) {
            return Err(Error::Config(format!(
                "{}: the schedule's betas are not all between 0 and 1: look at beta_start, beta_end and trained_betas",
                fields.class
            )));
        }
        let alphas: Vec<f32> = betas.iter().map(|beta| 1.0 - beta).collect();
        let mut alphas_cumprod = cumulative_product(&alphas);
        if let Some(last) = alphas_cumprod.last_mut()
            && rescaled
            && defaults.finite_sigmas
        {
            *last = 2.0_f32.powi(-24);
        }
        Ok(NoiseSchedule {
            alphas_cumprod,
            train_timesteps: count,
            is_cosine: kind == Betas::Cosine,
        })
    }

    /// ᾱ of a timestep; `None` outside of the schedule.
    pub fn alpha_cumprod(&self, timestep: i64) -> Option<f32> {
        let at = usize::try_from(timestep).ok()?;
        self.alphas_cumprod.get(at).copied()
    }

    /// σₜ = √((1 - ᾱₜ) / ᾱₜ), the noise beside an unscaled sample (Karras et al. 2022, arXiv 2206.00364).
    pub fn sigmas(&self) -> Vec<f32> {
        let sigma = |&alpha: &f32| ((1.0 - alpha) / alpha).sqrt();
        self.alphas_cumprod.iter().map(sigma).collect()
    }

    pub(super) fn log_sigmas(&self) -> Vec<f32> {
        self.sigmas().into_iter().map(numpy_ln).collect()
    }
}

fn betas(kind: Betas, start: f64, end: f64, count: usize) -> Vec<f32> {
    match kind {
        Betas::Linear => linspace_f32(start, end, count),
        Betas::ScaledLinear => {
            let roots = linspace_f32(start.sqrt(), end.sqrt(), count);
            roots.into_iter().map(|root| root * root).collect()
        }
        Betas::Cosine => from_alpha_bar(count, cosine),
        Betas::Laplace => from_alpha_bar(count, laplace),
        Betas::Sigmoid => {
            let (start, range) = (start as f32, (end - start) as f32);
            let beta = |x: f32| 1.0 / (1.0 + exp(-x)) * range + start;
            linspace_f32(-6.0, 6.0, count)
                .into_iter()
                .map(beta)
                .collect()
        }
    }
}

/// βᵢ = min(1 - ᾱ((i + 1) / T) / ᾱ(i / T), 0.999) (Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models",
/// arXiv 2102.09672).
fn from_alpha_bar(count: usize, alpha_bar: fn(f64) -> f64) -> Vec<f32> {
    let at = |i: usize| alpha_bar(i as f64 / count as f64);
    let beta = |i: usize| (1.0 - at(i + 1) / at(i)).min(0.999) as f32;
    (0..count).map(beta).collect()
}

fn cosine(t: f64) -> f64 {
    let c = ((t + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos();
    c * c
}

/// The log of the signal-to-noise ratio follows a Laplace distribution (Hang et al. 2024, "Improved Noise Schedule for Diffusion
/// Training", arXiv 2407.03297).
fn laplace(t: f64) -> f64 {
    let from_middle = 0.5 - t;
    let inner = (1.0 - 2.0 * from_middle.abs() + 1e-6).ln();
    let snr = (-0.5 * 1.0_f64.copysign(from_middle) * inner).exp();
    (snr / (1.0 + snr)).sqrt()
}

/// Shifts and scales √ᾱ, so that the last timestep is pure noise and the first stays (Lin et al. 2023, "Common Diffusion Noise
/// Schedules and Sample Steps are Flawed", algorithm 1, arXiv 2305.08891).
fn with_zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
    let alphas: Vec<f32> = betas.iter().map(|beta| 1.0 - beta).collect();
    let roots = cumulative_product(&alphas).into_iter().map(f32::sqrt);
    let roots: Vec<f32> = roots.collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    let squares = roots.into_iter().map(|root| {
        let root = (root - last) * scale;
        root * root
    });
    let mut before = 1.0;
    let beta = |alpha_bar: f32| {
        let alpha = alpha_bar / before;
        before = alpha_bar;
        1.0 - alpha
    };
    squares.map(beta).collect()
}
