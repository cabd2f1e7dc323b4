//! Runs a pipeline's VAE: its decoder makes images of latent images, its encoder latent images of images.

use std::borrow::Cow;

use ort::session::Session;
use ort::value::{Outlet, TensorElementType};

use super::component::{fault, find, floats, input, open, output};
use super::interrupt::Interrupt;
use super::{Runtime, ScorerError};
use crate::config::InferenceSettings;
use crate::diffusion::components::{DecoderFiles, EncoderFiles};

const INPUT: &str = "latent_sample";
const OUTPUT: &str = "sample";
/// What the encoder returns: the mean and the logarithm of the variance of latent images, [N, 2C, H, W]. Older exports return latent
/// images that the graph draws itself, [N, C, H, W].
const PARAMETERS: &str = "latent_parameters";

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
        let image = files.image(latent);
        let input = images(session.inputs(), INPUT, latent);
        let output = images(session.outputs(), OUTPUT, image);
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

/// An encoder on the CPU: it runs once for all images.
pub struct VaeEncoder {
    session: Session,
    file: String,
    input: (String, TensorElementType),
    output: (String, TensorElementType),
    image: [usize; 3],
    latent: [usize; 3],
    interrupt: Interrupt,
}

impl VaeEncoder {
    /// `image` and `latent`: channels, height and width of an image and of its latent image.
    ///
    /// # Errors
    /// [`ScorerError::Graph`] if the tensors are not those of an encoder.
    pub fn new(
        runtime: &Runtime,
        files: &EncoderFiles,
        image: [usize; 3],
        latent: [usize; 3],
    ) -> Result<VaeEncoder, ScorerError> {
        let file = &files.graph.file;
        let inference = InferenceSettings::on_cpu(1);
        let (session, _) = open(runtime, &files.graph, &inference, 0, &image)?;
        let input = images(session.inputs(), OUTPUT, image);
        let twice = [2 * latent[0], latent[1], latent[2]];
        let output = match find(session.outputs(), &[PARAMETERS]) {
            Some(_) => images(session.outputs(), PARAMETERS, twice),
            None => images(session.outputs(), INPUT, latent),
        };
        Ok(VaeEncoder {
            input: input.map_err(|problem| fault(file, problem))?,
            output: output.map_err(|problem| fault(file, problem))?,
            session,
            file: file.clone(),
            image,
            latent,
            interrupt: runtime.interrupt.clone(),
        })
    }

    /// Returns the latent image, [C, H, W], of one image, [C, H, W] from -1 to 1: the mean of its distribution, or what the graph draws.
    ///
    /// # Errors
    /// As [`Denoiser::predict`](super::Denoiser::predict).
    pub fn encode(&mut self, image: &[f32]) -> Result<Vec<f32>, ScorerError> {
        let [channels, height, width] = self.image;
        let (name, element) = &self.input;
        let value = input(*element, &[1, channels, height, width], image)?;
        let runs = self.interrupt.runs()?;
        let inputs = vec![(Cow::from(name.as_str()), value)];
        let outputs = self
            .session
            .run_with_options(inputs, runs)
            .map_err(|e| self.interrupt.failure(e))?;
        let [channels, height, width] = self.latent;
        let (name, element) = (self.output.0.as_str(), self.output.1);
        let times = if name == PARAMETERS { 2 } else { 1 };
        let shape = [1, times * channels, height, width];
        let mut found = Vec::new();
        output(&outputs, &self.file, (name, element), &shape, &mut found)?;
        found.truncate(channels * height * width);
        Ok(found)
    }
}

/// The tensor of one image with these channels, height and width.
fn images(
    tensors: &[Outlet],
    name: &str,
    image: [usize; 3],
) -> Result<(String, TensorElementType), String> {
    let tensor = find(tensors, &[name]);
    let tensor = tensor.ok_or_else(|| format!("has no input or output `{name}`"))?;
    let (element, sides) = floats(tensor)?;
    let wanted = [1, image[0], image[1], image[2]];
    let fits = sides.len() == 4
        && (sides.iter().zip(wanted)).all(|(&side, wanted)| side < 0 || side == wanted as i64);
    match fits {
        true => Ok((name.to_owned(), element)),
        false => Err(format!(
            "has `{name}` of {sides:?}, and {wanted:?} is needed"
        )),
    }
}
