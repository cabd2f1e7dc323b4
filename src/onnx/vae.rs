//! Runs the decoder of a pipeline's VAE: from latent images to images.

use std::borrow::Cow;

use ort::session::Session;
use ort::value::{Outlet, TensorElementType};

use super::component::{fault, find, floats, input, open, output};
use super::interrupt::Interrupt;
use super::{Runtime, ScorerError};
use crate::config::InferenceSettings;
use crate::diffusion::components::DecoderFiles;

const INPUT: &str = "latent_sample";
const OUTPUT: &str = "sample";

/// A decoder that one thread owns.
pub struct VaeDecoder {
    session: Session,
    file: String,
    input: (String, TensorElementType),
    output: (String, TensorElementType),
    /// Channels, height and width of a latent image.
    latent: [usize; 3],
    /// Channels, height and width of an image.
    image: [usize; 3],
    scaling_factor: f32,
    interrupt: Interrupt,
}

impl VaeDecoder {
    /// `latent`: channels, height and width of a latent image.
    ///
    /// # Errors
    /// As [`Denoiser::new`](super::Denoiser::new).
    pub fn new(
        runtime: &Runtime,
        files: &DecoderFiles,
        latent: [usize; 3],
        inference: &InferenceSettings,
        worker: usize,
    ) -> Result<VaeDecoder, ScorerError> {
        let file = &files.graph.file;
        let (session, _) = open(runtime, &files.graph, inference, worker, &latent)?;
        let of = |tensors: &[Outlet], name: &str, kind: &str, image: [usize; 3]| {
            let tensor = find(tensors, &[name]);
            let tensor = tensor.ok_or_else(|| format!("has no {kind} `{name}`"))?;
            let (element, sides) = floats(tensor)?;
            let wanted = [1, image[0], image[1], image[2]];
            let fits = sides.len() == 4
                && (sides.iter().zip(wanted))
                    .all(|(&side, wanted)| side < 0 || side == wanted as i64);
            match fits {
                true => Ok((name.to_owned(), element)),
                false => Err(format!(
                    "has `{name}` of {sides:?}, and {wanted:?} is needed"
                )),
            }
        };
        let image = files.image(latent);
        let input = of(session.inputs(), INPUT, "input", latent);
        let output = of(session.outputs(), OUTPUT, "output", image);
        Ok(VaeDecoder {
            input: input.map_err(|problem| fault(file, problem))?,
            output: output.map_err(|problem| fault(file, problem))?,
            session,
            file: file.clone(),
            latent,
            image,
            scaling_factor: files.scaling_factor,
            interrupt: runtime.interrupt.clone(),
        })
    }

    /// Returns the images, [N, C, H, W] from -1 to 1, of latent images, [N, C, H, W]. It runs on each alone, so that an image has the
    /// same bits in any batch.
    ///
    /// # Errors
    /// As [`Denoiser::predict`](super::Denoiser::predict).
    pub fn decode(&mut self, latents: &[f32]) -> Result<Vec<f32>, ScorerError> {
        let mut images = Vec::new();
        for latent in latents.chunks_exact(self.latent.iter().product()) {
            let scaled: Vec<f32> = latent.iter().map(|x| x / self.scaling_factor).collect();
            let [channels, height, width] = self.latent;
            let (name, element) = &self.input;
            let value = input(*element, &[1, channels, height, width], &scaled)?;
            let runs = self.interrupt.runs()?;
            let inputs = vec![(Cow::from(name.as_str()), value)];
            let outputs = self
                .session
                .run_with_options(inputs, runs)
                .map_err(|e| self.interrupt.failure(e))?;
            let [channels, height, width] = self.image;
            let shape = [1, channels, height, width];
            let tensor = (self.output.0.as_str(), self.output.1);
            output(&outputs, &self.file, tensor, &shape, &mut images)?;
        }
        Ok(images)
    }
}
