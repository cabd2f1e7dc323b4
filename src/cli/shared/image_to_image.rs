//! Starts the sampler at an image with noise, in place of noise alone (Meng et al. 2021, "SDEdit", arXiv 2108.01073).

use std::path::Path;

use super::sampling::{Start, first_step};
use crate::bounded;
use crate::diffusion::components::{DecoderFiles, EncoderFiles};
use crate::diffusion::folder::MOST_PIXELS;
use crate::diffusion::{LatentScale, Plan};
use crate::failure::Failure;
use crate::image::{BitDepth, Opened};
use crate::onnx::{Runtime, VaeEncoder};

/// An image that is ready for the VAE's encoder.
pub struct ImageToImage {
    encoder: EncoderFiles,
    latents: LatentScale,
    /// Channels, height and width of the latent image.
    latent: [usize; 3],
    /// From -1 to 1, [C, H, W].
    pixels: Vec<f32>,
    /// The first step.
    step: usize,
}

impl ImageToImage {
    /// Reads the image. `folder` is the pipeline's.
    ///
    /// # Errors
    /// The image does not fit the pipeline, or the strength leaves no step.
    pub fn new(
        path: &Path,
        strength: f64,
        folder: &Path,
        decoder: &DecoderFiles,
        plan: &Plan,
    ) -> Result<ImageToImage, Failure> {
        let name = path.display();
        if decoder.channels != 3 {
            return Err(Failure::data(format!(
                "--image is for models of RGB images: this one has {} channels",
                decoder.channels
            )));
        }
        let bytes = read(path)?;
        let most = MOST_PIXELS * MOST_PIXELS;
        let opened = Opened::new(&bytes, 3, most);
        let opened = opened.map_err(|e| Failure::data(format!("--image {name}: {e}")))?;
        let (width, height, scale) = (opened.width, opened.height, decoder.scale);
        let fits = |side: usize| side.is_multiple_of(scale) && side <= MOST_PIXELS as usize;
        if !fits(width) || !fits(height) {
            return Err(Failure::usage(format!(
                "--image {name} has {width}x{height} pixels: width and height must be multiples of {scale} up to {MOST_PIXELS}; crop or resize it"
            )));
        }
        let image = opened.decode(&BitDepth::new(16));
        let image = image.map_err(|e| Failure::data(format!("--image {name}: {e}")))?;
        let value = |byte: u8| 2.0 * (f32::from(byte) / 255.0) - 1.0;
        let channel = |c: usize| image.pixels.iter().skip(c).step_by(3);
        Ok(ImageToImage {
            encoder: EncoderFiles::read(folder).map_err(Failure::data)?,
            latents: decoder.latents.clone(),
            latent: [decoder.latent_channels, height / scale, width / scale],
            pixels: (0..3).flat_map(channel).map(|byte| value(*byte)).collect(),
            step: first_step(strength, plan)?,
        })
    }

    /// Channels, height and width of the latent image.
    pub fn latent(&self) -> [usize; 3] {
        self.latent
    }

    /// Runs the VAE's encoder. Its session ends before others begin.
    pub fn start(&self, runtime: &Runtime, scale: usize) -> Result<Start, Failure> {
        let [_, height, width] = self.latent;
        let image = [3, height * scale, width * scale];
        let mut encoder = VaeEncoder::new(runtime, &self.encoder, image, self.latent)?;
        let mut latent = encoder.encode(&self.pixels)?;
        self.latents.to_denoiser(&mut latent);
        if let Some(value) = latent.iter().find(|value| !value.is_finite()) {
            return Err(Failure::data(format!(
                "vae_encoder returned {value}: its float16 weights may overflow; export it as float32"
            )));
        }
        Ok(Start {
            latent,
            step: self.step,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed =
        |e: &dyn std::fmt::Display| Failure::data(format!("--image {}: {e}", path.display()));
    let metadata = path.metadata().map_err(|e| failed(&e))?;
    if !metadata.is_file() || metadata.len() > bounded::IMAGE {
        return Err(failed(&format!(
            "is not a regular file of at most {} MiB",
            bounded::IMAGE >> 20
        )));
    }
    bounded::read(path, bounded::IMAGE).map_err(|e| failed(&e))
}
