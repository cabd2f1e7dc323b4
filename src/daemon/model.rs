//! A bundle, loaded and proved, for every verb that scores.

use std::path::Path;
use std::time::Duration;

use crate::bundle::{Bundle, Calibration, ModelInput};
use crate::config::{self, Config, Inference, ScreenMode};
use crate::decode::{self, SegmentReader};
use crate::memory::Room;
use crate::message::Model;
use crate::metrics::Metrics;
use crate::onnx::{self, GoldenCheck, Nearest, Scorer, ScreenSession};
use crate::pipeline::{Bounds, Screening, Serving};
use crate::shutdown::Shutdown;
use crate::verdict::{Judge, ThresholdRule};

use super::{input, watchdog};
use crate::failure::Failure;

pub struct Loaded {
    pub bundle: Bundle,
    pub scorers: Vec<Scorer>,
    /// One a worker, of a bundle that has a screen.
    pub screens: Vec<ScreenSession>,
    pub golden: GoldenCheck,
    pub judge: Judge,
    pub nearest: Option<Nearest>,
    pub model: Model,
}

/// Loads the bundle in `dir` with a warm scorer for each worker and the threshold that `rule` asks for, given
/// what the calibration supports.
pub fn load(
    dir: &Path,
    inference: &Inference,
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

/// The same within `limit`, and only until `stop` is requested. `rule` may refuse the bundle.
pub fn load_within(
    dir: &Path,
    inference: &Inference,
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
    let model = Model {
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
        model,
    })
}

impl Loaded {
    /// The bounds that the settings ask of the bundle's screen, if they ask for one.
    ///
    /// # Errors
    /// There is none, or it cannot vouch for what is asked.
    pub fn bounds(&self, settings: config::ScreenSettings) -> Result<Option<Bounds>, Failure> {
        if settings.mode == ScreenMode::Off {
            return Ok(None);
        }
        let Some(screen) = &self.bundle.screen else {
            return Err(Failure::config(format!(
                "[screen]: the bundle {} has no screen: add one (residuald-train screen), or set screen.mode = \"off\"",
                self.bundle.manifest.name
            )));
        };
        let bounds = Bounds::new(screen, &self.judge, settings.missed_share);
        bounds
            .map(Some)
            .map_err(|e| Failure::config(format!("screen.missed_share: {e}")))
    }

    /// One a worker, if the settings ask for them. Takes the screens.
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

    /// Where the segments of records are, if the bundle is calibrated by them.
    pub fn segment(&self) -> Option<SegmentReader> {
        let segments = self.bundle.calibration.segments.as_ref();
        segments.map(SegmentReader::of)
    }
}

/// The model that the settings name, proved and warm, if `accept` takes its bundle.
pub fn load_configured(
    config: &Config,
    stop: &Shutdown,
    accept: impl FnOnce(&Bundle) -> Result<(), Failure>,
) -> Result<Loaded, Failure> {
    load_within(
        &config.model.bundle,
        &config.inference,
        config.batch.max_records,
        config.model.load_timeout,
        stop,
        // Before the threshold, which may be one for other records.
        |bundle| accept(bundle).map(|()| config.threshold),
    )
}

/// What judges records with it, and what reads them. `before`: the input in force, which stays if it is a schema registry's.
pub fn serving(
    config: &Config,
    mut loaded: Loaded,
    before: Option<&decode::Input>,
    decoding: &Room,
    metrics: &Metrics,
) -> Result<Serving, Failure> {
    let input = match (input::open_here(config, &loaded.bundle)?, before) {
        (Some(input), _) => input,
        (None, Some(before)) => before.clone(),
        (None, None) => input::open(config, &loaded.bundle, metrics)?,
    };
    let screenings = loaded.screenings(config.screen)?;
    Ok(Serving {
        features: loaded.bundle.features().to_vec(),
        segment: loaded.segment(),
        input,
        decoding: decoding.clone(),
        scorers: loaded.scorers,
        screenings,
        judge: loaded.judge,
        nearest: loaded.nearest,
        model: loaded.model,
        asked: config.inference.provider.as_str(),
    })
}

/// For verbs that know no pictures yet.
pub fn must_read_tables(bundle: &Bundle, verb: &str) -> Result<(), Failure> {
    match bundle.manifest.input {
        ModelInput::Tabular { .. } => Ok(()),
        ModelInput::Image(_) => Err(Failure::usage(format!(
            "{verb} reads tables, and the bundle {} reads pictures: judge them with `residuald score` or `residuald run`",
            bundle.manifest.name
        ))),
    }
}
