//! Bundles: judge records and images as the daemon does.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use numpy::IntoPyArray;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use residuald::bundle::{self, Feature, ModelInput, Pixels, SegmentId};
use residuald::config::{InferenceSettings, Provider, default_rate};
use residuald::decode::{DecodeError, Decoder, Reason, RecordFormat, RowError, SegmentReader};
use residuald::image::{FIELD, ImageReader, Limits};
use residuald::onnx::{self, Nearest, ScorerError, ScorerPool};
use residuald::verdict::{Judge, Severity, ThresholdRule, Verdict};

use crate::error;
use crate::schema::Text;
use crate::table::Table;

/// Number of rows between two checks for a signal.
const CHUNK: usize = 16_384;
/// Number of images between two checks for a signal.
const IMAGE_CHUNK: usize = 64;
/// Number of rows in a batch on one core, as in the verbs.
const BATCH: usize = 256;

/// A bundle that its golden records have proved, with a session for each thread.
#[pyclass(frozen, module = "residuald._native")]
pub struct Bundle {
    judge: Judge,
    features: Vec<Feature>,
    pixels: Option<Pixels>,
    segments: Option<SegmentReader>,
    segment_names: Vec<String>,
    model: Mutex<Model>,
    #[pyo3(get)]
    sha256: String,
}

struct Model {
    pool: ScorerPool,
    nearest: Option<Nearest>,
}

/// Which records get a whole verdict.
#[derive(Clone, Copy)]
struct Explain {
    all: bool,
    anomalies: bool,
    /// The number of features or regions in each.
    most: usize,
}

/// Outputs for records in their order. NaN for a record that was refused.
#[derive(Default)]
struct Outputs {
    scores: Vec<f32>,
    p_values: Vec<f64>,
    grades: Vec<f32>,
    thresholds: Vec<f32>,
    /// 0 = none, 1 = warning, 2 = critical.
    severities: Vec<u8>,
    /// -1 = none.
    segments: Vec<i32>,
    refused: Vec<(usize, RowError)>,
    /// Row and JSON.
    verdicts: Vec<(usize, String)>,
    /// Row, heatmap and reconstruction, both PNG.
    maps: Vec<(usize, Vec<u8>, Vec<u8>)>,
}

#[pymethods]
impl Bundle {
    #[staticmethod]
    #[pyo3(signature = (path, threads, false_alarm_rate, threshold, cuda))]
    fn load(
        py: Python<'_>,
        path: PathBuf,
        threads: Option<usize>,
        false_alarm_rate: Option<f64>,
        threshold: Option<f32>,
        cuda: bool,
    ) -> PyResult<Bundle> {
        py.detach(|| loaded(&path, threads, (false_alarm_rate, threshold), cuda))
            .map_err(error)
    }

    #[getter]
    fn threshold(&self) -> f32 {
        self.judge.threshold
    }

    /// Whether the message key determines a record's segment.
    #[getter]
    fn by_key(&self) -> bool {
        let by = self.judge.segments().map(|(by, _)| by);
        by == Some(bundle::SegmentBy::Key)
    }

    /// Judges the records of a table. `keys` holds the message keys, [n], for a bundle that is calibrated by key.
    #[pyo3(signature = (table, keys, explain, most, progress))]
    fn score<'py>(
        &self,
        py: Python<'py>,
        table: &Bound<'py, Table>,
        keys: Option<Vec<Option<String>>>,
        explain: &str,
        most: usize,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let explain = Explain::of(explain, most);
        let table = &table.get().table;
        let payloads: Vec<&[u8]> = table.payloads().collect();
        let outputs = py.detach(|| self.judge_records(&payloads, keys, explain, progress))?;
        self.to_dict(py, outputs)
    }

    /// Judges encoded images, each a PNG, JPEG, WebP, BMP or TIFF.
    #[pyo3(signature = (images, explain, most, maps, progress))]
    fn score_images<'py>(
        &self,
        py: Python<'py>,
        images: Vec<Text<'py>>,
        explain: &str,
        most: usize,
        maps: bool,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let explain = Explain::of(explain, most);
        let images: Vec<&[u8]> = images.iter().map(Text::bytes).collect();
        let outputs = py.detach(|| self.judge_images(&images, explain, maps, progress))?;
        self.to_dict(py, outputs)
    }
}

/// Loads and proves the bundle in the folder `path`.
fn loaded(
    path: &Path,
    threads: Option<usize>,
    (rate, threshold): (Option<f64>, Option<f32>),
    cuda: bool,
) -> Result<Bundle, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut inference = InferenceSettings::on_cpu(threads.unwrap_or(cores).max(1));
    if cuda {
        inference.provider = Provider::Cuda;
        inference.workers = 1;
    }
    let onnx::Loaded {
        bundle,
        scorers,
        nearest,
        ..
    } = onnx::load(path, &inference, BATCH).map_err(|e| e.to_string())?;
    let rule = match (rate, threshold) {
        (_, Some(score)) => ThresholdRule::Score(score),
        (Some(rate), None) => ThresholdRule::FalseAlarmRate(rate),
        (None, None) => ThresholdRule::FalseAlarmRate(default_rate(&bundle.calibration)),
    };
    let features = bundle.features().to_vec();
    let segments = bundle.calibration.segments.as_ref();
    let names = segments.map(|segments| segments.values.iter().map(|s| s.value.clone()).collect());
    Ok(Bundle {
        segments: segments.map(SegmentReader::of),
        segment_names: names.unwrap_or_default(),
        judge: Judge::new(features.clone(), bundle.calibration.clone(), rule)
            .map_err(|e| e.to_string())?,
        pixels: match bundle.manifest.input {
            ModelInput::Tabular { .. } => None,
            ModelInput::Image(pixels) => Some(pixels),
        },
        model: Mutex::new(Model {
            pool: ScorerPool::new(scorers, features.len()),
            nearest,
        }),
        features,
        sha256: bundle.sha256,
    })
}

impl Bundle {
    fn judge_records(
        &self,
        payloads: &[&[u8]],
        keys: Option<Vec<Option<String>>>,
        explain: Explain,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Outputs> {
        let mut model = self.model.lock().expect("a scorer does not panic");
        let Model { pool, nearest } = &mut *model;
        let segments = self.segments.clone();
        let mut decoder = Decoder::new(&self.features, RecordFormat::Json, segments);
        let mut outputs = Outputs::for_records(payloads.len());
        let (mut rows, mut decoded) = (Vec::new(), Vec::new());
        for (chunk, part) in payloads.chunks(CHUNK).enumerate() {
            rows.clear();
            decoded.clear();
            for (at, payload) in part.iter().enumerate() {
                let record = chunk * CHUNK + at;
                let key = keys.as_ref().and_then(|keys| keys[record].as_deref());
                match decoder.decode(payload, key.map(str::as_bytes), &mut rows) {
                    Ok(segment) => decoded.push((record, segment)),
                    Err(DecodeError::Row(refused)) => outputs.refused.push((record, refused)),
                    Err(other @ (DecodeError::SchemaPending(_) | DecodeError::Nothing(_))) => {
                        unreachable!("plain JSON needs no schema and has no envelope: {other}")
                    }
                }
            }
            pool.score(&rows, |row, scored| {
                let (record, segment) = decoded[row];
                if let Some(flaw) = scored.flaw() {
                    let refused = RowError {
                        reason: Reason::Unscorable,
                        detail: flaw.into(),
                    };
                    outputs.refused.push((record, refused));
                    return Ok(());
                }
                let anomalous = self.judge.is_anomaly(scored.score, segment);
                let most = if explain.wants(anomalous) {
                    explain.most
                } else {
                    0
                };
                let normal = match nearest {
                    Some(nearest) if anomalous && most > 0 => nearest.of(scored.row)?,
                    _ => None,
                };
                let verdict = self.judge.judge(scored, segment, normal, most);
                outputs.add(record, segment, &verdict, explain.wants(anomalous));
                Ok::<(), ScorerError>(())
            })
            .map_err(error)?;
            report(progress.as_ref(), chunk * CHUNK + part.len())?;
        }
        Ok(outputs)
    }

    fn judge_images(
        &self,
        images: &[&[u8]],
        explain: Explain,
        maps: bool,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Outputs> {
        let pixels = self
            .pixels
            .ok_or_else(|| error("the bundle reads tables, not images"))?;
        let reader = ImageReader::new(pixels, FIELD, Limits::default());
        let mut model = self.model.lock().expect("a scorer does not panic");
        let mut outputs = Outputs::for_records(images.len());
        for (chunk, part) in images.chunks(IMAGE_CHUNK).enumerate() {
            let (threshold, most) = (self.judge.threshold, explain.most);
            let judged = model.pool.score_images(&reader, part, threshold, most);
            for (at, judged) in judged.map_err(error)?.into_iter().enumerate() {
                let image = chunk * IMAGE_CHUNK + at;
                let (score, finding) = match judged {
                    Ok(judged) => judged,
                    Err(refused) => {
                        outputs.refused.push((image, refused));
                        continue;
                    }
                };
                let wanted = explain.wants(self.judge.is_anomaly(score, None));
                let verdict = self.judge.judge_image(score, &finding, None, None);
                outputs.add(image, None, &verdict, wanted);
                if wanted && maps {
                    let (heat, expected) = (finding.heatmap.bytes, finding.reconstruction.bytes);
                    outputs.maps.push((image, heat, expected));
                }
            }
            report(progress.as_ref(), chunk * IMAGE_CHUNK + part.len())?;
        }
        Ok(outputs)
    }

    fn to_dict<'py>(&self, py: Python<'py>, outputs: Outputs) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("anomaly_score", outputs.scores.into_pyarray(py))?;
        dict.set_item("p_value", outputs.p_values.into_pyarray(py))?;
        dict.set_item("anomaly_grade", outputs.grades.into_pyarray(py))?;
        dict.set_item("threshold", outputs.thresholds.into_pyarray(py))?;
        dict.set_item("severity", outputs.severities.into_pyarray(py))?;
        dict.set_item("segment", outputs.segments.into_pyarray(py))?;
        dict.set_item("segments", &self.segment_names)?;
        let refused = outputs.refused.into_iter();
        let refused = refused.map(|(row, e)| (row, e.reason.as_str(), e.detail.to_string()));
        dict.set_item("refused", PyList::new(py, refused.collect::<Vec<_>>())?)?;
        dict.set_item("verdicts", outputs.verdicts)?;
        let png = |bytes: &[u8]| PyBytes::new(py, bytes);
        let maps = outputs.maps.iter();
        let maps = maps.map(|(row, heat, expected)| (*row, png(heat), png(expected)));
        dict.set_item("maps", PyList::new(py, maps.collect::<Vec<_>>())?)?;
        Ok(dict)
    }
}

impl Explain {
    fn of(explain: &str, most: usize) -> Explain {
        Explain {
            all: explain == "all",
            anomalies: explain == "anomalies",
            most,
        }
    }

    fn wants(self, anomalous: bool) -> bool {
        self.all || (self.anomalies && anomalous)
    }
}

impl Outputs {
    fn for_records(records: usize) -> Outputs {
        Outputs {
            scores: vec![f32::NAN; records],
            p_values: vec![f64::NAN; records],
            grades: vec![f32::NAN; records],
            thresholds: vec![f32::NAN; records],
            severities: vec![0; records],
            segments: vec![-1; records],
            ..Outputs::default()
        }
    }

    fn add(&mut self, at: usize, segment: Option<SegmentId>, verdict: &Verdict<'_>, whole: bool) {
        self.scores[at] = verdict.anomaly_score;
        self.p_values[at] = verdict.p_value;
        self.grades[at] = verdict.anomaly_grade;
        self.thresholds[at] = verdict.threshold;
        self.severities[at] = match verdict.severity {
            None => 0,
            Some(Severity::Warning) => 1,
            Some(Severity::Critical) => 2,
        };
        self.segments[at] = segment.map_or(-1, |SegmentId(id)| id as i32);
        if whole {
            let json = serde_json::to_string(verdict).expect("a verdict is JSON");
            self.verdicts.push((at, json));
        }
    }
}

/// Raises what a signal raises, KeyboardInterrupt for instance, or what `progress` raises.
fn report(progress: Option<&Py<PyAny>>, done: usize) -> PyResult<()> {
    Python::attach(|py| {
        py.check_signals()?;
        progress.map_or(Ok(()), |progress| progress.call1(py, (done,)).map(|_| ()))
    })
}

/// Names the ONNX Runtime library to load unless ORT_DYLIB_PATH names one. No effect once a bundle was loaded.
#[pyfunction]
pub fn use_library(path: PathBuf) {
    onnx::use_library(path);
}
