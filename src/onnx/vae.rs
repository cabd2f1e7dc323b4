//! Runs a pipeline's VAE: its decoder makes images of latent images, its encoder latent images of images.

use std::borrow::Cow;

use ort::session::Session;
use ort::value::{Outlet, TensorElementType};

use super::component::{fault, find, floats, input, open, output};
use super::interrupt::Interrupt;
use super::{Runtime, ScorerError};
use crate::config::InferenceSettings;
use crate::diffusion::LatentScale;
use crate::diffusion::components::{DecoderFiles, EncoderFiles};

const LATENT: &str = "latent_sample";
const IMAGE: &str = "sample";
/// What the encoder returns: the mean and the logarithm of the variance of latent images, [N, 2C, H, W]. Older exports return latent
/// images that the graph draws itself, [N, C, H, W].
const PARAMETERS: &str = "latent_parameters";

/// One side of a VAE: from one image or latent image to one of the other kind.
struct Half {
    session: Session,
    file: String,
    input: (String, TensorElementType),
    output: (String, TensorElementType),
    /// Channels, height and width of the input.
    from: [usize; 3],
    /// Channels, height and width of the output.
    to: [usize; 3],
    interrupt: Interrupt,
}

impl Half {
    fn new(
        runtime: &Runtime,
        file: &str,
        session: Session,
        (input, from): (&str, [usize; 3]),
        (output, to): (&str, [usize; 3]),
    ) -> Result<Half, ScorerError> {
        let input = images(session.inputs(), input, from);
        let output = images(session.outputs(), output, to);
        Ok(Half {
            input: input.map_err(|problem| fault(file, problem))?,
            output: output.map_err(|problem| fault(file, problem))?,
            session,
            file: file.to_owned(),
            from,
            to,
            interrupt: runtime.interrupt.clone(),
        })
    }

    /// Appends the output for one image, [C, H, W].
    fn run(&mut self, image: &[f32], found: &mut Vec<f32>) -> Result<(), ScorerError> {
        let one = |[channels, height, width]: [usize; 3]| [1, channels, height, width];
        let (name, element) = &self.input;
        let value = input(*element, &one(self.from), image)?;
        let runs = self.interrupt.runs()?;
        let inputs = vec![(Cow::from(name.as_str()), value)];
        let outputs = self
            .session
            .run_with_options(inputs, runs)
            .map_err(|e| self.interrupt.failure(e))?;
        let tensor = (self.output.0.as_str(), self.output.1);
        output(&outputs, &self.file, tensor, &one(self.to), found)
    }
}

/// A decoder that one thread owns.
pub struct VaeDecoder {
    half: Half,
    latents: LatentScale,
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
        let (session, _) = open(runtime, &files.graph, inference, worker, &latent)?;
        let image = files.image(latent);
        let (from, to) = ((LATENT, latent), (IMAGE, image));
        Ok(VaeDecoder {
            half: Half::new(runtime, &files.graph.file, session, from, to)?,
            latents: files.latents.clone(),
        })
    }

    /// Returns the images, [N, C, H, W] from -1 to 1, of latent images, [N, C, H, W]. It runs on each alone, so that an image has the
    /// same bits in any batch.
    ///
    /// # Errors
    /// As [`Denoiser::predict`](super::Denoiser::predict).
    pub fn decode(&mut self, latents: &[f32]) -> Result<Vec<f32>, ScorerError> {
        let mut images = Vec::new();
        for latent in latents.chunks_exact(self.half.from.iter().product()) {
            self.half
                .run(&self.latents.to_decoder(latent), &mut images)?;
        }
        Ok(images)
    }
}

/// An encoder on the CPU: it runs once for all images.
pub struct VaeEncoder {
    half: Half,
    /// The number of values of a latent image.
    dimensions: usize,
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
        let inference = InferenceSettings::on_cpu(1);
        let (session, _) = open(runtime, &files.graph, &inference, 0, &image)?;
        let twice = [2 * latent[0], latent[1], latent[2]];
        let to = match find(session.outputs(), &[PARAMETERS]) {
            Some(_) => (PARAMETERS, twice),
            None => (LATENT, latent),
        };
        Ok(VaeEncoder {
            half: Half::new(runtime, &files.graph.file, session, (IMAGE, image), to)?,
            dimensions: latent.iter().product(),
        })
    }

    /// Returns the latent image, [C, H, W], of one image, [C, H, W] from -1 to 1: the mean of its distribution, or what the graph draws.
    ///
    /// # Errors
    /// As [`Denoiser::predict`](super::Denoiser::predict).
    pub fn encode(&mut self, image: &[f32]) -> Result<Vec<f32>, ScorerError> {
        let mut found = Vec::new();
        self.half.run(image, &mut found)?;
        // The mean comes first.
        found.truncate(self.dimensions);
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
