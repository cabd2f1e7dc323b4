//! Opens the model that translates images before they are scored, or the bundle's denoiser, which removes their noise.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::bundle::{Bundle, ModelInput, Pixels};
use crate::config::{Config, InferenceSettings, Provider, TranslateSettings};
use crate::image::WholeModel;
use crate::onnx::{ImageDenoising, ImageTranslation, Interrupt, LoadError, Runtime};
use crate::pipeline::ImageWork;
use crate::shutdown::Shutdown;
use crate::verdict::TranslationId;

use super::image_model::{AnyModel, ImageModel, STRENGTH};
use super::watchdog;
use crate::failure::Failure;

/// One model per worker.
pub struct ImageWorkers {
    pub work: Vec<ImageWork>,
    /// What images must be decoded for.
    pub whole: WholeModel,
    /// How long one of the workers takes for a run of the model.
    pub run: Duration,
    /// What verdicts say, if images are translated.
    pub translation: Option<TranslationId>,
}

/// Opens a model for each worker if the settings ask for it. `inference` is what the scorers run on, and `interrupt` ends all runs
/// later.
///
/// # Errors
/// When the model cannot be used for the bundle's images, is at fault, or opening it takes too long.
pub fn open(
    config: &Config,
    bundle: &mut Bundle,
    inference: &InferenceSettings,
    interrupt: &Interrupt,
    stop: &Shutdown,
) -> Result<Option<ImageWorkers>, Failure> {
    let name = bundle.manifest.name.clone();
    let ModelInput::Image(pixels) = bundle.manifest.input else {
        return match &config.translate {
            None => Ok(None),
            Some(_) => Err(Failure::config(format!(
                "translate.bundle: the bundle {name} reads tables, and only images are translated: remove the setting"
            ))),
        };
    };
    let limit = config.model.load_timeout;
    let (inference, told) = (inference.clone(), interrupt.clone());
    if let Some(settings) = &config.translate {
        must_run_on(&inference, "translate.bundle")?;
        let (settings, dir) = (settings.clone(), settings.bundle.clone());
        let work = move || translators(&settings, &name, &pixels, &inference, told);
        return watchdog::open(&dir, limit, stop, interrupt, work)?.map(Some);
    }
    let Some(settings) = &config.output.restored else {
        return Ok(None);
    };
    must_run_on(&inference, "output.restored_topic")?;
    let dir = &config.model.bundle;
    let model = ImageModel::of_bundle(dir, bundle)
        .map_err(|e| Failure::config(format!("output.restored_topic: {}", e.message)))?;
    let steps = settings.steps.unwrap_or(1);
    let work = move || denoisers(&model, steps, &inference, told);
    watchdog::open(dir, limit, stop, interrupt, work)?.map(Some)
}

fn must_run_on(inference: &InferenceSettings, setting: &str) -> Result<(), Failure> {
    match inference.provider {
        Provider::TensorRt => Err(Failure::config(format!(
            "{setting}: inference.provider = \"tensorrt\", but images are made on cpu or cuda: set one of them"
        ))),
        _ => Ok(()),
    }
}

fn translators(
    settings: &TranslateSettings,
    bundle: &str,
    pixels: &Pixels,
    inference: &InferenceSettings,
    interrupt: Interrupt,
) -> Result<ImageWorkers, Failure> {
    let refused = |problem: &str| {
        Failure::config(format!(
            "translate.bundle = {:?}: {problem}",
            settings.bundle
        ))
    };
    let model = pixel_model(&settings.bundle).map_err(|e| Failure {
        message: refused(&e.message).message,
        ..e
    })?;
    let made = model.image_channels()?;
    if made != pixels.channels {
        return Err(refused(&format!(
            "it makes {} images, but the bundle {bundle} judges {} images: both must be of the same kind",
            colours(made),
            colours(pixels.channels)
        )));
    }
    let (strength, steps) = (settings.strength, settings.steps);
    let translation = model.translation(strength, steps, settings.seed);
    let translation = translation.map_err(|e| Failure::config(format!("translate.{e}")))?;
    if translation.is_paired {
        model.source_channels()?;
    }
    let id = TranslationId {
        model: model.name.clone(),
        sha256: model.sha256().map_err(|e| refused(&e))?,
        steps: translation.plan.steps(),
        strength: (!translation.is_paired).then_some(strength.unwrap_or(STRENGTH)),
        seed: settings.seed,
    };
    let runs = translation.steps();
    let runtime = Runtime::load(interrupt).map_err(LoadError::from)?;
    let mut work = Vec::with_capacity(inference.workers);
    let mut whole = None;
    for worker in 0..inference.workers {
        let denoiser = model.denoiser(&runtime, inference, worker)?;
        let one = ImageTranslation::new(denoiser, translation.clone());
        whole = Some(one.whole_model());
        work.push(ImageWork::Translate(one));
    }
    say_notes(&model);
    let workers = proved(work, whole, runs).map_err(|e| Failure {
        message: refused(&e.message).message,
        ..e
    })?;
    tracing::info!(
        model = id.model,
        sha256 = &id.sha256[..8],
        steps = runs,
        "images are translated before they are scored"
    );
    Ok(ImageWorkers {
        translation: Some(id),
        ..workers
    })
}

/// Reads a model that works on pixels.
fn pixel_model(folder: &Path) -> Result<ImageModel, Failure> {
    match AnyModel::open(folder)? {
        AnyModel::Pixels(model) => Ok(*model),
        AnyModel::Latent(pipeline) => Err(Failure::config(format!(
            "a {} draws from text: give a bundle for images, or a pipeline of a denoiser and a scheduler alone",
            pipeline.pipeline
        ))),
    }
}

fn denoisers(
    model: &ImageModel,
    steps: usize,
    inference: &InferenceSettings,
    interrupt: Interrupt,
) -> Result<ImageWorkers, Failure> {
    let runtime = Runtime::load(interrupt).map_err(LoadError::from)?;
    let mut work = Vec::with_capacity(inference.workers);
    let mut whole = None;
    for worker in 0..inference.workers {
        let denoiser = model.denoiser(&runtime, inference, worker)?;
        let denoising = ImageDenoising::new(denoiser, model.scheduler.clone());
        let denoising =
            denoising.map_err(|e| Failure::config(format!("output.restored_topic: {e}")))?;
        whole = Some(denoising.whole_model(steps));
        work.push(ImageWork::Denoise {
            denoising,
            steps,
            about: model.about(),
        });
    }
    say_notes(model);
    proved(work, whole, steps)
}

/// Runs every model on an image of one tile, which takes `runs` runs.
fn proved(
    mut work: Vec<ImageWork>,
    whole: Option<WholeModel>,
    runs: usize,
) -> Result<ImageWorkers, Failure> {
    let mut run = Duration::ZERO;
    for one in &mut work {
        // The first run allocates.
        one.warm_up()?;
        let started = Instant::now();
        one.warm_up()?;
        run = run.max(started.elapsed() / runs.max(1) as u32);
    }
    Ok(ImageWorkers {
        work,
        whole: whole.ok_or_else(|| Failure::internal("there is no worker"))?,
        run,
        translation: None,
    })
}

fn say_notes(model: &ImageModel) {
    for note in &model.notes {
        tracing::warn!("{note}");
    }
}

fn colours(channels: usize) -> &'static str {
    match channels {
        1 => "gray",
        _ => "RGB",
    }
}
