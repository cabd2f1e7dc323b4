//! What images from text need beside noise: the prompt's embeddings, the guidance, the size and the VAE's decoder.

use std::path::{Path, PathBuf};

use super::generative::first_given;
use super::image_to_image::ImageToImage;
use super::sampling::{Guidance, Start, time_ids};
use crate::cli::shared::print::error_line;
use crate::diffusion::components::{DecoderFiles, PromptFiles, TextEncoderFiles, TextToImageFiles};
use crate::diffusion::folder::{
    DenoiserFiles, HIDDEN_STATES, MOST_GUIDANCE, MOST_PIXELS, TEXT_EMBEDS, TIME_IDS, TIMESTEP_COND,
    XL_INPAINT, is_xl,
};
use crate::diffusion::{Plan, guidance_embedding};
use crate::failure::Failure;
use crate::onnx::{Condition, Encoded, Runtime, TextEncoder};
use crate::prompt::PromptTokenizer;

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
    /// 5 for Stable Diffusion XL, 8.5 for a LatentConsistencyModelPipeline]
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true)]
    guidance: Option<f32>,
    /// Width and height in pixels, multiples of the VAE's scale (8 for Stable Diffusion) [default: the model's]
    #[arg(long, value_name = "WxH")]
    size: Option<String>,
    /// Keep one part of the model in memory at a time, and draw on one core. The images are the same
    #[arg(long)]
    pub low_memory: bool,
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
            low_memory: false,
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
            ("--low-memory", self.low_memory),
            ("--image", self.image.is_some()),
        ])
    }
}

/// A prompt that is ready for the text encoders.
pub struct TextToImage {
    encoders: Vec<TextEncoderFiles>,
    pub decoder: DecoderFiles,
    /// The token ids for each encoder.
    prompt: Vec<Vec<u32>>,
    negative: Negative,
    scale: f32,
    /// Height and width of an image.
    size: [usize; 2],
    guidance_width: Option<usize>,
    image: Option<ImageToImage>,
    /// What an image's metadata says.
    pub about: Vec<(&'static str, String)>,
}

/// What classifier-free guidance moves away from.
enum Negative {
    /// There is no such guidance.
    Nothing,
    /// Zeros in place of embeddings.
    Zeros,
    /// The token ids for each encoder.
    Prompt(Vec<Vec<u32>>),
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
        let strength = strength.unwrap_or(usual_strength(pipeline));
        let image = arguments
            .image
            .as_deref()
            .map(|path| ImageToImage::new(path, strength, folder, &files.decoder, plan))
            .transpose()?;
        if let Some(image) = &image {
            denoiser.shape = image.latent();
        }
        let scale = arguments.guidance.or(files.guidance);
        let scale = scale.unwrap_or(usual_guidance(pipeline));
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
        let tokenizers = tokenizers(&files.encoders, folder)?;
        let negative = match (is_guided, arguments.negative.as_deref()) {
            (false, _) => Negative::Nothing,
            (true, None) if files.zeros_for_no_negative => Negative::Zeros,
            (true, text) => {
                let text = text.unwrap_or_default();
                Negative::Prompt(tokens(&tokenizers, "--negative", text)?)
            }
        };
        let [_, height, width] = files.decoder.image(denoiser.shape);
        let mut about = vec![
            ("prompt", prompt.clone()),
            ("guidance", scale.to_string()),
            ("size", format!("{width}x{height}")),
        ];
        if let Some(path) = &arguments.image {
            about.push(("input", path.display().to_string()));
            about.push(("strength", strength.to_string()));
        }
        if let Negative::Prompt(_) = negative {
            let text = arguments.negative.clone().unwrap_or_default();
            about.insert(1, ("negative", text));
        }
        let encoders = files.encoders.into_iter();
        Ok(Some(TextToImage {
            prompt: tokens(&tokenizers, "--prompt", prompt)?,
            negative,
            size: [height, width],
            encoders: encoders.map(|files| files.encoder).collect(),
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

    /// Runs the text encoders. The session of each ends before others begin.
    pub fn guidance(&self, runtime: &Runtime) -> Result<Guidance, Failure> {
        let (mut prompt, mut negative) = (Encoded::default(), Encoded::default());
        for (number, files) in self.encoders.iter().enumerate() {
            let mut encoder = TextEncoder::new(runtime, files)?;
            prompt.join(encoder.encode(&self.prompt[number])?, files.width);
            match &self.negative {
                Negative::Nothing => {}
                Negative::Zeros => negative = prompt.zeros(),
                Negative::Prompt(ids) => {
                    negative.join(encoder.encode(&ids[number])?, files.width);
                }
            }
            if let Some(value) = prompt.infinite().or(negative.infinite()) {
                return Err(Failure::data(format!(
                    "{} returned {value}: it is unusable",
                    files.graph.file
                )));
            }
        }
        Ok(Guidance {
            conditions: self.conditions(prompt),
            negative: match self.negative {
                Negative::Nothing => None,
                _ => Some(self.conditions(negative)),
            },
            scale: self.scale,
        })
    }

    /// What the denoiser gets of these embeddings.
    fn conditions(&self, Encoded { hidden, pooled }: Encoded) -> Vec<Condition> {
        let width = self.encoders.iter().map(|files| files.width).sum();
        let mut conditions = vec![Condition {
            name: HIDDEN_STATES,
            shape: vec![hidden.len() / width, width],
            values: hidden,
        }];
        if !pooled.is_empty() {
            conditions.push(Condition::vector(TEXT_EMBEDS, pooled));
            conditions.push(Condition::vector(TIME_IDS, time_ids(self.size)));
        }
        conditions.extend(
            self.guidance_width.map(|width| {
                Condition::vector(TIMESTEP_COND, guidance_embedding(self.scale, width))
            }),
        );
        conditions
    }
}

/// The default guidance of diffusers' pipeline of this class.
fn usual_guidance(pipeline: &str) -> f32 {
    match pipeline {
        "LatentConsistencyModelPipeline" => 8.5,
        _ if is_xl(pipeline) && pipeline != XL_INPAINT => 5.0,
        _ => 7.5,
    }
}

/// The default strength of diffusers' pipelines that start with an image.
fn usual_strength(pipeline: &str) -> f64 {
    match is_xl(pipeline) {
        true => 0.3,
        false => 0.8,
    }
}

/// The tokenizer of each encoder. They give the same number of tokens.
fn tokenizers(encoders: &[PromptFiles], folder: &Path) -> Result<Vec<PromptTokenizer>, Failure> {
    let tokenizers = encoders.iter().map(PromptTokenizer::new);
    let tokenizers: Vec<_> = tokenizers
        .collect::<Result<_, _>>()
        .map_err(Failure::data)?;
    let lengths: Vec<String> = tokenizers.iter().map(|t| t.length().to_string()).collect();
    match lengths.iter().all(|length| *length == lengths[0]) {
        true => Ok(tokenizers),
        false => Err(Failure::data(format!(
            "{}: the tokenizers give {} tokens, and must give the same number: one is another model's",
            folder.display(),
            lengths.join(" and ")
        ))),
    }
}

/// Returns the ids of a text for each encoder, and says what was cut.
fn tokens(
    tokenizers: &[PromptTokenizer],
    name: &str,
    text: &str,
) -> Result<Vec<Vec<u32>>, Failure> {
    let mut said = String::new();
    let mut ids = Vec::new();
    for tokenizer in tokenizers {
        let tokens = tokenizer.tokens(text);
        let tokens = tokens.map_err(|problem| Failure::data(format!("{name}: {problem}")))?;
        if let Some(cut) = tokens.cut {
            let told = format!(
                "{name} is longer than {} tokens, the model's limit: the last {} were cut: {}",
                tokenizer.length(),
                cut.tokens,
                cut.text
            );
            // Two tokenizers of the same tokens cut the same.
            if told != said {
                error_line(format_args!("{told}"));
                said = told;
            }
        }
        ids.push(tokens.ids);
    }
    Ok(ids)
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
