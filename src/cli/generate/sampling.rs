//! Takes a group of images from noise through all steps.

use std::ops::Range;

use super::noise_file::NoiseFile;
use crate::diffusion::{Normals, Plan, normals};
use crate::failure::Failure;
use crate::onnx::Denoiser;
use crate::shutdown::Shutdown;

/// Where noise comes from.
pub struct Noise {
    pub seed: u64,
    pub file: Option<NoiseFile>,
}

/// Samples on one thread.
pub struct Sampler<'p> {
    plan: &'p Plan,
    denoiser: Denoiser,
    /// The number of values of an image.
    dimensions: usize,
}

/// Gets the number of a state, 0 before the first step, and the images, [N, C, H, W].
pub type States<'s> = dyn FnMut(usize, &[f32]) -> Result<(), Failure> + 's;

impl<'p> Sampler<'p> {
    pub fn new(plan: &'p Plan, denoiser: Denoiser, dimensions: usize) -> Sampler<'p> {
        Sampler {
            plan,
            denoiser,
            dimensions,
        }
    }

    /// Returns the drawn images, [N, C, H, W], or `None` if a stop was requested meanwhile.
    pub fn draw(
        &mut self,
        images: Range<u64>,
        noise: &Noise,
        stop: &Shutdown,
        states: &mut States<'_>,
    ) -> Result<Option<Vec<f32>>, Failure> {
        let mut source = Source::new(images.clone(), noise, self.dimensions);
        let mut sample = source.initial()?;
        self.plan.scale_noise(&mut sample);
        states(0, &sample)?;
        let mut run = self.plan.start(self.dimensions);
        let mut input = vec![0.0; sample.len()];
        let mut output = Vec::new();
        for (i, &timestep) in self.plan.timesteps().iter().enumerate() {
            if stop.is_requested() {
                return Ok(None);
            }
            self.plan.scale_input(i, &sample, &mut input);
            self.denoiser.predict(&input, timestep, &mut output)?;
            let noise = match self.plan.is_stochastic() {
                true => source.of_step(i)?,
                false => Vec::new(),
            };
            must_be_finite("the model's output", &images, i, timestep, &output)?;
            run.step(i, &output, &mut sample, &noise)
                .map_err(Failure::data)?;
            must_be_finite("the sample", &images, i, timestep, &sample)?;
            states(i + 1, &sample)?;
        }
        Ok(Some(sample))
    }
}

fn must_be_finite(
    what: &str,
    images: &Range<u64>,
    step: usize,
    timestep: f32,
    values: &[f32],
) -> Result<(), Failure> {
    let Some(at) = values.iter().position(|value| !value.is_finite()) else {
        return Ok(());
    };
    let count = (images.end - images.start) as usize;
    let image = images.start + (at / (values.len() / count)) as u64;
    Err(Failure::data(format!(
        "{what} is {} after step {step} (timestep {timestep}) of image {image}: the model and the scheduler do not fit each other",
        values[at]
    )))
}

/// The noise of a group of images, in sequence.
struct Source<'n> {
    images: Range<u64>,
    file: Option<&'n NoiseFile>,
    seeded: Vec<Normals>,
    dimensions: usize,
}

impl<'n> Source<'n> {
    fn new(images: Range<u64>, noise: &'n Noise, dimensions: usize) -> Source<'n> {
        let seeded = images.clone().map(|image| normals(noise.seed, image));
        Source {
            seeded: seeded.collect(),
            images,
            file: noise.file.as_ref(),
            dimensions,
        }
    }

    fn initial(&mut self) -> Result<Vec<f32>, Failure> {
        // The seed's sequence moves on, so that the noise of the steps does not depend on where the initial noise comes from.
        let seeded = self.next();
        match self.file {
            None => Ok(seeded),
            Some(file) => file.read(0, &self.images),
        }
    }

    fn of_step(&mut self, i: usize) -> Result<Vec<f32>, Failure> {
        match self.file.filter(|file| file.has_steps()) {
            None => Ok(self.next()),
            Some(file) => file.read(1 + i as u64, &self.images),
        }
    }

    fn next(&mut self) -> Vec<f32> {
        let mut all = vec![0.0; self.seeded.len() * self.dimensions];
        let images = all.chunks_exact_mut(self.dimensions);
        for (normals, image) in self.seeded.iter_mut().zip(images) {
            normals.fill(image);
        }
        all
    }
}
