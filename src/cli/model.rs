//! A bundle, loaded and proved, for every verb that scores.

use std::path::Path;

use crate::bundle::{Bundle, Calibration, Input};
use crate::config::Inference;
use crate::decode::SegmentReader;
use crate::message::Model;
use crate::onnx::{self, GoldenCheck, Nearest, Scorer};
use crate::verdict::{Judge, ThresholdRule};

use super::failure::Failure;

pub struct Loaded {
    pub bundle: Bundle,
    pub scorers: Vec<Scorer>,
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
    let onnx::Loaded {
        bundle,
        scorers,
        golden,
        nearest,
    } = onnx::load(dir, inference, max_records)?;
    let calibration = bundle.calibration.clone();
    let rule = rule(&calibration);
    let judge = Judge::new(bundle.features().to_vec(), calibration, rule)?;
    let model = Model {
        name: bundle.manifest.name.clone(),
        version: bundle.manifest.version.clone(),
        sha256: bundle.sha256.clone(),
    };
    Ok(Loaded {
        bundle,
        scorers,
        golden,
        judge,
        nearest,
        model,
    })
}

impl Loaded {
    /// Where the segments of records are, if the bundle is calibrated by them.
    pub fn segment(&self) -> Option<SegmentReader> {
        let segments = self.bundle.calibration.segments.as_ref();
        segments.map(SegmentReader::of)
    }
}

/// For verbs that know no pictures yet.
pub fn must_read_tables(bundle: &Bundle, verb: &str) -> Result<(), Failure> {
    match bundle.manifest.input {
        Input::Tabular { .. } => Ok(()),
        Input::Image(_) => Err(Failure::usage(format!(
            "{verb} reads tables, and the bundle {} reads pictures: judge them with `residuald score` or `residuald run`",
            bundle.manifest.name
        ))),
    }
}
