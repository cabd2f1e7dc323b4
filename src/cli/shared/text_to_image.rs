//! What images from text need beside noise: the prompt's embeddings, the guidance, the size and the VAE's decoder.

use std::path::{Path, PathBuf};

use super::generative::first_given;
use super::image_to_image::ImageToImage;
use super::sampling::{Guidance, Start};
use crate::cli::shared::print::error_line;
use crate::diffusion::components::{DecoderFiles, TextEncoderFiles, TextToImageFiles};
use crate::diffusion::folder::{
    DenoiserFiles, HIDDEN_STATES, MOST_GUIDANCE, MOST_PIXELS, TIMESTEP_COND,
};
use crate::diffusion::{Plan, guidance_embedding};
use crate::failure::Failure;
use crate::onnx::{Condition, Runtime, TextEncoder};
use crate::prompt::PromptTokenizer;

/// The default strength of diffusers' pipelines.
const STRENGTH: f64 = 0.8;

#[derive(clap::Args)]
#[command(next_help_heading = "Images from text")]
pub struct TextArguments {
    /// What the images show
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// What the images do not show
    #[arg(long, value_name = "TEXT")]
    negative: Option<String>,
    /// How closely the images follow the prompt; up to 1, the model runs once a step instead of twice [default: the model's, else 7.5;
    /// 8.5 for a LatentConsistencyModelPipeline]
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true)]
    guidance: Option<f32>,
    /// Width and height in pixels, multiples of the VAE's scale (8 for Stable Diffusion) [default: the model's]
    #[arg(long, value_name = "WxH")]
    size: Option<String>,
    /// Start with this image and noise, in place of noise alone
    #[arg(long, value_name = "FILE", conflicts_with = "size")]
    image: Option<PathBuf>,
}

impl TextArguments {
    /// The options of a verb whose size is that of its image.
    pub fn of_prompt(
        prompt: Option<String>,
        negative: Option<String>,
        guidance: Option<f32>,
    ) -> TextArguments {
        TextArguments {
            prompt,
            negative,
            guidance,
            size: None,
            image: None,
        }
    }

    /// Returns the name of an option that was given.
    pub fn given(&self) -> Option<&'static str> {
        first_given(&[
            ("--prompt", self.prompt.is_some()),
            ("--negative", self.negative.is_some()),
            ("--guidance", self.guidance.is_some()),
            ("--size", self.size.is_some()),
            ("--image", self.image.is_some()),
        ])
    }
}

/// A prompt that is ready for the text encoder.
pub struct TextToImage {
    encoder: TextEncoderFiles,
    pub decoder: DecoderFiles,
    prompt: Vec<u32>,
    /// `None` without classifier-free guidance.
    negative: Option<Vec<u32>>,
    scale: f32,
    guidance_width: Option<usize>,
    image: Option<ImageToImage>,
    /// What an image's metadata says.
    pub about: Vec<(&'static str, String)>,
}

impl TextToImage {
    /// Checks the options, and gives the denoiser the shape of a latent image of this size.
    ///
    /// # Errors
    /// An option does not fit the pipeline in `folder`.
    pub fn new(
        arguments: &TextArguments,
        strength: Option<f64>,
        folder: &Path,
        pipeline: &str,
        files: Option<TextToImageFiles>,
        plan: &Plan,
        denoiser: &mut DenoiserFiles,
    ) -> Result<Option<TextToImage>, Failure> {
        if strength.is_some() && arguments.image.is_none() {
            return Err(Failure::usage(
                "--strength has no effect without --image: give --image, or leave --strength out",
            ));
        }
        let Some(files) = files else {
            return match arguments.given() {
                None => Ok(None),
                Some(name) => Err(Failure::usage(format!(
                    "{name} has no effect, because {} is a {pipeline}, which has no text encoder: leave {name} out",
                    folder.display()
                ))),
            };
        };
        let Some(prompt) = &arguments.prompt else {
            return Err(Failure::usage(format!(
                "{} is a {pipeline}, which draws from text: give --prompt TEXT",
                folder.display()
            )));
        };
        if let Some(size) = &arguments.size {
            let [width, height] = sides(size, files.decoder.scale)?;
            let scale = files.decoder.scale;
            denoiser.shape = [denoiser.shape[0], height / scale, width / scale];
        }
        let is_consistency = pipeline == "LatentConsistencyModelPipeline";
        if is_consistency && arguments.image.is_some() {
            return Err(Failure::usage(format!(
                "--image has no effect, because a {pipeline} takes other timesteps for it: leave --image out"
            )));
        }
        let image = arguments
            .image
            .as_deref()
            .map(|path| {
                let strength = strength.unwrap_or(STRENGTH);
                ImageToImage::new(path, strength, folder, &files.decoder, plan)
            })
            .transpose()?;
        if let Some(image) = &image {
            denoiser.shape = image.latent();
        }
        let of_class = if is_consistency { 8.5 } else { 7.5 };
        let scale = arguments.guidance.or(files.guidance).unwrap_or(of_class);
        if !(0.0..=MOST_GUIDANCE).contains(&scale) {
            return Err(Failure::usage(format!(
                "--guidance {scale}: it must be from 0 to {MOST_GUIDANCE}"
            )));
        }
        // As diffusers: a model that takes the guidance's embedding needs no second run.
        let guidance_width = denoiser.guidance_width;
        let is_guided = scale > 1.0 && guidance_width.is_none() && !is_consistency;
        if let (Some(_), false) = (&arguments.negative, is_guided) {
            error_line(format_args!(
                "--negative has no effect: there is no classifier-free guidance {}",
                match scale > 1.0 {
                    true => format!("in this {pipeline}"),
                    false => format!("with --guidance {scale}"),
                }
            ));
        }
        let tokenizer = PromptTokenizer::new(
            &files.tokenizer,
            files.encoder.positions,
            files.encoder.vocabulary,
        )
        .map_err(Failure::data)?;
        let negative = arguments.negative.as_deref().unwrap_or_default();
        let tokens = |name, text| tokens(&tokenizer, name, text);
        let [_, height, width] = files.decoder.image(denoiser.shape);
        let mut about = vec![
            ("prompt", prompt.clone()),
            ("guidance", scale.to_string()),
            ("size", format!("{width}x{height}")),
        ];
        if let Some(path) = &arguments.image {
            let strength = strength.unwrap_or(STRENGTH);
            about.push(("input", path.display().to_string()));
            about.push(("strength", strength.to_string()));
        }
        if is_guided {
            about.insert(1, ("negative", negative.to_owned()));
        }
        Ok(Some(TextToImage {
            prompt: tokens("--prompt", prompt)?,
            negative: is_guided
                .then(|| tokens("--negative", negative))
                .transpose()?,
            encoder: files.encoder,
            decoder: files.decoder,
            scale,
            guidance_width,
            image,
            about,
        }))
    }

    /// Runs the VAE's encoder on the image to start with, if there is one.
    pub fn start(&self, runtime: &Runtime) -> Result<Option<Start>, Failure> {
        let image = self.image.as_ref();
        image
            .map(|image| image.start(runtime, self.decoder.scale))
            .transpose()
    }

    /// Runs the text encoder. Its session ends before others begin.
    pub fn guidance(&self, runtime: &Runtime) -> Result<Guidance, Failure> {
        let mut encoder = TextEncoder::new(runtime, &self.encoder)?;
        let mut conditions = |ids: &[u32]| -> Result<Vec<Condition>, Failure> {
            let values = encoder.encode(ids)?;
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return Err(Failure::data(format!(
                    "{} returned {value}: it is unusable",
                    self.encoder.graph.file
                )));
            }
            let mut conditions = vec![Condition {
                name: HIDDEN_STATES,
                shape: vec![ids.len(), self.encoder.width],
                values,
            }];
            conditions.extend(self.guidance_width.map(|width| Condition {
                name: TIMESTEP_COND,
                shape: vec![width],
                values: guidance_embedding(self.scale, width),
            }));
            Ok(conditions)
        };
        Ok(Guidance {
            conditions: conditions(&self.prompt)?,
            negative: self.negative.as_deref().map(&mut conditions).transpose()?,
            scale: self.scale,
        })
    }
}

/// Returns the ids of a text, and says what was cut.
fn tokens(tokenizer: &PromptTokenizer, name: &str, text: &str) -> Result<Vec<u32>, Failure> {
    let tokens = tokenizer
        .tokens(text)
        .map_err(|problem| Failure::data(format!("{name}: {problem}")))?;
    if let Some(cut) = tokens.cut {
        error_line(format_args!(
            "{name} is longer than {} tokens, the model's limit: the last {} were cut: {}",
            tokenizer.length(),
            cut.tokens,
            cut.text
        ));
    }
    Ok(tokens.ids)
}

/// Width and height of `WxH`.
fn sides(size: &str, scale: usize) -> Result<[usize; 2], Failure> {
    let side = |text: &str| {
        let side = text.parse::<usize>().ok();
        side.filter(|side| (scale..=MOST_PIXELS as usize).contains(side) && side % scale == 0)
    };
    let both = size.split_once('x');
    let both = both.and_then(|(width, height)| Some([side(width)?, side(height)?]));
    both.ok_or_else(|| {
        Failure::usage(format!(
            "--size {size}: it must be WIDTHxHEIGHT in pixels, each a multiple of {scale} from {scale} to {MOST_PIXELS}"
        ))
    })
}
