//! `residuald translate`: makes images of one kind from images of another, such as another camera's.

use std::path::PathBuf;

use crate::cli::shared::image_job::{
    ImageJob, Made, Outcome, Source, Steps, finite, number, tasks,
};
use crate::cli::shared::image_model::{AnyModel, ImageModel};
use crate::cli::shared::images::ImageArguments;
use crate::cli::shared::latent_editor::{LatentEditing, PromptArguments};
use crate::cli::shared::png_file::{About, bytes};
use crate::cli::shared::sampling::first_step;
use crate::config::Provider;
use crate::diffusion::folder::ImagePipeline;
use crate::diffusion::{Plan, normals};
use crate::failure::Failure;
use crate::image::BitDepth;
use crate::onnx::TiledDenoiser;

/// The default share of the steps.
const STRENGTH: f64 = 0.5;
/// The default number of steps of a pipeline that does not say it.
const STEPS: usize = 50;

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
model_index.json): it draws from noise, and sees the image in every step. With a Stable Diffusion folder, --prompt says what the image shall show. The noise of an image depends on --seed and the image's name in its
folder. Existing images are skipped, so the same command goes on after Ctrl-C.")]
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
        let mut noise = normals(arguments.seed, number(&source.name));
        let edited = editor.edit(&source.values, source.size, None, &mut noise, steps)?;
        Ok(edited.map(|image| {
            finite(&image).map(|()| Made {
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
    let is_paired = model.files.source_channels > 0;
    let out_channels = model.image_channels()?;
    let channels = match is_paired {
        true => model.source_channels()?,
        false => out_channels,
    };
    if is_paired && arguments.strength.is_some() {
        return Err(Failure::usage(format!(
            "--strength has no effect, because {} was trained on pairs and draws from noise alone: leave --strength out",
            arguments.model.display()
        )));
    }
    let steps = arguments
        .steps
        .map(usize::from)
        .or(model.steps)
        .unwrap_or(STEPS);
    let plan = model.scheduler.plan(steps).map_err(Failure::usage)?;
    let strength = arguments.strength.unwrap_or(STRENGTH);
    let first = match is_paired {
        true => 0,
        false => first_step(strength, &plan)?,
    };
    let mut about = model.about();
    about.extend([
        ("seed", arguments.seed.to_string()),
        ("scheduler", model.scheduler.class().to_owned()),
        ("steps", plan.steps().to_string()),
    ]);
    if !is_paired {
        about.push(("strength", strength.to_string()));
    }
    let job = arguments.job(channels, out_channels, about)?;
    let translator = Translator {
        plan,
        first,
        is_paired,
        out_channels,
        seed: arguments.seed,
    };
    let workers = model.denoisers(arguments.provider, job.images.len())?;
    model.say_notes();
    job.run(workers, |worker, source, steps| {
        translator.translate(worker, source, steps)
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

struct Translator {
    plan: Plan,
    /// The first step that is taken.
    first: usize,
    /// Whether the model sees the source in every step.
    is_paired: bool,
    out_channels: usize,
    seed: u64,
}

impl Translator {
    /// SDEdit (Meng et al. 2021, arXiv 2108.01073), or Palette (Saharia et al. 2021, arXiv 2111.05826) if the model was trained on
    /// pairs.
    fn translate(
        &self,
        denoiser: &mut TiledDenoiser,
        source: &Source,
        steps: &Steps<'_>,
    ) -> Result<Outcome, Failure> {
        let [height, width] = source.size;
        let dimensions = self.out_channels * height * width;
        let overlap = denoiser.overlap(source.size);
        let mut normals = normals(self.seed, number(&source.name));
        let mut noise = vec![0.0; dimensions];
        let mut sample = vec![0.0; dimensions];
        normals.fill(&mut noise);
        match self.is_paired {
            true => {
                sample.copy_from_slice(&noise);
                self.plan.scale_noise(&mut sample);
            }
            false => self
                .plan
                .add_noise(self.first, &source.values, &noise, &mut sample),
        }
        let mut run = self.plan.start(dimensions);
        let mut input = vec![0.0; dimensions];
        steps.expect(self.plan.steps() - self.first);
        for (i, &timestep) in self.plan.timesteps().iter().enumerate().skip(self.first) {
            if steps.must_stop() {
                return Ok(None);
            }
            self.plan.scale_input(i, &sample, &mut input);
            let output = match self.is_paired {
                true => {
                    let both = [input.as_slice(), &source.values].concat();
                    denoiser.predict(&both, &overlap, timestep, &[])?
                }
                false => denoiser.predict(&input, &overlap, timestep, &[])?,
            };
            if let Err(error) = finite(&output) {
                return Ok(Some(Err(error)));
            }
            // As in `generate`: the noise of a step is drawn if any step adds some.
            if self.plan.is_stochastic() {
                normals.fill(&mut noise);
            }
            let noise = if self.plan.is_stochastic() {
                noise.as_slice()
            } else {
                &[]
            };
            run.step(i, &output, &mut sample, noise)
                .map_err(Failure::data)?;
            steps.count();
        }
        Ok(Some(finite(&sample).map(|()| Made {
            bytes: bytes(&sample, self.out_channels),
            about: Vec::new(),
            unchanged: false,
        })))
    }
}
