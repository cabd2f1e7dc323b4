//! Makes images of one kind from images of another with a diffusion pipeline.

use super::component::fault;
use super::{ScorerError, TiledDenoiser, finite_image};
use crate::decode::RowError;
use crate::diffusion::{Plan, normals};
use crate::image::WholeModel;

/// The steps that a translation takes.
#[derive(Debug, Clone)]
pub struct Translation {
    pub plan: Plan,
    /// The first step that is taken.
    pub first: usize,
    /// Whether the model was trained on pairs, and sees the source in every step.
    pub is_paired: bool,
    /// The channels of the images that are made.
    pub out_channels: usize,
    pub seed: u64,
}

/// A model that one thread owns. Images are float32 [C, H, W] with values from -1 to 1.
#[derive(Debug)]
pub struct ImageTranslation {
    denoiser: TiledDenoiser,
    translation: Translation,
}

/// `None` after a stop. The inner error is why there is no image.
pub type Translated = Option<Result<Vec<f32>, RowError>>;

impl Translation {
    /// The number of runs of the model that an image of one tile takes.
    pub fn steps(&self) -> usize {
        self.plan.steps() - self.first
    }

    /// The bytes of memory for each pixel of an image whose source has these channels: the source, the noise, the sample, the model's input,
    /// its output with a variance, and what the scheduler computes and remembers.
    fn bytes(&self, channels: usize) -> usize {
        let remembered = if self.plan.is_multistep() { 24 } else { 0 };
        9 * channels + (36 + remembered) * self.out_channels
    }
}

impl ImageTranslation {
    pub fn new(denoiser: TiledDenoiser, translation: Translation) -> ImageTranslation {
        ImageTranslation {
            denoiser,
            translation,
        }
    }

    /// The channels of the images that it takes.
    pub fn channels(&self) -> usize {
        match self.translation.is_paired {
            true => self.denoiser.channels() - self.translation.out_channels,
            false => self.translation.out_channels,
        }
    }

    /// What images must be decoded for.
    pub fn whole_model(&self) -> WholeModel {
        let channels = self.channels();
        WholeModel {
            channels,
            tile: self.denoiser.tile(),
            runs: [self.translation.steps(), 0],
            bytes: self.translation.bytes(channels),
            kept_bytes: 0,
        }
    }

    /// Translates an image of this height and width, whose noise has this number. `stops` is asked before each step.
    ///
    /// By SDEdit (Meng et al. 2021, arXiv 2108.01073), or Palette (Saharia et al. 2021, arXiv 2111.05826) if the model was trained on
    /// pairs.
    ///
    /// # Errors
    /// ONNX Runtime fails, or the model's output does not fit the scheduler.
    pub fn translate(
        &mut self,
        source: &[f32],
        size: [usize; 2],
        number: u64,
        stops: impl Fn() -> bool,
    ) -> Result<Translated, ScorerError> {
        let Translation {
            plan,
            first,
            is_paired,
            out_channels,
            seed,
        } = &self.translation;
        let dimensions = out_channels * size[0] * size[1];
        let overlap = self.denoiser.overlap(size);
        let mut normals = normals(*seed, number);
        let mut noise = vec![0.0; dimensions];
        let mut sample = vec![0.0; dimensions];
        normals.fill(&mut noise);
        match is_paired {
            true => {
                sample.copy_from_slice(&noise);
                plan.scale_noise(&mut sample);
            }
            false => plan.add_noise(*first, source, &noise, &mut sample),
        }
        let mut run = plan.start(dimensions);
        let mut input = vec![0.0; dimensions];
        for (i, &timestep) in plan.timesteps().iter().enumerate().skip(*first) {
            if stops() {
                return Ok(None);
            }
            plan.scale_input(i, &sample, &mut input);
            let output = match is_paired {
                true => {
                    let both = [&input, source].concat();
                    self.denoiser.predict(&both, &overlap, timestep, &[])?
                }
                false => self.denoiser.predict(&input, &overlap, timestep, &[])?,
            };
            if let Err(error) = finite_image(&output) {
                return Ok(Some(Err(error)));
            }
            // As in `generate`: the noise of a step is drawn if any step adds some.
            if plan.is_stochastic() {
                normals.fill(&mut noise);
            }
            let noise = if plan.is_stochastic() {
                noise.as_slice()
            } else {
                &[]
            };
            run.step(i, &output, &mut sample, noise)
                .map_err(|e| fault(self.denoiser.file(), e.to_string()))?;
        }
        Ok(Some(finite_image(&sample).map(|()| sample)))
    }

    /// Translates a gray image of one tile.
    ///
    /// # Errors
    /// As [`ImageTranslation::translate`], and if the model returns NaN.
    pub fn warm_up(&mut self) -> Result<(), ScorerError> {
        let size = self.denoiser.tile();
        let source = vec![0.0; self.channels() * size[0] * size[1]];
        match self.translate(&source, size, 0, || false)? {
            Some(Err(refused)) => Err(fault(self.denoiser.file(), refused.detail.to_string())),
            _ => Ok(()),
        }
    }
}
