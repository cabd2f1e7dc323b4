//! Draws a part of an image anew so that it fits the rest (Lugmayr et al. 2022, "RePaint: Inpainting using Denoising Diffusion
//! Probabilistic Models", algorithm 1, arXiv 2201.09865).
//!
//! Each step takes the whole image from one noise level to the next, and replaces the known part by its noisy version of that level. To have both
//! parts agree, a step is taken several times: noise takes the image back to the level before, and the step is repeated.

use super::forward::{add_noise, mix};
use super::{Error, Normals, PredictionType, Scheduler};

/// The noise levels, from the first to the last.
#[derive(Debug, Clone)]
pub struct Repaint {
    prediction: PredictionType,
    levels: Vec<Level>,
    resamplings: usize,
}

#[derive(Debug, Clone, Copy)]
struct Level {
    timestep: i64,
    /// ᾱ.
    alpha_cumprod: f32,
}

impl Repaint {
    /// `steps`: the number of noise levels. `resamplings`: how often each step is taken, at least once.
    ///
    /// # Errors
    /// The scheduler cannot take that many steps, or is of flow matching.
    pub fn new(scheduler: &Scheduler, steps: usize, resamplings: usize) -> Result<Repaint, Error> {
        let prediction = scheduler.prediction();
        if prediction == PredictionType::Flow {
            return Err(Error::Config(
                "the scheduler is of flow matching, which RePaint is not made for".into(),
            ));
        }
        let plan = scheduler.plan(steps)?;
        let level = |timestep: &f32| {
            let timestep = *timestep as i64;
            let alpha_cumprod = scheduler.schedule().alpha_cumprod(timestep)?;
            Some(Level {
                timestep,
                alpha_cumprod,
            })
        };
        let levels: Vec<Level> = plan.timesteps().iter().filter_map(level).collect();
        let falls = levels
            .windows(2)
            .all(|pair| pair[0].timestep > pair[1].timestep);
        match !levels.is_empty() && falls {
            true => Ok(Repaint {
                prediction,
                levels,
                resamplings: resamplings.max(1),
            }),
            false => Err(Error::Steps(format!(
                "{steps} steps of {} are not one at each timestep, from noise to image",
                scheduler.class()
            ))),
        }
    }

    /// How often the model runs.
    pub fn runs(&self) -> usize {
        // The last step leads to the clean image, and is taken once.
        (self.levels.len() - 1) * self.resamplings + 1
    }

    /// Returns the image with its painted part drawn anew: `known` [C, H, W] from -1 to 1, `painted` [H, W]. `normals` gives standard normals for all values of the
    /// image: first the initial noise; then, for each run of the model, those of the step, those of the known part, and, if the step is repeated, those that
    /// lead back. The last run needs none. `predict` is the model. It gets the image and the timestep, and returns `None` to
    /// stop.
    ///
    /// # Errors
    /// Those of `predict`.
    pub fn paint<E>(
        &self,
        known: &[f32],
        painted: &[bool],
        normals: &mut Normals,
        mut predict: impl FnMut(&[f32], f32) -> Result<Option<Vec<f32>>, E>,
    ) -> Result<Option<Vec<f32>>, E> {
        let mut noise = vec![0.0; known.len()];
        let mut sample = vec![0.0; known.len()];
        let mut noisy = vec![0.0; known.len()];
        normals.fill(&mut sample);
        for (i, level) in self.levels.iter().enumerate() {
            let next = self.levels.get(i + 1).map(|level| level.alpha_cumprod);
            for left in (0..self.resamplings).rev() {
                let Some(output) = predict(&sample, level.timestep as f32)? else {
                    return Ok(None);
                };
                let Some(next) = next else {
                    self.step(*level, 1.0, &output, &mut sample, &noise);
                    compose(known, painted, &mut sample);
                    return Ok(Some(sample));
                };
                normals.fill(&mut noise);
                self.step(*level, next, &output, &mut sample, &noise);
                normals.fill(&mut noise);
                add_noise(next, known, &noise, &mut noisy);
                compose(&noisy, painted, &mut sample);
                if left > 0 {
                    normals.fill(&mut noise);
                    let kept = level.alpha_cumprod / next;
                    let ahead = sample.clone();
                    mix(
                        kept.sqrt(),
                        (1.0 - kept).sqrt(),
                        &ahead,
                        &noise,
                        &mut sample,
                    );
                }
            }
        }
        Ok(Some(sample))
    }

    /// A step of DDPM to the noise level of `next` (Song et al. 2020, equation 12 with η = 1, arXiv 2010.02502). The clean image is kept from -1 to
    /// 1.
    fn step(&self, level: Level, next: f32, output: &[f32], sample: &mut [f32], noise: &[f32]) {
        let at = level.alpha_cumprod;
        let (alpha, sigma) = (at.sqrt(), (1.0 - at).sqrt());
        let variance = (1.0 - next) / (1.0 - at) * (1.0 - at / next);
        let direction = (1.0 - next - variance).max(0.0).sqrt();
        for ((x, &output), &noise) in sample.iter_mut().zip(output).zip(noise) {
            let clean = self
                .prediction
                .clean(output, *x, alpha, sigma)
                .clamp(-1.0, 1.0);
            // The noise that belongs to the clean image that was kept.
            let predicted = (*x - alpha * clean) / sigma;
            *x = next.sqrt() * clean + direction * predicted + variance.sqrt() * noise;
        }
    }
}

/// Replaces all that is not painted.
fn compose(known: &[f32], painted: &[bool], sample: &mut [f32]) {
    let planes = sample.chunks_exact_mut(painted.len());
    for (plane, known) in planes.zip(known.chunks_exact(painted.len())) {
        for ((x, known), painted) in plane.iter_mut().zip(known).zip(painted) {
            if !painted {
                *x = *known;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::normals;

    #[test]
    fn the_known_part_stays_and_the_rest_follows_the_model() {
        let json = r#"{"_class_name": "DDIMScheduler", "prediction_type": "sample"}"#;
        let scheduler = Scheduler::from_json(json).unwrap();
        let repaint = Repaint::new(&scheduler, 7, 3).unwrap();
        let known = [0.1, 0.2, 0.3, 0.4];
        let painted = [false, true];
        let mut runs = 0;
        let found = repaint.paint(&known, &painted, &mut normals(1, 2), |sample, timestep| {
            runs += 1;
            assert_eq!((sample.len(), timestep.fract()), (4, 0.0));
            Ok::<_, ()>(Some(vec![0.9; 4]))
        });
        assert_eq!(found.unwrap().unwrap(), [0.1, 0.9, 0.3, 0.9]);
        assert_eq!((runs, repaint.runs()), (19, 19));
    }

    #[test]
    fn a_stop_ends_it() {
        let scheduler = Scheduler::from_json(r#"{"_class_name": "DDPMScheduler"}"#).unwrap();
        let repaint = Repaint::new(&scheduler, 5, 1).unwrap();
        let found = repaint.paint(&[0.0], &[true], &mut normals(0, 0), |_, _| {
            Ok::<_, ()>(None)
        });
        assert_eq!(found, Ok(None));
    }
}
