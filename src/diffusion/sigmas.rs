//! Noise levels σ of a sampler's steps, other than those of its timesteps.

use statrs::function::beta::beta_reg;

use super::Error;
use super::config::Fields;
use super::noise_schedule::NoiseSchedule;
use super::numerics::linspace;

/// How noise levels between the greatest and the least are spaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spread {
    /// As the timesteps have them.
    Timesteps,
    /// Evenly in σ^⅐ (Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", equation 5, arXiv
    /// 2206.00364).
    Karras,
    /// Evenly in ln σ.
    Exponential,
    /// By quantiles of the Beta(0.6, 0.6) distribution (Lee et al. 2024, "Beta Sampling is All You Need", arXiv 2407.12173).
    Beta,
}

impl Spread {
    pub fn read(fields: &Fields<'_>) -> Result<Spread, Error> {
        let spreads = [
            ("use_karras_sigmas", Spread::Karras),
            ("use_exponential_sigmas", Spread::Exponential),
            ("use_beta_sigmas", Spread::Beta),
        ];
        let mut chosen = Spread::Timesteps;
        for (name, spread) in spreads {
            if !fields.boolean(name, false)? {
                continue;
            }
            if chosen != Spread::Timesteps {
                return Err(fields.refused(
                    name,
                    "only one of Karras, exponential and beta sigmas can be used",
                ));
            }
            chosen = spread;
        }
        Ok(chosen)
    }

    /// `steps` levels from `greatest` down to `least`. Not for [`Spread::Timesteps`].
    pub fn levels(self, greatest: f64, least: f64, steps: usize) -> Vec<f64> {
        let ramp = linspace(0.0, 1.0, steps);
        match self {
            Spread::Timesteps => Vec::new(),
            Spread::Karras => {
                let (least, greatest) = (least.powf(1.0 / 7.0), greatest.powf(1.0 / 7.0));
                let level = |at: f64| (greatest + at * (least - greatest)).powf(7.0);
                ramp.into_iter().map(level).collect()
            }
            Spread::Exponential => {
                let logs = linspace(greatest.ln(), least.ln(), steps);
                logs.into_iter().map(f64::exp).collect()
            }
            Spread::Beta => {
                let level = |at: f64| least + beta_quantile(1.0 - at) * (greatest - least);
                ramp.into_iter().map(level).collect()
            }
        }
    }
}

/// The last σ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Final {
    Zero,
    SigmaMin,
}

impl Final {
    pub fn read(fields: &Fields<'_>) -> Result<Final, Error> {
        let choices = [("zero", Final::Zero), ("sigma_min", Final::SigmaMin)];
        fields.choice("final_sigmas_type", Final::Zero, &choices)
    }
}

/// `sigma_min` and `sigma_max`, which replace the schedule's least and greatest level.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    least: Option<f64>,
    greatest: Option<f64>,
}

impl Limits {
    pub fn read(fields: &Fields<'_>) -> Result<Limits, Error> {
        let read = |name| {
            let level = fields.optional_number(name)?;
            if level.is_some_and(|level| !(level > 0.0 && level.is_finite())) {
                return Err(fields.refused(name, "it must be above 0"));
            }
            Ok(level)
        };
        Ok(Limits {
            least: read("sigma_min")?,
            greatest: read("sigma_max")?,
        })
    }

    /// The greatest and the least, of levels in descending order.
    pub fn of(&self, greatest: f64, least: f64) -> (f64, f64) {
        let (above, below) = (self.greatest, self.least);
        (above.unwrap_or(greatest), below.unwrap_or(least))
    }
}

/// The timestep, with its fraction, at which the schedule has the noise level `sigma`: linear in ln σ.
pub(super) fn timestep_of(sigma: f64, log_sigmas: &[f32]) -> f64 {
    let log_sigma = sigma.max(1e-10).ln();
    let last = log_sigmas.len() - 1;
    if last == 0 {
        return 0.0;
    }
    // Where most values are at most log_sigma; the first such place, as NumPy's argmax of a running count.
    let mut low = 0;
    for (at, &level) in log_sigmas.iter().enumerate() {
        if log_sigma >= f64::from(level) {
            low = at;
        }
    }
    let low = low.min(last - 1);
    let (below, above) = (log_sigmas[low], log_sigmas[low + 1]);
    let weight = (f64::from(below) - log_sigma) / f64::from(below - above);
    let weight = weight.clamp(0.0, 1.0);
    (1.0 - weight) * low as f64 + weight * (low + 1) as f64
}

/// σ of the first timestep.
pub(super) fn first_sigma(schedule: &NoiseSchedule) -> f32 {
    let alpha = schedule.alphas_cumprod[0];
    ((1.0 - alpha) / alpha).sqrt()
}

/// The quantile of the Beta(0.6, 0.6) distribution, by bisection of its distribution function.
fn beta_quantile(probability: f64) -> f64 {
    if probability <= 0.0 || probability >= 1.0 {
        return probability.clamp(0.0, 1.0);
    }
    // The distribution is symmetric, and near 0 a number has more digits than near 1.
    if probability > 0.5 {
        return 1.0 - beta_quantile(1.0 - probability);
    }
    let (mut low, mut high) = (0.0, 0.5);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        match beta_reg(0.6, 0.6, middle) < probability {
            true => low = middle,
            false => high = middle,
        }
    }
    high
}
