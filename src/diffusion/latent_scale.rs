//! How latent images are scaled between a VAE and the denoiser.

use std::path::Path;

use serde_json::{Map, Value};

use super::Error;
use super::folder::failed;

/// The default of diffusers' `AutoencoderKL`.
const FACTOR: f32 = 0.18215;

/// The scale, and what is known of each channel of a latent image.
#[derive(Debug, Clone)]
pub struct LatentScale {
    factor: f32,
    /// Mean and standard deviation of each channel. Empty if the VAE's configuration has none.
    channels: Vec<[f32; 2]>,
}

impl LatentScale {
    /// Reads `scaling_factor`, and with `is_xl` also `latents_mean` and `latents_std`, which other pipelines of diffusers ignore.
    pub(super) fn read(
        path: &Path,
        config: &Map<String, Value>,
        channels: usize,
        is_xl: bool,
        notes: &mut Vec<String>,
    ) -> Result<LatentScale, Error> {
        let is_given = |field: &str| config.get(field).is_some_and(|value| !value.is_null());
        let factor = match config.get("scaling_factor") {
            None => FACTOR,
            Some(factor) => positive(factor)
                .ok_or_else(|| failed(path, "`scaling_factor` must be a number above 0"))?,
        };
        let is_normal = is_xl && is_given("latents_mean") && is_given("latents_std");
        let ignored = ["shift_factor", "latents_mean", "latents_std"].into_iter();
        let ignored = ignored.filter(|field| is_given(field));
        let ignored: Vec<&str> = ignored
            .filter(|field| !is_normal || *field == "shift_factor")
            .collect();
        if !ignored.is_empty() {
            notes.push(format!(
                "{}: {} ignored, as in diffusers' pipelines of this class",
                path.display(),
                ignored.join(", ")
            ));
        }
        let numbers = |field: &str, read: fn(&Value) -> Option<f32>| {
            let values = config.get(field).and_then(Value::as_array);
            let values: Option<Vec<f32>> = values.and_then(|all| all.iter().map(read).collect());
            values.filter(|all| all.len() == channels).ok_or_else(|| {
                let problem = format!("`{field}` must be {channels} numbers, a deviation above 0");
                failed(path, &problem)
            })
        };
        let channels = match is_normal {
            true => {
                let means = numbers("latents_mean", finite)?;
                let deviations = numbers("latents_std", positive)?;
                let both = means.into_iter().zip(deviations);
                both.map(|(mean, deviation)| [mean, deviation]).collect()
            }
            false => Vec::new(),
        };
        Ok(LatentScale { factor, channels })
    }

    /// Scales what the VAE's encoder made, [C, H, W], for the denoiser.
    pub fn to_denoiser(&self, latent: &mut [f32]) {
        match self.channels.len() {
            0 => latent.iter_mut().for_each(|x| *x *= self.factor),
            count => {
                let planes = latent.chunks_exact_mut(latent.len() / count);
                for (plane, [mean, deviation]) in planes.zip(&self.channels) {
                    for x in plane {
                        *x = (*x - mean) * self.factor / deviation;
                    }
                }
            }
        }
    }

    /// Returns a latent image, [C, H, W], as the VAE's decoder takes it.
    pub fn to_decoder(&self, latent: &[f32]) -> Vec<f32> {
        match self.channels.len() {
            0 => latent.iter().map(|x| x / self.factor).collect(),
            count => {
                let planes = latent.chunks_exact(latent.len() / count);
                let planes = planes.zip(&self.channels);
                planes
                    .flat_map(|(plane, [mean, deviation])| {
                        plane
                            .iter()
                            .map(move |x| x * deviation / self.factor + mean)
                    })
                    .collect()
            }
        }
    }
}

fn finite(value: &Value) -> Option<f32> {
    let value = value.as_f64()? as f32;
    value.is_finite().then_some(value)
}

fn positive(value: &Value) -> Option<f32> {
    finite(value).filter(|value| *value > 0.0)
}
