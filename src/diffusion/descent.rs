//! From a noisy sample to the clean one: it enters the schedule at the timestep of its own noise, and DDIM takes it on from there.

use super::forward::mix;
use super::{Error, PredictionType, Scheduler};

/// The timesteps, and what to do at each. A sample x₀ + σ ε is scaled by √ᾱ, which makes it the √ᾱ x₀ + √(1 - ᾱ) ε that the model
/// was trained with at the timestep where √(1 - ᾱ) / √ᾱ = σ.
#[derive(Debug, Clone)]
pub struct Descent {
    prediction: PredictionType,
    levels: Vec<Level>,
}

#[derive(Debug, Clone, Copy)]
struct Level {
    timestep: usize,
    /// √ᾱ.
    alpha: f32,
    /// √(1 - ᾱ).
    sigma: f32,
}

impl Descent {
    /// `sigma`: the standard deviation of the noise, where values are from -1 to 1. The nearest timestep is taken. `steps`: the number
    /// of steps from there. It is smaller if there are not as many timesteps.
    ///
    /// # Errors
    /// [`Error::Config`] if the scheduler is of flow matching, which has no ᾱ, or [`Error::Steps`] if there are no steps.
    pub fn new(scheduler: &Scheduler, sigma: f32, steps: usize) -> Result<Descent, Error> {
        let prediction = scheduler.prediction();
        if prediction == PredictionType::Flow {
            return Err(Error::Config(
                "the scheduler is of flow matching, which has no noise level to enter at".into(),
            ));
        }
        if steps == 0 {
            return Err(Error::Steps("0 steps: at least 1 is needed".into()));
        }
        let alphas = &scheduler.schedule().alphas_cumprod;
        let first = nearest(&scheduler.schedule().sigmas(), sigma);
        let mut timesteps: Vec<usize> =
            (1..=steps).rev().map(|left| first * left / steps).collect();
        timesteps.dedup();
        let level = |timestep: usize| Level {
            timestep,
            alpha: alphas[timestep].sqrt(),
            sigma: (1.0 - alphas[timestep]).sqrt(),
        };
        Ok(Descent {
            prediction,
            levels: timesteps.into_iter().map(level).collect(),
        })
    }

    pub fn steps(&self) -> usize {
        self.levels.len()
    }

    /// What the model gets as `timestep` in step `i`.
    ///
    /// # Panics
    /// If there is no such step, as for [`Descent::step`].
    pub fn timestep(&self, i: usize) -> usize {
        self.levels[i].timestep
    }

    /// √(1 - ᾱ) / √ᾱ at the first timestep: the noise that is removed.
    pub fn sigma(&self) -> f32 {
        self.levels[0].sigma / self.levels[0].alpha
    }

    /// Scales a noisy sample for the first step.
    pub fn scale(&self, sample: &mut [f32]) {
        for x in sample {
            *x *= self.levels[0].alpha;
        }
    }

    /// Takes step `i` by what the model predicts for the sample (Song et al. 2020, equation 12 with η = 0, arXiv 2010.02502). The last
    /// step makes it the mean of the clean samples that the model considers possible.
    pub fn step(&self, i: usize, output: &[f32], sample: &mut [f32]) {
        let Level { alpha, sigma, .. } = self.levels[i];
        let pairs = || output.iter().zip(sample.iter());
        let clean = pairs().map(|(output, x)| self.prediction.clean(*output, *x, alpha, sigma));
        let clean: Vec<f32> = clean.collect();
        let Some(next) = self.levels.get(i + 1) else {
            sample.copy_from_slice(&clean);
            return;
        };
        let noise = pairs().map(|(output, x)| self.prediction.noise(*output, *x, alpha, sigma));
        let noise: Vec<f32> = noise.collect();
        mix(next.alpha, next.sigma, &clean, &noise, sample);
    }
}

/// The place of the value that is nearest to `wanted`, among ascending ones.
fn nearest(ascending: &[f32], wanted: f32) -> usize {
    let above = ascending.partition_point(|value| *value < wanted);
    let below = above.saturating_sub(1);
    let above = above.min(ascending.len() - 1);
    match wanted - ascending[below] <= ascending[above] - wanted {
        true => below,
        false => above,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduler(prediction: &str) -> Scheduler {
        let json =
            format!(r#"{{"_class_name": "DDIMScheduler", "prediction_type": "{prediction}"}}"#);
        Scheduler::from_json(&json).unwrap()
    }

    /// A model that knows the clean sample arrives there in any number of steps.
    #[test]
    fn a_perfect_model_gives_the_clean_sample() {
        let clean = [0.5_f32, -0.25, 1.0];
        let noise = [1.0_f32, -0.5, 0.25];
        for (prediction, steps) in [("epsilon", 1), ("v_prediction", 5), ("sample", 3)] {
            let scheduler = scheduler(prediction);
            let descent = Descent::new(&scheduler, 0.2, steps).unwrap();
            assert_eq!(descent.steps(), steps);
            assert!((descent.sigma() - 0.2).abs() < 0.002);
            let sigma = descent.sigma();
            let mut sample = [0, 1, 2].map(|i| clean[i] + sigma * noise[i]);
            descent.scale(&mut sample);
            for i in 0..steps {
                let alpha_cumprod = scheduler.schedule().alphas_cumprod[descent.timestep(i)];
                let mut output = [0.0; 3];
                match prediction {
                    "epsilon" => output = noise,
                    "sample" => output = clean,
                    _ => crate::diffusion::velocity(alpha_cumprod, &clean, &noise, &mut output),
                }
                descent.step(i, &output, &mut sample);
            }
            for (got, want) in sample.iter().zip(clean) {
                assert!((got - want).abs() < 1e-5, "{prediction}: {got} {want}");
            }
        }
    }

    #[test]
    fn levels_beyond_the_schedule_are_its_ends() {
        let scheduler = scheduler("epsilon");
        assert_eq!(Descent::new(&scheduler, 0.0, 4).unwrap().timestep(0), 0);
        assert_eq!(Descent::new(&scheduler, 0.0, 4).unwrap().steps(), 1);
        assert_eq!(Descent::new(&scheduler, 1e9, 1).unwrap().timestep(0), 999);
        assert!(Descent::new(&scheduler, 1.0, 0).is_err());
    }

    #[test]
    fn the_nearest_level() {
        let levels = [1.0, 2.0, 4.0];
        let found = [0.0, 1.4, 1.6, 2.9, 3.1, 9.0].map(|wanted| nearest(&levels, wanted));
        assert_eq!(found, [0, 0, 1, 1, 2, 2]);
    }
}
