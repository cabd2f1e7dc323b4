//! Changes images with a pipeline of latent images, such as Stable Diffusion: from noise and an image, and only where a mask says.

use std::path::Path;

use super::generative::first_given;
use super::image_job::Steps;
use super::sampling::{Guidance, first_step};
use super::text_to_image::{TextArguments, TextToImage};
use crate::config::{InferenceSettings, Provider};
use crate::diffusion::components::EncoderFiles;
use crate::diffusion::folder::{DenoiserFiles, ImagePipeline};
use crate::diffusion::{Normals, Plan};
use crate::failure::Failure;
use crate::image::Overlap;
use crate::onnx::{Denoiser, Interrupt, Runtime, VaeDecoder, VaeEncoder, inference_on};

/// The default number of steps of diffusers' pipelines.
const STEPS: usize = 50;

#[derive(clap::Args)]
#[command(next_help_heading = "Pipelines for text")]
pub struct PromptArguments {
    /// What the image shows
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// What the image does not show
    #[arg(long, value_name = "TEXT")]
    negative: Option<String>,
    /// How closely the image follows the prompt [default: the model's, else 7.5; 5 for Stable Diffusion XL that is not for inpainting]
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true)]
    guidance: Option<f32>,
}

impl PromptArguments {
    /// Returns the name of an option that was given.
    pub fn given(&self) -> Option<&'static str> {
        first_given(&[
            ("--prompt", self.prompt.is_some()),
            ("--negative", self.negative.is_some()),
            ("--guidance", self.guidance.is_some()),
        ])
    }
}

/// What all images have in common.
pub struct LatentEditing {
    plan: Plan,
    /// The first step that is taken.
    first: usize,
    denoiser: DenoiserFiles,
    text: TextToImage,
    encoder: EncoderFiles,
    guidance: Guidance,
    runtime: Runtime,
    inference: InferenceSettings,
    /// What an image's metadata says.
    pub about: Vec<(&'static str, String)>,
}

/// An editor that one thread owns. It keeps its sessions for images of one size.
pub struct LatentEditor<'e> {
    common: &'e LatentEditing,
    worker: usize,
    sessions: Option<Sessions>,
}

struct Sessions {
    /// Height and width of the latent image.
    latent: [usize; 2],
    encoder: VaeEncoder,
    denoiser: Denoiser,
    decoder: VaeDecoder,
    guidance: Guidance,
}

impl LatentEditing {
    /// `strength`: the share of the steps that are taken.
    ///
    /// # Errors
    /// An option does not fit the pipeline in `folder`, or a component is missing.
    pub fn new(
        folder: &Path,
        pipeline: ImagePipeline,
        prompt: &PromptArguments,
        steps: Option<usize>,
        strength: f64,
        provider: Provider,
    ) -> Result<LatentEditing, Failure> {
        let ImagePipeline {
            pipeline: name,
            steps: usual,
            scheduler,
            mut denoiser,
            text,
            ..
        } = pipeline;
        if name == "LatentConsistencyModelPipeline" || provider == Provider::TensorRt {
            return Err(Failure::usage(format!(
                "a {name} on {provider:?} cannot change an image here: give a Stable Diffusion folder, and cpu or cuda"
            )));
        }
        let plan = scheduler.plan(steps.or(usual).unwrap_or(STEPS));
        let plan = plan.map_err(Failure::usage)?;
        let arguments = TextArguments::of_prompt(
            prompt.prompt.clone(),
            prompt.negative.clone(),
            prompt.guidance,
        );
        let text = TextToImage::new(&arguments, None, folder, &name, text, &plan, &mut denoiser)?;
        let text = text.ok_or_else(|| Failure::internal("a pipeline without text"))?;
        if text.decoder.channels != 3 {
            return Err(Failure::data(format!(
                "the pipeline makes images of {} channels, and RGB images have 3",
                text.decoder.channels
            )));
        }
        let latent = text.decoder.latent_channels;
        if denoiser.source_channels != 0 && denoiser.source_channels != 1 + latent {
            return Err(Failure::data(format!(
                "the denoiser takes {} channels: a pipeline that inpaints has {latent}, or {} with the mask and the masked image",
                denoiser.shape[0],
                1 + 2 * latent
            )));
        }
        let runtime = Runtime::load(Interrupt::default())?;
        let mut about = text.about.clone();
        about.retain(|(name, _)| *name != "size");
        about.extend([
            ("scheduler", scheduler.class().to_owned()),
            ("steps", plan.steps().to_string()),
            ("strength", strength.to_string()),
        ]);
        Ok(LatentEditing {
            first: first_step(strength, &plan)?,
            plan,
            denoiser,
            encoder: EncoderFiles::read(folder).map_err(Failure::data)?,
            guidance: text.guidance(&runtime)?,
            text,
            runtime,
            inference: inference_on(provider).0,
            about,
        })
    }

    /// One editor for each core on a CPU, and at most one for each image.
    pub fn editors(&self, images: usize) -> Vec<LatentEditor<'_>> {
        let workers = self.inference.workers.min(images.max(1));
        let editor = |worker| LatentEditor {
            common: self,
            worker,
            sessions: None,
        };
        (0..workers).map(editor).collect()
    }
}

impl LatentEditor<'_> {
    /// Returns a changed image, [3, H, W] from -1 to 1, of an image `values` of this height and width; `None` if a stop was requested.
    /// With `marked`, [H, W], all else keeps its latent values, as in diffusers' StableDiffusionInpaintPipeline. Sides that are no multiples of the VAE's
    /// scale are continued by reflection. `normals` gives the initial noise, then that of each step.
    ///
    /// # Errors
    /// A graph does not fit, or ONNX Runtime fails.
    pub fn edit(
        &mut self,
        values: &[f32],
        size: [usize; 2],
        marked: Option<&[bool]>,
        normals: &mut Normals,
        steps: &Steps<'_>,
    ) -> Result<Option<Vec<f32>>, Failure> {
        let common = self.common;
        let scale = common.text.decoder.scale;
        let padded = size.map(|side| side.next_multiple_of(scale));
        let padding = Overlap::new(size, padded);
        let latent = padded.map(|side| side / scale);
        let channels = common.text.decoder.latent_channels;
        let dimensions = channels * latent[0] * latent[1];
        let values = padding.cut(values, 0);
        let mask = marked.map(|marked| {
            let marked: Vec<f32> = marked
                .iter()
                .map(|marked| f32::from(u8::from(*marked)))
                .collect();
            padding.cut(&marked, 0)
        });
        let sessions = self.sessions(latent)?;
        let clean = encoded(sessions, &values, common)?;
        // What the model gets behind the noisy image.
        let mut joined = Vec::new();
        let small = mask.as_ref().map(|mask| nearest(mask, padded[1], scale));
        if let (Some(mask), Some(small)) = (&mask, &small)
            && common.denoiser.source_channels > 0
        {
            let pixels = values.iter().zip(mask.iter().cycle());
            let masked: Vec<f32> = pixels
                .map(|(x, mask)| if *mask < 0.5 { *x } else { 0.0 })
                .collect();
            joined.extend_from_slice(small);
            joined.extend(encoded(sessions, &masked, common)?);
        }
        let mut initial = vec![0.0; dimensions];
        normals.fill(&mut initial);
        let mut sample = initial.clone();
        match common.first == 0 && mask.is_some() {
            true => common.plan.scale_noise(&mut sample),
            false => common
                .plan
                .add_noise(common.first, &clean, &initial, &mut sample),
        }
        steps.expect(common.plan.steps() - common.first);
        let mut run = common.plan.start(dimensions);
        let (mut input, mut output) = (vec![0.0; dimensions], Vec::new());
        let mut noise = vec![0.0; dimensions];
        let mut known = vec![0.0; dimensions];
        for (i, &timestep) in common
            .plan
            .timesteps()
            .iter()
            .enumerate()
            .skip(common.first)
        {
            if steps.must_stop() {
                return Ok(None);
            }
            common.plan.scale_input(i, &sample, &mut input);
            let (guidance, denoiser) = (&sessions.guidance, &mut sessions.denoiser);
            let seen = [input.as_slice(), &joined].concat();
            guidance.predict(denoiser, &seen, timestep, &mut output)?;
            let noise = match common.plan.is_stochastic() {
                true => {
                    normals.fill(&mut noise);
                    noise.as_slice()
                }
                false => &[],
            };
            run.step(i, &output, &mut sample, noise)
                .map_err(Failure::data)?;
            // A model that does not see the mask gets the known part back after each step.
            if let (Some(small), true) = (&small, joined.is_empty()) {
                match i + 1 < common.plan.steps() {
                    true => common.plan.add_noise(i + 1, &clean, &initial, &mut known),
                    false => known.copy_from_slice(&clean),
                }
                let mask = small.iter().cycle();
                for ((x, known), mask) in sample.iter_mut().zip(&known).zip(mask) {
                    *x = (1.0 - mask) * known + mask * *x;
                }
            }
            steps.count();
        }
        let image = sessions.decoder.decode(&sample)?;
        Ok(Some(cropped(&image, padded, size)))
    }

    fn sessions(&mut self, latent: [usize; 2]) -> Result<&mut Sessions, Failure> {
        let fits = |sessions: &Sessions| sessions.latent == latent;
        if !self.sessions.as_ref().is_some_and(fits) {
            // The sessions of the other size end before these begin.
            self.sessions = None;
        }
        match &mut self.sessions {
            Some(sessions) => Ok(sessions),
            none => Ok(none.insert(Sessions::new(self.common, latent, self.worker)?)),
        }
    }
}

impl Sessions {
    fn new(common: &LatentEditing, latent: [usize; 2], worker: usize) -> Result<Sessions, Failure> {
        let LatentEditing {
            runtime,
            inference,
            denoiser,
            text,
            ..
        } = common;
        let [height, width] = latent;
        let image = [text.decoder.latent_channels, height, width];
        let input = [denoiser.shape[0], height, width];
        let [_, rows, columns] = text.decoder.image(image);
        Ok(Sessions {
            latent,
            guidance: common.guidance.of_size([rows, columns]),
            encoder: VaeEncoder::new(runtime, &common.encoder, text.decoder.image(image), image)?,
            denoiser: Denoiser::of_shape(runtime, denoiser, input, inference, worker, 1)?,
            decoder: VaeDecoder::new(runtime, &text.decoder, image, inference, worker)?,
        })
    }
}

/// The latent image of an image, scaled for the model.
fn encoded(
    sessions: &mut Sessions,
    values: &[f32],
    common: &LatentEditing,
) -> Result<Vec<f32>, Failure> {
    let mut latent = sessions.encoder.encode(values)?;
    common.text.decoder.latents.to_denoiser(&mut latent);
    Ok(latent)
}

/// The first pixel of each square of `scale` x `scale`, as torch's nearest interpolation.
fn nearest(mask: &[f32], width: usize, scale: usize) -> Vec<f32> {
    let rows = mask.chunks_exact(width).step_by(scale);
    rows.flat_map(|row| row.iter().copied().step_by(scale))
        .collect()
}

/// Without what was continued at the right and at the bottom.
fn cropped(image: &[f32], [height, width]: [usize; 2], size: [usize; 2]) -> Vec<f32> {
    let planes = image.chunks_exact(height * width);
    let rows = planes.flat_map(|plane| plane.chunks_exact(width).take(size[0]));
    rows.flat_map(|row| &row[..size[1]]).copied().collect()
}
