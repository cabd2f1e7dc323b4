//! Draws images with the pipeline of a folder or a bundle: checks the options, opens the model, and says what was drawn.

use std::iter;
use std::time::Instant;

use serde::Serialize;
use serde_json::json;

use super::Arguments;
use super::drawing::{Drawing, Progress};
use super::image_files::{ImageFiles, Trace};
use super::sheet::Sheet;
use crate::cli::shared::progress;
use crate::cli::shared::sampling::Guidance;
use crate::cli::shared::text_to_image::TextToImage;
use crate::config::Provider;
use crate::diffusion::folder::ImagePipeline;
use crate::diffusion::{Noise, NoiseFile, Plan, Scheduler};
use crate::failure::Failure;
use crate::onnx::{Denoiser, Interrupt, Runtime, ScorerError, VaeDecoder, inference_on};
use crate::shutdown::Shutdown;

/// Maximum number of images in a folder.
const MOST_IMAGES: u64 = 1_000_000;

#[derive(Serialize)]
struct Report<'r> {
    images: u64,
    out: String,
    pipeline: &'r str,
    scheduler: &'r str,
    steps: usize,
    /// `None` if all noise came from a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    /// The number of images on the contact sheet.
    #[serde(skip_serializing_if = "Option::is_none")]
    on_sheet: Option<u64>,
    seconds: f64,
    notes: &'r [String],
}

pub fn run(pipeline: ImagePipeline, arguments: &Arguments) -> Result<(), Failure> {
    let started = Instant::now();
    let options = &arguments.images;
    let provider = options.provider.unwrap_or(Provider::Cpu);
    let Some(out) = &arguments.out else {
        return Err(Failure::usage("images need a folder: --out DIR"));
    };
    if provider == Provider::TensorRt {
        return Err(Failure::usage(
            "--provider tensorrt: images are drawn on cpu or cuda",
        ));
    }
    let ImagePipeline {
        pipeline,
        steps: usual,
        scheduler,
        mut denoiser,
        text,
        mut notes,
    } = pipeline;
    let scheduler = scheduler
        .with_eta(options.eta.unwrap_or(0.0))
        .map_err(Failure::usage)?;
    let steps = arguments
        .sampler
        .steps
        .or(usual)
        .unwrap_or_else(|| steps(&pipeline, &scheduler));
    let is_other = usual != Some(steps) || arguments.sampler.scheduler.is_some();
    if denoiser.is_distilled && is_other {
        notes.push("the model was distilled: it knows only the steps that it draws by default, so other steps or another scheduler give worse images".into());
    }
    let plan = scheduler.plan(steps).map_err(Failure::usage)?;
    if plan.steps() != steps {
        notes.push(format!(
            "{} makes {} steps of {steps}, as in diffusers",
            scheduler.class(),
            plan.steps()
        ));
    }
    let text = TextToImage::new(
        &arguments.text,
        arguments.strength,
        &arguments.folder,
        &pipeline,
        text,
        &plan,
        &mut denoiser,
    )?;
    let shape = denoiser.shape;
    let decoder = text.as_ref().map(|text| &text.decoder);
    let file = arguments.noise.as_deref();
    let file = file
        .map(|path| NoiseFile::open(path, &shape, &plan))
        .transpose()
        .map_err(Failure::data)?;
    let count = arguments.count(file.as_ref(), MOST_IMAGES)?;
    let image = decoder.map_or(shape, |decoder| decoder.image(shape));
    let about = about(arguments, &scheduler, &plan, text.as_ref());
    let files = ImageFiles::new(out, image, count, arguments.force)?.with_about(about.clone());
    let sheet = arguments.images.sheet.as_deref();
    let sheet = sheet
        .map(|path| Sheet::new(path, count, arguments.force))
        .transpose()?;
    let trace = arguments.trace.as_deref();
    let trace = trace
        .map(|folder| match text {
            None => Trace::new(folder, shape, count, arguments.force),
            Some(_) => Trace::of_latents(folder, shape, count, arguments.force),
        })
        .transpose()?;
    let seeded = plan.is_stochastic() && !file.as_ref().is_some_and(NoiseFile::has_steps);
    if seeded && file.is_some() {
        notes.push(format!(
            "{} adds noise in each step: that comes from the seed, because the file of --noise holds the initial noise alone",
            scheduler.class()
        ));
    }
    let (inference, _) = inference_on(provider);
    let batch = usize::from(options.batch.unwrap_or(1));
    let groups = count.div_ceil(batch as u64);
    let workers = inference.workers.min(usize::try_from(groups).unwrap_or(1));
    let runtime = Runtime::load(Interrupt::default())?;
    let (guidance, start) = match &text {
        Some(text) => (text.guidance(&runtime)?, text.start(&runtime)?),
        None => (Guidance::default(), None),
    };
    let open = |worker| Denoiser::new(&runtime, &denoiser, &inference, worker, batch);
    let open_decoder = |worker, files| VaeDecoder::new(&runtime, files, shape, &inference, worker);
    let first = open(0)?;
    if first.takes_whole_timesteps() && plan.timesteps().iter().any(|t| t.fract() != 0.0) {
        notes.push(format!(
            "{} has fractional timesteps, and the model takes whole ones: they are rounded down",
            scheduler.class()
        ));
    }
    for note in &notes {
        eprintln!("{note}");
    }
    let seed = (file.is_none() || seeded).then_some(arguments.sampler.seed);
    let drawing = Drawing {
        plan,
        guidance,
        start,
        shape,
        noise: Noise {
            seed: arguments.sampler.seed,
            file,
        },
        files,
        trace,
        sheet,
        count,
        batch: batch as u64,
        stop: Shutdown::default(),
        bar: progress::of_steps(0, arguments.json),
        progress: Progress::default(),
    };
    drawing.bar.set_length(count * drawing.steps() as u64);
    progress::stop_on_ctrl_c(&drawing.stop)?;
    match decoder.filter(|_| arguments.text.low_memory) {
        Some(files) => {
            let decoder = || Ok(open_decoder(0, files)?);
            drawing.run_in_turn(first, || Ok(open(0)?), decoder)?;
        }
        None => {
            let others = (1..workers).map(open);
            let denoisers = iter::once(Ok(first)).chain(others);
            let sessions = denoisers.enumerate().map(|(worker, denoiser)| {
                let decoder = decoder.map(|files| open_decoder(worker, files));
                Ok((denoiser?, decoder.transpose()?))
            });
            drawing.run(sessions.collect::<Result<_, ScorerError>>()?)?;
        }
    }
    let sheet = drawing.sheet.as_ref();
    let on_sheet = sheet.map(|sheet| sheet.write(&about)).transpose()?;
    let report = Report {
        images: count,
        out: out.display().to_string(),
        pipeline: &pipeline,
        scheduler: scheduler.class(),
        steps: drawing.plan.steps(),
        seed,
        on_sheet,
        seconds: started.elapsed().as_secs_f64(),
        notes: &notes,
    };
    match arguments.json {
        true => println!("{}", json!(report)),
        false => println!(
            "images: {} in {} ({}, {}, {} steps, {:.1} s)",
            report.images,
            report.out,
            report.pipeline,
            report.scheduler,
            report.steps,
            report.seconds
        ),
    }
    if let (Some(on_sheet), Some(path), false) = (on_sheet, &options.sheet, arguments.json) {
        println!("sheet: {on_sheet} of them in {}", path.display());
    }
    Ok(())
}

/// The default number of steps of diffusers' pipelines.
fn steps(pipeline: &str, scheduler: &Scheduler) -> usize {
    let trained = scheduler.schedule().alphas_cumprod.len();
    let steps = match (pipeline, scheduler.class()) {
        ("DDPMPipeline", "DDPMScheduler") => 1000,
        (_, "LCMScheduler") => 4,
        _ => 50,
    };
    steps.min(trained)
}

/// What the metadata of every image says.
fn about(
    arguments: &Arguments,
    scheduler: &Scheduler,
    plan: &Plan,
    text: Option<&TextToImage>,
) -> Vec<(&'static str, String)> {
    let mut about = text.map(|text| text.about.clone()).unwrap_or_default();
    about.extend([
        ("seed", arguments.sampler.seed.to_string()),
        ("scheduler", scheduler.class().to_owned()),
        ("steps", plan.steps().to_string()),
        (
            "Software",
            concat!("residuald ", env!("CARGO_PKG_VERSION")).to_owned(),
        ),
    ]);
    if let Some(noise) = &arguments.noise {
        about.push(("noise", noise.display().to_string()));
    }
    about
}
