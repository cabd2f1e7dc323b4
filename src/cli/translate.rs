//! `residuald translate`: makes images of one kind from images of another, such as another camera's.

use std::path::PathBuf;

use crate::cli::shared::image_job::{ImageJob, Made, tasks};
use crate::cli::shared::images::{ImageArguments, say_notes};
use crate::cli::shared::latent_editor::{LatentEditing, PromptArguments};
use crate::config::Provider;
use crate::daemon::image_model::{AnyModel, ImageModel, STRENGTH};
use crate::diffusion::folder::ImagePipeline;
use crate::diffusion::normals;
use crate::failure::Failure;
use crate::image::{About, BitDepth, bytes};
use crate::onnx::{ImageTranslation, finite_image};

/// Make images of the model's kind from images of another kind, such as another camera's
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald translate models/parts camera-b --out as-camera-a
  residuald translate models/parts part.png --strength 0.3 --out translated.png
  residuald translate night-to-day night --out day
  residuald translate stable-diffusion photos --prompt 'a red brick wall at night' --out night

MODEL is a bundle for images of the wanted kind, with a denoiser (residuald-train images --generative), or a diffusion pipeline of a denoiser and a
scheduler: noise is added to the image, and removed by the model. Or it is a pipeline that was trained on pairs (\"conditioning\": \"concat\" in its
model_index.json): it draws from noise, and sees the image in every step. With a Stable Diffusion folder, --prompt says what the image shall show. The noise of an image depends on --seed and the image's bytes.
Existing images are skipped, so the same command goes on after Ctrl-C.")]
pub struct Arguments {
    /// Folder of the bundle or of the pipeline
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Image, or folder of images
    #[arg(value_name = "IMAGE")]
    input: PathBuf,
    /// Folder to write to, or a file .png for one image
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Share of the steps that the image goes through: 0 keeps it, 1 draws it anew; not for models that were trained on pairs [default: 0.5]
    #[arg(long, value_name = "STRENGTH", allow_negative_numbers = true)]
    strength: Option<f64>,
    /// Number of denoising steps from noise to image [default: the model's own; 50 if it does not say]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    steps: Option<u16>,
    /// Seed of the noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    prompt: PromptArguments,
    #[command(flatten)]
    images: ImageArguments,
    /// Run on all CPU cores or on the first GPU
    #[arg(long, value_enum, default_value_t = Provider::Cpu)]
    provider: Provider,
    /// Replace existing images
    #[arg(long)]
    force: bool,
    /// Print one JSON object at the end instead of text
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    match AnyModel::open(&arguments.model)? {
        AnyModel::Pixels(model) => pixels(arguments, &model),
        AnyModel::Latent(pipeline) => latent(arguments, *pipeline),
    }
}

/// With a pipeline for text, which works on latent images.
fn latent(arguments: &Arguments, pipeline: ImagePipeline) -> Result<(), Failure> {
    if pipeline.denoiser.source_channels > 0 {
        return Err(Failure::usage(format!(
            "{} is a {}, whose model needs a mask: use `residuald inpaint`",
            arguments.model.display(),
            pipeline.pipeline
        )));
    }
    let steps = arguments.steps.map(usize::from);
    let strength = arguments.strength.unwrap_or(STRENGTH);
    let (folder, provider) = (&arguments.model, arguments.provider);
    let editing = LatentEditing::new(
        folder,
        pipeline,
        &arguments.prompt,
        steps,
        strength,
        provider,
    )?;
    let mut about = editing.about.clone();
    about.push(("seed", arguments.seed.to_string()));
    let job = arguments.job(3, 3, about)?;
    let editors = editing.editors(job.images.len());
    job.run(editors, |editor, source, steps| {
        let mut noise = normals(arguments.seed, source.number);
        let edited = editor.edit(&source.values, source.size, None, &mut noise, steps)?;
        Ok(edited.map(|image| {
            finite_image(&image).map(|()| Made {
                bytes: bytes(&image, 3),
                about: Vec::new(),
                unchanged: false,
            })
        }))
    })
}

/// With a model of pixels.
fn pixels(arguments: &Arguments, model: &ImageModel) -> Result<(), Failure> {
    if let Some(name) = arguments.prompt.given() {
        return Err(Failure::usage(format!(
            "{name} has no effect, because {} does not draw from text: leave {name} out",
            arguments.model.display()
        )));
    }
    let steps = arguments.steps.map(usize::from);
    let translation = model
        .translation(arguments.strength, steps, arguments.seed)
        .map_err(|e| Failure::usage(format!("--{e}")))?;
    let out_channels = model.image_channels()?;
    let channels = match translation.is_paired {
        true => model.source_channels()?,
        false => out_channels,
    };
    let mut about = model.about();
    about.extend([
        ("seed", arguments.seed.to_string()),
        ("scheduler", model.scheduler.class().to_owned()),
        ("steps", translation.plan.steps().to_string()),
    ]);
    if !translation.is_paired {
        let strength = arguments.strength.unwrap_or(STRENGTH);
        about.push(("strength", strength.to_string()));
    }
    let job = arguments.job(channels, out_channels, about)?;
    let workers = model.denoisers(arguments.provider, job.images.len())?;
    let workers = workers
        .into_iter()
        .map(|denoiser| ImageTranslation::new(denoiser, translation.clone()));
    say_notes(model);
    job.run(workers.collect(), |worker, source, steps| {
        steps.expect(translation.steps());
        let stops = || match steps.must_stop() {
            true => true,
            false => {
                steps.count();
                false
            }
        };
        let translated = worker.translate(&source.values, source.size, source.number, stops)?;
        Ok(translated.map(|image| {
            image.map(|image| Made {
                bytes: bytes(&image, out_channels),
                about: Vec::new(),
                unchanged: false,
            })
        }))
    })
}

impl Arguments {
    fn job(&self, channels: usize, out_channels: usize, about: About) -> Result<ImageJob, Failure> {
        Ok(ImageJob {
            images: tasks(&self.input, &self.out)?,
            channels,
            out_channels,
            depth: BitDepth::new(self.images.bit_depth.unwrap_or(16)),
            overwrites: self.force,
            json: self.json,
            about,
        })
    }
}
