//! Removes noise from images with the denoiser of a diffusion pipeline, and measures how much there is.

use super::component::fault;
use super::{ScorerError, TiledDenoiser, finite_image};
use crate::decode::RowError;
use crate::diffusion::{Descent, Error, Scheduler, normals};
use crate::image::{About, Overlap, WholeModel, noise_level};

/// Half of the levels of 8 bits: from a value between -1 and 1 to levels.
pub const LEVELS: f32 = 127.5;
/// Below this standard deviation, of 255 levels, noise is less than what rounding to 8 bits adds and hides.
const LEAST: f32 = 0.5 / LEVELS;
/// The number of tiles that the noise is measured in.
const MEASURED: usize = 4;
/// The number of times that the interval of the noise level is halved: to a fiftieth of it, in logarithms.
const HALVINGS: usize = 6;
/// The change of a pixel that the divergence is measured with, in standard deviations of the noise.
const PROBE: f32 = 0.1;
/// The most runs of the model that an estimate takes: two for each tile, at both ends of the interval and at each halving.
const ESTIMATE_RUNS: usize = 2 * MEASURED * (2 + HALVINGS);

/// A denoiser that one thread owns. Images are float32 [C, H, W] with values from -1 to 1.
#[derive(Debug)]
pub struct ImageDenoising {
    denoiser: TiledDenoiser,
    scheduler: Scheduler,
}

/// An image without its noise.
#[derive(Debug)]
pub struct Denoised {
    /// `None` if there is no noise to remove, so that the image stays as it is.
    pub image: Option<Vec<f32>>,
    /// The standard deviation of the noise that was removed. Above the schedule's highest, that; below its lowest, the lowest.
    pub sigma: f32,
    steps: usize,
}

impl Denoised {
    /// The standard deviation of the noise in levels of 255, as text.
    pub fn levels(&self) -> String {
        match self.image {
            None => "0".to_owned(),
            Some(_) => format!("{:.2}", self.sigma * LEVELS),
        }
    }

    /// What the image's metadata says of it.
    pub fn about(&self) -> About {
        let mut about = vec![("sigma", self.levels())];
        if self.image.is_some() {
            about.push(("steps", self.steps.to_string()));
        }
        about
    }
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
    /// by more than one step. Without a `sigma`, it is estimated. The inner error is why there is no image.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn denoise(
        &mut self,
        image: &[f32],
        size: [usize; 2],
        sigma: Option<f32>,
        steps: usize,
    ) -> Result<Result<Denoised, RowError>, ScorerError> {
        let sigma = match sigma {
            Some(sigma) => sigma,
            None => self.estimate(image, size)?,
        };
        if sigma == 0.0 {
            return Ok(Ok(Denoised {
                image: None,
                sigma,
                steps: 0,
            }));
        }
        let overlap = self.denoiser.overlap(size);
        let (clean, sigma) = self.descend(image.to_vec(), &overlap, sigma, steps)?;
        Ok(finite_image(&clean).map(|()| Denoised {
            image: Some(clean),
            sigma,
            steps,
        }))
    }

    /// What images must be decoded for. `steps` are those of [`ImageDenoising::denoise`].
    pub fn whole_model(&self, steps: usize) -> WholeModel {
        let channels = self.denoiser.channels();
        WholeModel {
            channels,
            tile: self.denoiser.tile(),
            runs: [steps, ESTIMATE_RUNS],
            // The pixels twice, the image's values, the sample and the model's output with a variance, details of wavelets, the PNG file.
            bytes: 24 * channels,
            // The PNG file, which may be a little larger than its pixels.
            kept_bytes: 2 * channels,
        }
    }

    /// Denoises a gray image of one tile.
    ///
    /// # Errors
    /// ONNX Runtime fails, or the model returns NaN.
    pub fn warm_up(&mut self, steps: usize) -> Result<(), ScorerError> {
        let tile = self.denoiser.tile();
        let gray = vec![0.0; self.denoiser.channels() * tile[0] * tile[1]];
        match self.denoise(&gray, tile, Some(1.0), steps)? {
            Err(refused) => Err(fault(self.denoiser.file(), refused.detail.to_string())),
            Ok(_) => Ok(()),
        }
    }

    /// Returns the image without noise, and the standard deviation of the noise.
    fn descend(
        &mut self,
        mut sample: Vec<f32>,
        overlap: &Overlap,
        sigma: f32,
        steps: usize,
    ) -> Result<(Vec<f32>, f32), ScorerError> {
        let descent = Descent::new(&self.scheduler, sigma, steps);
        let descent = descent.expect("`new` has checked the scheduler");
        descent.scale(&mut sample);
        for i in 0..descent.steps() {
            let timestep = descent.timestep(i) as f32;
            let output = self.denoiser.predict(&sample, overlap, timestep, &[])?;
            // A predicted variance comes after the prediction.
            descent.step(i, &output[..sample.len()], &mut sample);
        }
        Ok((sample, descent.sigma()))
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
    fn estimate(&mut self, image: &[f32], size: [usize; 2]) -> Result<f32, ScorerError> {
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
            let (denoised, sigma) = self.descend(tile.clone(), &tile_overlap, sigma, 1)?;
            let step = PROBE * sigma;
            let moved = tile.iter().zip(&direction).map(|(x, e)| x + step * e);
            let (moved, _) = self.descend(moved.collect(), &tile_overlap, sigma, 1)?;
            for (i, &direction) in direction.iter().enumerate() {
                let residual = f64::from((denoised[i] - tile[i]) / sigma);
                let divergence = direction * (moved[i] - denoised[i]) / step;
                excess += residual * residual - 1.0 + f64::from(divergence);
            }
        }
        // A level that gives no number is not passed over: the denoised image is refused for it.
        Ok(excess > 0.0 || !excess.is_finite())
    }
}
