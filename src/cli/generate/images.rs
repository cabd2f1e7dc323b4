//! Draws images with the pipeline of a folder or a bundle, on all cores, and writes each as soon as it is whole.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::json;

use super::Arguments;
use super::image_files::{ImageFiles, Trace};
use crate::cli::shared::progress;
use crate::cli::shared::sampling::{Guidance, Sampler, Start, images_must_be_finite};
use crate::cli::shared::text_to_image::TextToImage;
use crate::config::Provider;
use crate::diffusion::folder::ImagePipeline;
use crate::diffusion::{Noise, NoiseFile, Plan, Scheduler};
use crate::failure::Failure;
use crate::onnx::{Denoiser, Interrupt, Runtime, VaeDecoder, inference_on};
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
    let files = ImageFiles::new(out, image, count, arguments.force)?.with_about(about);
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
    let sessions = (0..workers)
        .map(|worker| {
            let model = Denoiser::new(&runtime, &denoiser, &inference, worker, batch)?;
            let decoder = decoder.map(|d| VaeDecoder::new(&runtime, d, shape, &inference, worker));
            Ok((model, decoder.transpose()?))
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    if sessions[0].0.takes_whole_timesteps() && plan.timesteps().iter().any(|t| t.fract() != 0.0) {
        notes.push(format!(
            "{} has fractional timesteps, and the model takes whole ones: they are rounded down",
            scheduler.class()
        ));
    }
    for note in &notes {
        eprintln!("{note}");
    }
    let steps = plan.steps() - start.as_ref().map_or(0, |start| start.step);
    let seed = (file.is_none() || seeded).then_some(arguments.sampler.seed);
    let job = Job {
        plan,
        guidance,
        start,
        dimensions: shape.iter().product(),
        noise: Noise {
            seed: arguments.sampler.seed,
            file,
        },
        files,
        trace,
        count,
        batch: batch as u64,
        next: AtomicU64::new(0),
        written: AtomicU64::new(0),
        failure: Mutex::new(None),
        stop: Shutdown::default(),
        bar: progress::of_steps(count * steps as u64, arguments.json),
    };
    progress::stop_on_ctrl_c(&job.stop)?;
    job.all(sessions)?;
    let report = Report {
        images: count,
        out: out.display().to_string(),
        pipeline: &pipeline,
        scheduler: scheduler.class(),
        steps: job.plan.steps(),
        seed,
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

/// What the threads share.
struct Job {
    plan: Plan,
    guidance: Guidance,
    start: Option<Start>,
    /// The number of values of what is sampled: an image, or a latent image.
    dimensions: usize,
    noise: Noise,
    files: ImageFiles,
    trace: Option<Trace>,
    count: u64,
    batch: u64,
    /// The first image that no thread has taken.
    next: AtomicU64,
    written: AtomicU64,
    failure: Mutex<Option<Failure>>,
    stop: Shutdown,
    bar: ProgressBar,
}

impl Job {
    fn all(&self, sessions: Vec<(Denoiser, Option<VaeDecoder>)>) -> Result<(), Failure> {
        thread::scope(|scope| {
            for (denoiser, decoder) in sessions {
                scope.spawn(|| self.work(denoiser, decoder));
            }
        });
        self.bar.finish_and_clear();
        let failure = self.failure.lock().map(|mut failure| failure.take());
        let written = self.written.load(Ordering::Relaxed);
        match failure.unwrap_or_default() {
            Some(failure) => Err(Failure {
                message: format!("{} (images written: {written})", failure.message),
                ..failure
            }),
            None if written < self.count => Err(Failure::interrupted(format!(
                "interrupted: images written: {written} of {}, each whole",
                self.count
            ))),
            None => Ok(()),
        }
    }

    /// Draws groups of images until there are no more, or a thread fails.
    fn work(&self, denoiser: Denoiser, mut decoder: Option<VaeDecoder>) {
        let mut sampler = Sampler::new(
            &self.plan,
            &self.guidance,
            self.start.as_ref(),
            denoiser,
            self.dimensions,
        );
        while !self.stop.is_requested() {
            let first = self.next.fetch_add(self.batch, Ordering::Relaxed);
            if first >= self.count {
                return;
            }
            let images = first..self.count.min(first + self.batch);
            if let Err(failure) = self.group(&mut sampler, decoder.as_mut(), images) {
                if let Ok(mut first) = self.failure.lock() {
                    first.get_or_insert(failure);
                }
                self.stop.request();
            }
        }
    }

    fn group(
        &self,
        sampler: &mut Sampler<'_>,
        decoder: Option<&mut VaeDecoder>,
        images: std::ops::Range<u64>,
    ) -> Result<(), Failure> {
        let mut states = |step: usize, all: &[f32]| {
            if step > 0 {
                self.bar.inc(images.end - images.start);
            }
            match &self.trace {
                None => Ok(()),
                Some(trace) => trace.write(images.clone(), step, all),
            }
        };
        let drawn = sampler.draw(images.clone(), &self.noise, &self.stop, &mut states)?;
        // None: a stop was requested between two steps.
        let Some(mut drawn) = drawn else {
            return Ok(());
        };
        if let Some(decoder) = decoder {
            drawn = decoder.decode(&drawn)?;
            images_must_be_finite(&images, &drawn)?;
        }
        for (image, values) in images.zip(drawn.chunks_exact(self.files.dimensions())) {
            self.files.write(image, values)?;
            let written = 1 + self.written.fetch_add(1, Ordering::Relaxed);
            if self.count > 1 {
                let message = format!("{written}/{} images, ", self.count);
                self.bar.set_message(message);
            }
        }
        Ok(())
    }
}
