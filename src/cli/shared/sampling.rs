//! Takes a group of images from noise through all steps.

use std::ops::Range;

use crate::diffusion::folder::TIME_IDS;
use crate::diffusion::{Noise, Plan, guide};
use crate::failure::Failure;
use crate::onnx::{Condition, Denoiser, ScorerError};
use crate::shutdown::Shutdown;

/// What steers the denoiser. The default is nothing.
#[derive(Clone, Default)]
pub struct Guidance {
    pub conditions: Vec<Condition>,
    /// The conditions that classifier-free guidance moves away from, if there is any.
    pub negative: Option<Vec<Condition>>,
    pub scale: f32,
}

impl Guidance {
    /// The same for an image of another height and width, of which the model may be told.
    pub fn of_size(&self, size: [usize; 2]) -> Guidance {
        let mut other = self.clone();
        let negative = other.negative.iter_mut().flatten();
        for condition in other.conditions.iter_mut().chain(negative) {
            if condition.name == TIME_IDS {
                condition.values = time_ids(size);
            }
        }
        other
    }

    /// Writes what the model predicts, moved away from what it predicts for the negative conditions.
    ///
    /// # Errors
    /// As [`Denoiser::predict`].
    pub fn predict(
        &self,
        denoiser: &mut Denoiser,
        input: &[f32],
        timestep: f32,
        output: &mut Vec<f32>,
    ) -> Result<(), ScorerError> {
        let Guidance {
            conditions,
            negative,
            scale,
        } = self;
        denoiser.predict(input, timestep, conditions, output)?;
        if let Some(negative) = negative {
            let mut guided = Vec::with_capacity(output.len());
            denoiser.predict(input, timestep, negative, &mut guided)?;
            guide(&mut guided, output, *scale);
            *output = guided;
        }
        Ok(())
    }
}

/// What tells a model of Stable Diffusion XL that the image was never resized or cropped: original height and width, top and left of the
/// crop, target height and width (Podell et al. 2023, section 2.2, arXiv 2307.01952).
pub fn time_ids([height, width]: [usize; 2]) -> Vec<f32> {
    [height, width, 0, 0, height, width]
        .map(|side| side as f32)
        .to_vec()
}

/// A latent image that the sampler starts with, and the step at which it enters.
pub struct Start {
    /// [C, H, W].
    pub latent: Vec<f32>,
    pub step: usize,
}

/// Samples on one thread.
pub struct Sampler<'p> {
    plan: &'p Plan,
    guidance: &'p Guidance,
    start: Option<&'p Start>,
    denoiser: Denoiser,
    /// The number of values of an image.
    dimensions: usize,
}

/// Gets the number of a state, 0 before the first step, and the images, [N, C, H, W].
pub type States<'s> = dyn FnMut(usize, &[f32]) -> Result<(), Failure> + 's;

impl<'p> Sampler<'p> {
    pub fn new(
        plan: &'p Plan,
        guidance: &'p Guidance,
        start: Option<&'p Start>,
        denoiser: Denoiser,
        dimensions: usize,
    ) -> Sampler<'p> {
        Sampler {
            plan,
            guidance,
            start,
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
        let samples = noise.samples(images.clone());
        let mut noise = noise.of(&samples, self.dimensions);
        let mut sample = noise.initial().map_err(Failure::data)?;
        let first = self.start.map_or(0, |start| start.step);
        match self.start {
            None => self.plan.scale_noise(&mut sample),
            Some(start) => {
                let noise = sample.clone();
                let clean = start.latent.repeat(noise.len() / self.dimensions);
                self.plan.add_noise(first, &clean, &noise, &mut sample);
            }
        }
        states(0, &sample)?;
        let mut run = self.plan.start(self.dimensions);
        let mut input = vec![0.0; sample.len()];
        let mut output = Vec::new();
        for (i, &timestep) in self.plan.timesteps().iter().enumerate().skip(first) {
            if stop.is_requested() {
                return Ok(None);
            }
            self.plan.scale_input(i, &sample, &mut input);
            let denoiser = &mut self.denoiser;
            self.guidance
                .predict(denoiser, &input, timestep, &mut output)?;
            let noise = match self.plan.is_stochastic() {
                true => noise.of_step(i).map_err(Failure::data)?,
                false => Vec::new(),
            };
            must_be_finite("the model's output", &images, i, timestep, &output)?;
            run.step(i, &output, &mut sample, &noise)
                .map_err(Failure::data)?;
            must_be_finite("the sample", &images, i, timestep, &sample)?;
            states(i + 1 - first, &sample)?;
        }
        Ok(Some(sample))
    }
}

/// Returns the step at which an image enters by `--strength`.
pub fn first_step(strength: f64, plan: &Plan) -> Result<usize, Failure> {
    let first = plan.first_step(strength);
    first.map_err(|e| Failure::usage(format!("--strength {e}")))
}

/// Checks the decoded images.
pub fn images_must_be_finite(images: &Range<u64>, values: &[f32]) -> Result<(), Failure> {
    match values.iter().find(|value| !value.is_finite()) {
        None => Ok(()),
        Some(value) => Err(Failure::data(format!(
            "vae_decoder returned {value} for image {} or a later one of its batch: its float16 weights may overflow; export it as float32",
            images.start
        ))),
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
