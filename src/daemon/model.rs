//! Loads a bundle and proves it by its golden records, for the daemon and for every verb that scores.

use std::path::Path;
use std::time::Duration;

use crate::bundle::segments::ScoreLimits;
use crate::bundle::{Bundle, Calibration, ModelInput};
use crate::config::{self, Config, InferenceSettings, ScreenMode};
use crate::decode::{self, SegmentReader};
use crate::memory::Room;
use crate::message::ModelId;
use crate::metrics::Metrics;
use crate::onnx::{self, GoldenCheck, Nearest, Scorer, ScreenSession};
use crate::pipeline::{self, Screening, Serving};
use crate::shutdown::Shutdown;
use crate::verdict::{Judge, ThresholdRule};

use super::image_work::{self, ImageWorkers};
use super::restoration::{self, Imputers};
use super::{input, watchdog};
use crate::failure::Failure;

pub struct Loaded {
    pub bundle: Bundle,
    pub scorers: Vec<Scorer>,
    /// One screen per worker, or empty if the bundle has no screen.
    pub screens: Vec<ScreenSession>,
    pub golden: GoldenCheck,
    pub judge: Judge,
    pub nearest: Option<Nearest>,
    pub imputers: Imputers,
    /// Set if a model works on whole images.
    pub images: Option<ImageWorkers>,
    pub model: ModelId,
}

/// Loads the bundle in `dir` with one warmed-up scorer per worker. `rule` returns the threshold rule for the bundle.
pub fn load(
    dir: &Path,
    inference: &InferenceSettings,
    max_records: usize,
    rule: impl FnOnce(&Calibration) -> ThresholdRule,
) -> Result<Loaded, Failure> {
    let limit = inference.provider.load_timeout();
    load_within(
        dir,
        inference,
        max_records,
        limit,
        &Shutdown::default(),
        |bundle| Ok(rule(&bundle.calibration)),
    )
}

/// Like [`load`], but gives up after `limit` or when `stop` is requested. `rule` may refuse the bundle.
pub fn load_within(
    dir: &Path,
    inference: &InferenceSettings,
    max_records: usize,
    limit: Duration,
    stop: &Shutdown,
    rule: impl FnOnce(&Bundle) -> Result<ThresholdRule, Failure>,
) -> Result<Loaded, Failure> {
    let onnx::Loaded {
        bundle,
        scorers,
        screens,
        golden,
        nearest,
    } = watchdog::load(dir, inference, max_records, limit, stop)?;
    let rule = rule(&bundle)?;
    let calibration = bundle.calibration.clone();
    let judge = Judge::new(bundle.features().to_vec(), calibration, rule)?;
    let model = ModelId {
        name: bundle.manifest.name.clone(),
        version: bundle.manifest.version.clone(),
        sha256: bundle.sha256.clone(),
    };
    Ok(Loaded {
        bundle,
        scorers,
        screens,
        golden,
        judge,
        nearest,
        imputers: Imputers::default(),
        images: None,
        model,
    })
}

impl Loaded {
    /// Opens what fills in records, and what translates or denoises images, one part per scorer, if the settings ask for it.
    ///
    /// # Errors
    /// When the bundle cannot fill in records or denoise images, or the model that translates does not fit it.
    pub fn open_generative(&mut self, config: &Config, stop: &Shutdown) -> Result<(), Failure> {
        let interrupt = self.scorers[0].interrupt();
        let inference = InferenceSettings {
            workers: self.scorers.len(),
            // Which may be the CPU after a fallback.
            provider: self.scorers[0].provider,
            ..config.inference.clone()
        };
        let bundle = &mut self.bundle;
        self.images = image_work::open(config, bundle, &inference, &interrupt, stop)?;
        self.imputers = restoration::open(config, bundle, inference.workers, &interrupt, stop)?;
        // Nothing else in the daemon draws.
        (bundle.generative, bundle.image_generative) = (None, None);
        let translation = self.images.as_ref().and_then(|i| i.translation.clone());
        self.judge = self.judge.clone().with_translation(translation);
        Ok(())
    }

    /// Returns the bounds for the bundle's screen, or `None` if the settings turn the screen off.
    ///
    /// # Errors
    /// When the bundle has no screen, or when the screen cannot guarantee the configured `screen.missed_share`.
    pub fn bounds(&self, settings: config::ScreenSettings) -> Result<Option<ScoreLimits>, Failure> {
        if settings.mode == ScreenMode::Off {
            return Ok(None);
        }
        let Some(screen) = &self.bundle.screen else {
            return Err(Failure::config(format!(
                "[screen]: the bundle {} has no screen: add one (residuald-train screen), or set screen.mode = \"off\"",
                self.bundle.manifest.name
            )));
        };
        let bounds = pipeline::bounds(screen, &self.judge, settings.missed_share);
        bounds
            .map(Some)
            .map_err(|e| Failure::config(format!("screen.missed_share: {e}")))
    }

    /// Returns one screening per worker, or none if the settings turn the screen off. Moves the screens out of `self`.
    ///
    /// # Errors
    /// As [`Loaded::bounds`].
    pub fn screenings(
        &mut self,
        settings: config::ScreenSettings,
    ) -> Result<Vec<Screening>, Failure> {
        let Some(bounds) = self.bounds(settings)? else {
            return Ok(Vec::new());
        };
        let screens = std::mem::take(&mut self.screens).into_iter();
        let made = screens.filter_map(|screen| Screening::new(screen, bounds.clone(), settings));
        Ok(made.collect())
    }

    /// Returns the reader of segments, if the bundle is calibrated by segment.
    pub fn segment(&self) -> Option<SegmentReader> {
        let segments = self.bundle.calibration.segments.as_ref();
        segments.map(SegmentReader::of)
    }
}

/// Loads, proves and warms up the configured model. `accept` may refuse its bundle.
pub fn load_configured(
    config: &Config,
    stop: &Shutdown,
    accept: impl FnOnce(&Bundle) -> Result<(), Failure>,
) -> Result<Loaded, Failure> {
    let mut loaded = load_within(
        &config.model.bundle,
        &config.inference,
        config.batch.max_records,
        config.model.load_timeout,
        stop,
        // `accept` runs before the threshold is applied, because the threshold may be meant for other records.
        |bundle| accept(bundle).map(|()| config.threshold),
    )?;
    loaded.open_generative(config, stop)?;
    Ok(loaded)
}

/// Builds the parts that read and judge records with the model. `before` is the current input, which is kept if its
/// schemas come from a registry.
pub fn serving(
    config: &Config,
    mut loaded: Loaded,
    before: Option<&decode::RecordFormat>,
    decoding: &Room,
    metrics: &Metrics,
) -> Result<Serving, Failure> {
    let input = match (input::open_here(config, &loaded.bundle)?, before) {
        (Some(input), _) => input,
        (None, Some(before)) => before.clone(),
        (None, None) => input::open(config, &loaded.bundle, metrics)?,
    };
    let input = match (input, &loaded.images) {
        (decode::RecordFormat::Images(reader), Some(images)) => {
            decode::RecordFormat::Images(reader.with_model(images.whole))
        }
        (input, _) => input,
    };
    let screenings = loaded.screenings(config.screen)?;
    let (image_work, image_run) = match loaded.images.take() {
        Some(images) => (images.work, Some(images.run)),
        None => (Vec::new(), None),
    };
    Ok(Serving {
        features: loaded.bundle.features().to_vec(),
        segment: loaded.segment(),
        input,
        decoding: decoding.clone(),
        scorers: loaded.scorers,
        screenings,
        imputers: loaded.imputers.imputers,
        image_work,
        slow_unit: image_run.unwrap_or(loaded.imputers.each),
        judge: loaded.judge,
        nearest: loaded.nearest,
        model: loaded.model,
        asked: config.inference.provider.as_str(),
    })
}

/// Refuses a bundle that reads images, for verbs that do not support images yet.
pub fn must_read_tables(bundle: &Bundle, verb: &str) -> Result<(), Failure> {
    match bundle.manifest.input {
        ModelInput::Tabular { .. } => Ok(()),
        ModelInput::Image(_) => Err(Failure::usage(format!(
            "{verb} reads tables, but the bundle {} reads images: judge images with `residuald score` or `residuald run`",
            bundle.manifest.name
        ))),
    }
}
