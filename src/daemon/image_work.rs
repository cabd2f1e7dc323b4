//! Opens the model that translates images before they are scored, or the bundle's denoiser, which removes their noise.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::bundle::{Bundle, ModelInput, Pixels};
use crate::config::{Config, InferenceSettings, Provider, TranslateSettings};
use crate::image::WholeModel;
use crate::onnx::{ImageDenoising, ImageTranslation, Interrupt, LoadError, Runtime, TiledDenoiser};
use crate::pipeline::ImageWork;
use crate::shutdown::Shutdown;
use crate::verdict::TranslationId;

use super::image_model::{AnyModel, ImageModel, STRENGTH};
use super::watchdog;
use crate::failure::{self, Failure};

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
                "[translate]: the bundle {name} reads tables, and only images are translated: remove the section"
            ))),
        };
    };
    let (dir, limit) = (&config.model.bundle, config.model.load_timeout);
    let (inference, told) = (inference.clone(), interrupt.clone());
    let (setting, opened) = match (&config.translate, &config.output.restored) {
        (Some(settings), _) => {
            let (settings, dir) = (settings.clone(), &settings.bundle);
            let work = move || translators(&settings, &name, &pixels, &inference, told);
            let opened = watchdog::open(dir, limit, stop, interrupt, work)?;
            ("[translate]", opened)
        }
        (None, Some(settings)) => {
            let (model, steps) = (ImageModel::of_bundle(dir, bundle), settings.steps);
            let work = move || denoisers(&model?, steps.unwrap_or(1), &inference, told);
            let opened = watchdog::open(dir, limit, stop, interrupt, work)?;
            ("output.restored_topic", opened)
        }
        (None, None) => return Ok(None),
    };
    opened.map(Some).map_err(|e| Failure {
        message: format!("{setting}: {}", e.message),
        code: match e.code {
            failure::USAGE => failure::CONFIG,
            code => code,
        },
    })
}

fn translators(
    settings: &TranslateSettings,
    bundle: &str,
    pixels: &Pixels,
    inference: &InferenceSettings,
    interrupt: Interrupt,
) -> Result<ImageWorkers, Failure> {
    let model = pixel_model(&settings.bundle)?;
    let made = model.image_channels()?;
    if made != pixels.channels {
        return Err(Failure::config(format!(
            "{} makes {} images, but the bundle {bundle} judges {} images: both must be of the same kind",
            settings.bundle.display(),
            colours(made),
            colours(pixels.channels)
        )));
    }
    let (strength, steps) = (settings.strength, settings.steps);
    let translation = model.translation(strength, steps, settings.seed);
    let translation = translation.map_err(Failure::config)?;
    if translation.is_paired {
        model.source_channels()?;
    }
    let id = TranslationId {
        model: model.name.clone(),
        sha256: model.sha256().map_err(Failure::data)?,
        steps: translation.plan.steps(),
        strength: (!translation.is_paired).then_some(strength.unwrap_or(STRENGTH)),
        seed: settings.seed,
    };
    let runs = translation.steps();
    tracing::info!(
        model = id.model,
        sha256 = &id.sha256[..8],
        steps = runs,
        "images are translated before they are scored"
    );
    let workers = workers(&model, inference, interrupt, runs, |denoiser| {
        let translation = ImageTranslation::new(denoiser, translation.clone());
        let whole = translation.whole_model();
        Ok((ImageWork::Translate(translation), whole))
    })?;
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
    model.is_not_distilled("output.restored_topic")?;
    workers(model, inference, interrupt, steps, |denoiser| {
        let denoising = ImageDenoising::new(denoiser, model.scheduler.clone());
        let denoising = denoising.map_err(Failure::config)?;
        let whole = denoising.whole_model(steps);
        let about = model.about();
        let work = ImageWork::Denoise {
            denoising,
            steps,
            about,
        };
        Ok((work, whole))
    })
}

/// Makes the model of each worker with `make`, and proves it on an image of one tile, which takes `runs` runs.
fn workers(
    model: &ImageModel,
    inference: &InferenceSettings,
    interrupt: Interrupt,
    runs: usize,
    make: impl Fn(TiledDenoiser) -> Result<(ImageWork, WholeModel), Failure>,
) -> Result<ImageWorkers, Failure> {
    if inference.provider == Provider::TensorRt {
        return Err(Failure::config(
            "inference.provider = \"tensorrt\", but images are made on cpu or cuda: set one of them",
        ));
    }
    for note in &model.notes {
        tracing::warn!("{note}");
    }
    let runtime = Runtime::load(interrupt).map_err(LoadError::from)?;
    let (mut all, mut whole, mut run) = (Vec::new(), None, Duration::ZERO);
    for worker in 0..inference.workers {
        let (mut work, needs) = make(model.denoiser(&runtime, inference, worker)?)?;
        // The first run allocates.
        work.warm_up()?;
        let started = Instant::now();
        work.warm_up()?;
        run = run.max(started.elapsed() / runs.max(1) as u32);
        whole = Some(needs);
        all.push(work);
    }
    Ok(ImageWorkers {
        work: all,
        whole: whole.ok_or_else(|| Failure::internal("there is no worker"))?,
        run,
        translation: None,
    })
}

fn colours(channels: usize) -> &'static str {
    match channels {
        1 => "gray",
        _ => "RGB",
    }
}
