//! `residuald inpaint`: draws the marked parts of images anew, so that they fit the rest.

mod marks;
mod painter;

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use marks::Marks;
use painter::{Examiner, Painter, Worker};

use crate::bundle::MANIFEST;
use crate::cli::shared::image_job::{ImageJob, Made, Source, tasks};
use crate::cli::shared::images::{ImageArguments, say_notes};
use crate::cli::shared::latent_editor::{LatentEditing, PromptArguments};
use crate::cli::shared::threshold::default_rule;
use crate::config::Provider;
use crate::daemon::image_model::{AnyModel, ImageModel};
use crate::daemon::model;
use crate::diffusion::folder::ImagePipeline;
use crate::diffusion::{Repaint, normals};
use crate::failure::Failure;
use crate::image::{About, BitDepth, bytes};
use crate::onnx::{Scorer, finite_image, inference_on};

/// The default number of resamplings.
const RESAMPLINGS: u8 = 5;
/// The default number of rounds.
const ROUNDS: usize = 8;
/// The default number of steps of a pipeline that does not say it.
const STEPS: usize = 50;

/// Draw marked parts of images anew, so that they fit the rest; all other pixels keep their values
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald inpaint models/parts part.png --mask mask.png --out repaired.png
  residuald score parts --bundle models/parts --out verdicts.ndjson
  residuald inpaint stable-diffusion wall.png --mask mask.png --prompt 'a red brick wall' --out repaired.png
  residuald inpaint models/parts parts --regions verdicts.ndjson --out repaired

MODEL is a bundle for images with a denoiser (residuald-train images --generative), a diffusion pipeline of a denoiser and a scheduler, or a
Stable Diffusion folder, which needs --prompt and vae_encoder. In a mask, pixels of level 128 and above are drawn anew. The noise of an image depends on --seed and the image's bytes. Existing images
are skipped, so the same command goes on after Ctrl-C.")]
pub struct Arguments {
    /// Folder of the bundle or of the pipeline
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Image, or folder of images
    #[arg(value_name = "IMAGE")]
    input: PathBuf,
    /// Image in black and white: what is white is drawn anew
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "regions",
        conflicts_with = "regions"
    )]
    mask: Option<PathBuf>,
    /// Verdicts that `residuald score --out` wrote: their regions are drawn anew
    #[arg(long, value_name = "FILE.ndjson")]
    regions: Option<PathBuf>,
    /// Folder to write to, or a file .png for one image
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Number of noise levels [default: the bundle's steps; 50 for a pipeline]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    steps: Option<u16>,
    /// How often each step is taken: more make the drawn part fit better; not for pipelines for text [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100))]
    resamplings: Option<u8>,
    /// How often an image is drawn while the bundle finds regions in the result; with --regions and a bundle [default: 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100))]
    rounds: Option<u8>,
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

/// With a model of pixels.
fn pixels(arguments: &Arguments, model: &ImageModel) -> Result<(), Failure> {
    if let Some(name) = arguments.prompt.given() {
        return Err(arguments.no_effect(name, "does not draw from text"));
    }
    let channels = model.image_channels()?;
    model.is_not_paired("inpaint")?;
    model.is_not_distilled("inpaint")?;
    let steps = arguments
        .steps
        .map(usize::from)
        .or(model.steps)
        .unwrap_or(STEPS);
    let resamplings = arguments.resamplings.unwrap_or(RESAMPLINGS);
    let repaint = Repaint::new(&model.scheduler, steps, resamplings.into());
    let (examiner, scorers) = examiner(arguments)?.unzip();
    let painter = Painter {
        repaint: repaint.map_err(Failure::usage)?,
        marks: Marks::read(arguments)?,
        least: [model.files.shape[1], model.files.shape[2]],
        seed: arguments.seed,
        channels,
        examiner,
    };
    let mut about = model.about();
    about.extend([
        ("seed", arguments.seed.to_string()),
        ("steps", steps.to_string()),
        ("resamplings", resamplings.to_string()),
    ]);
    let job = arguments.job(channels, about)?;
    let workers = model.denoisers(arguments.provider, job.images.len())?;
    say_notes(model);
    let mut scorers = scorers.into_iter().flatten();
    let workers = workers.into_iter().map(|denoiser| Worker {
        denoiser,
        scorer: scorers.next(),
    });
    job.run(workers.collect(), |worker, source, steps| {
        painter.paint(worker, source, steps)
    })?;
    painter.examiner.iter().for_each(report);
    Ok(())
}

/// Returns what scores images after they are drawn, with a scorer for each core, if the model can and the images have verdicts.
fn examiner(arguments: &Arguments) -> Result<Option<(Examiner, Vec<Scorer>)>, Failure> {
    let is_bundle = arguments.model.join(MANIFEST).exists();
    if arguments.regions.is_none() || !is_bundle {
        return match arguments.rounds {
            None => Ok(None),
            Some(_) if is_bundle => Err(arguments.no_effect("--rounds", "is given a --mask")),
            Some(_) => Err(arguments.no_effect("--rounds", "is no bundle, and scores nothing")),
        };
    }
    let (inference, batch) = inference_on(arguments.provider);
    let loaded = model::load(&arguments.model, &inference, batch, default_rule)?;
    let reader = arguments
        .images
        .reader(&loaded.bundle.manifest.input, None)?;
    let reader = reader.ok_or_else(|| Failure::internal("a bundle for tables reads no images"))?;
    let examiner = Examiner {
        reader,
        judge: loaded.judge,
        rounds: arguments.rounds.map_or(ROUNDS, usize::from),
        outcomes: Default::default(),
    };
    Ok(Some((examiner, loaded.scorers)))
}

/// Says how many images are normal now.
fn report(examiner: &Examiner) {
    let [normal, left] = examiner
        .outcomes
        .each_ref()
        .map(|n| n.load(Ordering::Relaxed));
    if normal + left > 0 {
        eprintln!(
            "repaired: {normal} of {} images are below the bundle's threshold now; {left} are still above it",
            normal + left
        );
    }
}

/// With a pipeline for text, which works on latent images.
fn latent(arguments: &Arguments, pipeline: ImagePipeline) -> Result<(), Failure> {
    for (option, given) in [
        ("--resamplings", arguments.resamplings.is_some()),
        ("--rounds", arguments.rounds.is_some()),
    ] {
        if given {
            return Err(arguments.no_effect(option, "works on latent images"));
        }
    }
    let marks = Marks::read(arguments)?;
    let steps = arguments.steps.map(usize::from);
    let (folder, provider) = (&arguments.model, arguments.provider);
    let editing = LatentEditing::new(folder, pipeline, &arguments.prompt, steps, 1.0, provider)?;
    let mut about = editing.about.clone();
    about.push(("seed", arguments.seed.to_string()));
    let job = arguments.job(3, about)?;
    let editors = editing.editors(job.images.len());
    job.run(editors, |editor, source, steps| {
        let marked = match marks.of(source) {
            Ok(marked) => marked,
            Err(error) => return Ok(Some(Err(error))),
        };
        if !marked.contains(&true) {
            return Ok(Some(Ok(composed(source, &marked, &source.values, 3))));
        }
        let mut noise = normals(arguments.seed, source.number);
        let edited = editor.edit(
            &source.values,
            source.size,
            Some(&marked),
            &mut noise,
            steps,
        )?;
        Ok(edited.map(|image| finite_image(&image).map(|()| composed(source, &marked, &image, 3))))
    })
}

impl Arguments {
    fn job(&self, channels: usize, about: About) -> Result<ImageJob, Failure> {
        Ok(ImageJob {
            images: tasks(&self.input, &self.out)?,
            channels,
            out_channels: channels,
            depth: BitDepth::new(self.images.bit_depth.unwrap_or(16)),
            overwrites: self.force,
            json: self.json,
            about,
        })
    }

    fn no_effect(&self, option: &str, why: &str) -> Failure {
        Failure::usage(format!(
            "{option} has no effect, because {} {why}: leave {option} out",
            self.model.display()
        ))
    }
}

/// The new pixels where the image is marked, and its own elsewhere.
fn composed(source: &Source, marked: &[bool], image: &[f32], channels: usize) -> Made {
    let mut made = bytes(image, channels);
    let pixels = made.chunks_exact_mut(channels);
    let pixels = pixels.zip(source.bytes.chunks_exact(channels)).zip(marked);
    for ((made, source), marked) in pixels {
        if !marked {
            made.copy_from_slice(source);
        }
    }
    let count = marked.iter().filter(|marked| **marked).count();
    Made {
        bytes: made,
        about: vec![("painted", format!("{count} pixels"))],
        unchanged: count == 0,
    }
}
