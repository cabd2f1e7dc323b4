//! Removes noise from images with the denoiser of a diffusion pipeline, and measures how much there is.

use super::{ScorerError, TiledDenoiser};
use crate::diffusion::{Descent, Error, Scheduler, normals};
use crate::image::{Overlap, noise_level};

/// Below this standard deviation, of 255 levels, noise is less than what rounding to 8 bits adds and hides.
const LEAST: f32 = 0.5 / 127.5;
/// The number of tiles that the noise is measured in.
const MEASURED: usize = 4;
/// The number of times that the interval of the noise level is halved: to a fiftieth of it, in logarithms.
const HALVINGS: usize = 6;
/// The change of a pixel that the divergence is measured with, in standard deviations of the noise.
const PROBE: f32 = 0.1;

/// A denoiser that one thread owns. Images are float32 [C, H, W] with values from -1 to 1.
#[derive(Debug)]
pub struct ImageDenoising {
    denoiser: TiledDenoiser,
    scheduler: Scheduler,
}

/// An image without its noise.
#[derive(Debug)]
pub struct Denoised {
    pub image: Vec<f32>,
    /// The standard deviation of the noise that was removed. Above the schedule's highest, that; below its lowest, the lowest.
    pub sigma: f32,
}

impl ImageDenoising {
    /// # Errors
    /// The scheduler is of flow matching.
    pub fn new(denoiser: TiledDenoiser, scheduler: Scheduler) -> Result<ImageDenoising, Error> {
        Descent::new(&scheduler, 1.0, 1)?;
        Ok(ImageDenoising {
            denoiser,
            scheduler,
        })
    }

    /// Returns the mean of the images that the image may have been before noise of the standard deviation `sigma`, or a sharper image
    /// by more than one step.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn denoise(
        &mut self,
        image: &[f32],
        size: [usize; 2],
        sigma: f32,
        steps: usize,
    ) -> Result<Denoised, ScorerError> {
        let overlap = self.denoiser.overlap(size);
        self.descend(image.to_vec(), &overlap, sigma, steps)
    }

    fn descend(
        &mut self,
        mut sample: Vec<f32>,
        overlap: &Overlap,
        sigma: f32,
        steps: usize,
    ) -> Result<Denoised, ScorerError> {
        let descent = Descent::new(&self.scheduler, sigma, steps);
        let descent = descent.expect("`new` has checked the scheduler");
        descent.scale(&mut sample);
        for i in 0..descent.steps() {
            let timestep = descent.timestep(i) as f32;
            let output = self.denoiser.predict(&sample, overlap, timestep, &[])?;
            // A predicted variance comes after the prediction.
            descent.step(i, &output[..sample.len()], &mut sample);
        }
        Ok(Denoised {
            image: sample,
            sigma: descent.sigma(),
        })
    }

    /// Estimates the standard deviation of an image's noise. 0 if there is less than the schedule begins with, or less than 8 bits
    /// can hold.
    ///
    /// It is the smaller one of two estimates that both tend to be too high. [`noise_level`] takes the image's own finest structure for noise. The other
    /// is the level of the greatest likelihood under the model. The density p of noisy images follows the heat
    /// equation ∂p/∂σ² = ½ ∇²p, and the score ∇ log p = (D(y) - y) / σ² follows from the denoised image D(y) (Robbins 1956; Efron 2011,
    /// "Tweedie's formula and selection bias"). So the likelihood of σ rises where ‖D(y) - y‖² / σ² is above N - div D(y), and is
    /// greatest where they are equal.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn estimate(&mut self, image: &[f32], size: [usize; 2]) -> Result<f32, ScorerError> {
        let Some(details) = noise_level(image, size) else {
            return Ok(0.0);
        };
        let overlap = self.denoiser.overlap(size);
        let count = overlap.tiles().min(MEASURED);
        let spread = |i: usize| (2 * i + 1) * overlap.tiles() / (2 * count);
        let tiles: Vec<Vec<f32>> = (0..count).map(|i| overlap.cut(image, spread(i))).collect();
        let least = LEAST.max(self.scheduler.schedule().sigmas()[0]);
        let (mut low, mut high) = (least, details);
        if details < least || self.rises(&tiles, details)? {
            return Ok(if details < least { 0.0 } else { details });
        }
        if !self.rises(&tiles, least)? {
            return Ok(0.0);
        }
        for _ in 0..HALVINGS {
            let middle = (low * high).sqrt();
            match self.rises(&tiles, middle)? {
                true => low = middle,
                false => high = middle,
            }
        }
        Ok((low * high).sqrt())
    }

    /// Whether the likelihood of noise of the standard deviation `sigma` rises with it. The divergence of D is measured along one random direction
    /// of ±1 (Ramani, Blu & Unser 2008, "Monte-Carlo SURE").
    fn rises(&mut self, tiles: &[Vec<f32>], sigma: f32) -> Result<bool, ScorerError> {
        let mut excess = 0.0;
        let tile_overlap = self.denoiser.overlap_of_tile();
        for (number, tile) in (0..).zip(tiles) {
            let mut direction = vec![0.0; tile.len()];
            normals(0, number).fill(&mut direction);
            for x in &mut direction {
                *x = 1.0_f32.copysign(*x);
            }
            let denoised = self.descend(tile.clone(), &tile_overlap, sigma, 1)?;
            let (sigma, step) = (denoised.sigma, PROBE * denoised.sigma);
            let moved = tile.iter().zip(&direction).map(|(x, e)| x + step * e);
            let moved = self.descend(moved.collect(), &tile_overlap, sigma, 1)?;
            for (i, &direction) in direction.iter().enumerate() {
                let residual = f64::from((denoised.image[i] - tile[i]) / sigma);
                let divergence = direction * (moved.image[i] - denoised.image[i]) / step;
                excess += residual * residual - 1.0 + f64::from(divergence);
            }
        }
        // A level that gives no number is not passed over: the denoised image is refused for it.
        Ok(excess > 0.0 || !excess.is_finite())
    }
}
