//! Bundles: judge records and images as the daemon does.

use std::convert::Infallible;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread;

use arrow_array::{RecordBatch, RecordBatchReader};
use numpy::IntoPyArray;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use residuald::bundle::{self, ModelInput, Pixels, SegmentId};
use residuald::config::{Provider, default_rate};
use residuald::dataset::arrow::Payloads;
use residuald::dataset::{self, ErrorKind, Example, Options};
use residuald::decode::{DecodeError, Decoder, Reason, RecordFormat, RowError, SegmentReader};
use residuald::image::{BitDepth, FIELD, ImageReader, Limits};
use residuald::onnx::{self, CHUNK, IMAGE_CHUNK, Nearest, ScorerError, ScorerPool, inference_on};
use residuald::verdict::{Judge, Severity, ThresholdRule, Verdict};

use crate::schema::Text;
use crate::table::{Table, batches_of, wrapping};
use crate::{error, named};

/// Fewer records than this are decoded on one thread.
const FEWEST: usize = 512;
/// A bundle that its golden records have proved, with a session for each thread.
#[pyclass(frozen, module = "residuald._native")]
pub struct Bundle {
    judge: Judge,
    pixels: Option<Pixels>,
    segment_names: Vec<String>,
    model: Mutex<Model>,
    #[pyo3(get)]
    sha256: String,
}

struct Model {
    pool: ScorerPool,
    nearest: Option<Nearest>,
    /// One for each thread.
    decoders: Vec<Decoder>,
}

/// A record of a file or a frame: its payload, or the reason that it could not be read, and its message key.
struct Read<P> {
    payload: Result<P, String>,
    key: Option<Vec<u8>>,
}

/// The rows of some records, and each one's segment or the reason that it has no row.
#[derive(Default)]
struct Decoded {
    rows: Vec<f32>,
    outcomes: Vec<Result<Option<SegmentId>, RowError>>,
}

fn decode<P: AsRef<[u8]>>(decoder: &mut Decoder, records: &[Read<P>]) -> Decoded {
    let mut decoded = Decoded::default();
    for Read { payload, key } in records {
        let outcome = match payload {
            Ok(payload) => decoder.decode(payload.as_ref(), key.as_deref(), &mut decoded.rows),
            Err(problem) => Err(DecodeError::Row(RowError {
                reason: Reason::Malformed,
                detail: problem.clone().into(),
            })),
        };
        decoded.outcomes.push(outcome.map_err(|e| match e {
            DecodeError::Row(refused) => refused,
            other => unreachable!("plain JSON needs no schema and has no envelope: {other}"),
        }));
    }
    decoded
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
        let outputs = py.detach(|| {
            let mut keys = keys.into_iter().flatten();
            let records = table.payloads().map(|payload| {
                Ok::<_, Infallible>(Read {
                    payload: Ok(payload),
                    key: keys.next().flatten().map(String::into_bytes),
                })
            });
            self.judge_records(records, explain, progress)
        })?;
        self.to_dict(py, outputs, table.notes.clone())
    }

    /// Judges the records of files. `key` is the path of the field that holds the message key. A line that is no record is refused.
    #[pyo3(signature = (files, key, wrapped, explain, most, progress))]
    #[expect(clippy::too_many_arguments, reason = "they are those of Bundle.score")]
    fn score_files<'py>(
        &self,
        py: Python<'py>,
        files: Vec<PathBuf>,
        key: Option<String>,
        wrapped: (Vec<String>, String, bool),
        explain: &str,
        most: usize,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let explain = Explain::of(explain, most);
        let (envelope, unwrap, allow_nan) = wrapped;
        let wrapping = wrapping(&envelope, &unwrap, allow_nan)?;
        let options = Options {
            key,
            wrapping: (!wrapping.is_plain()).then_some(wrapping),
            ..Options::default()
        };
        let (outputs, notes) = py.detach(|| {
            let mut data = dataset::open_all(&files, &options).map_err(error)?;
            let records = data.by_ref().map(|read| match read {
                Ok(Example { payload, key, .. }) => Ok(Read {
                    payload: Ok(payload),
                    key,
                }),
                Err(e) if e.is_fatal() => Err(e),
                Err(e) => Ok(Read {
                    payload: Err(e.to_string()),
                    key: None,
                }),
            });
            let outputs = self.judge_records(records, explain, progress)?;
            Ok::<_, PyErr>((outputs, data.notes()))
        })?;
        self.to_dict(py, outputs, notes)
    }

    /// Judges the rows of a data frame or table with Arrow's C stream interface.
    #[pyo3(signature = (data, explain, most, progress))]
    fn score_arrow<'py>(
        &self,
        py: Python<'py>,
        data: &Bound<'py, PyAny>,
        explain: &str,
        most: usize,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let explain = Explain::of(explain, most);
        let batches = batches_of(data)?;
        let mut payloads = Payloads::new(batches.schema()).map_err(error)?;
        let outputs = py.detach(|| {
            let payloads = &mut payloads;
            let rows = batches.flat_map(|batch| {
                let rows = batch.as_ref().map_or(1, RecordBatch::num_rows);
                std::iter::repeat_n(Arc::new(batch), rows).enumerate()
            });
            let records = rows.map(|(row, batch)| match &*batch {
                Ok(batch) => Ok(Read {
                    payload: Ok(payloads.write(batch, row)?),
                    key: None,
                }),
                Err(e) => Err(ErrorKind::Columns(e.to_string())),
            });
            self.judge_records(records, explain, progress)
        })?;
        self.to_dict(py, outputs, payloads.notes())
    }

    /// Judges encoded images, each a PNG, JPEG, WebP, BMP or TIFF.
    #[pyo3(signature = (images, explain, most, maps, bit_depth, progress))]
    #[expect(clippy::too_many_arguments, reason = "they are those of Bundle.score")]
    fn score_images<'py>(
        &self,
        py: Python<'py>,
        images: Vec<Text<'py>>,
        explain: &str,
        most: usize,
        maps: bool,
        bit_depth: u32,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let explain = Explain::of(explain, most);
        let pixels = self
            .pixels
            .ok_or_else(|| error("the bundle reads tables, not images"))?;
        let depth = BitDepth::new(bit_depth);
        let reader = ImageReader::new(pixels, FIELD, Limits::default()).with_depth(depth);
        let images: Vec<&[u8]> = images.iter().map(Text::bytes).collect();
        let outputs = py.detach(|| self.judge_images(&reader, &images, explain, maps, progress))?;
        self.to_dict(py, outputs, Vec::from_iter(reader.depth().warning()))
    }
}

/// Loads and proves the bundle in the folder `path`.
fn loaded(
    path: &Path,
    threads: Option<usize>,
    (rate, threshold): (Option<f64>, Option<f32>),
    cuda: bool,
) -> Result<Bundle, String> {
    let provider = if cuda { Provider::Cuda } else { Provider::Cpu };
    let (mut inference, batch) = inference_on(provider);
    if let Some(threads) = threads.filter(|_| !cuda) {
        inference.workers = threads.max(1);
    }
    let onnx::Loaded {
        bundle,
        scorers,
        nearest,
        ..
    } = onnx::load(path, &inference, batch).map_err(|e| e.to_string())?;
    let rule = match (rate, threshold) {
        (_, Some(score)) => ThresholdRule::Score(score),
        (Some(rate), None) => ThresholdRule::FalseAlarmRate(rate),
        (None, None) => ThresholdRule::FalseAlarmRate(default_rate(&bundle.calibration)),
    };
    let features = bundle.features().to_vec();
    let segments = bundle.calibration.segments.as_ref();
    let names = segments.map(|segments| segments.values.iter().map(|s| s.value.clone()).collect());
    let decoders = std::iter::repeat_with(|| {
        let segment = segments.map(SegmentReader::of);
        Decoder::new(&features, RecordFormat::Json, segment)
    });
    Ok(Bundle {
        segment_names: names.unwrap_or_default(),
        judge: Judge::new(features.clone(), bundle.calibration.clone(), rule)
            .map_err(|e| e.to_string())?,
        pixels: match bundle.manifest.input {
            ModelInput::Tabular { .. } => None,
            ModelInput::Image(pixels) => Some(pixels),
        },
        model: Mutex::new(Model {
            decoders: decoders.take(scorers.len()).collect(),
            pool: ScorerPool::new(scorers, features.len()),
            nearest,
        }),
        sha256: bundle.sha256,
    })
}

impl Bundle {
    /// Judges records while another thread reads the next ones.
    fn judge_records<P: AsRef<[u8]> + Send + Sync, E: ToString + Send>(
        &self,
        records: impl Iterator<Item = Result<Read<P>, E>> + Send,
        explain: Explain,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Outputs> {
        let mut model = self.model.lock().expect("a scorer does not panic");
        let mut outputs = Outputs::default();
        thread::scope(|scope| {
            // The reader ends when the receiver is dropped.
            let (send, chunks) = sync_channel(1);
            scope.spawn(move || {
                let mut records = records.peekable();
                while records.peek().is_some() {
                    let chunk: Result<Vec<Read<P>>, _> = records.by_ref().take(CHUNK).collect();
                    if send.send(chunk).is_err() {
                        return;
                    }
                }
            });
            for chunk in chunks {
                let chunk = chunk.map_err(error)?;
                let scored = self.judge_chunk(&mut model, &chunk, explain, &mut outputs);
                scored.map_err(error)?;
                report(progress.as_ref(), outputs.scores.len())?;
            }
            Ok(outputs)
        })
    }

    fn judge_chunk<P: AsRef<[u8]> + Sync>(
        &self,
        model: &mut Model,
        chunk: &[Read<P>],
        explain: Explain,
        outputs: &mut Outputs,
    ) -> Result<(), ScorerError> {
        let first = outputs.begin(chunk.len());
        let Model {
            pool,
            nearest,
            decoders,
        } = model;
        let (mut rows, mut decoded) = (Vec::new(), Vec::new());
        let part = chunk.len().div_ceil(decoders.len()).max(FEWEST);
        let parts = thread::scope(|scope| {
            let parts = decoders.iter_mut().zip(chunk.chunks(part));
            let threads: Vec<_> = parts
                .map(|(decoder, part)| scope.spawn(move || decode(decoder, part)))
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.collect::<Vec<_>>()
        });
        let mut record = first;
        for part in parts {
            let part = part.unwrap_or_else(|panic| resume_unwind(panic));
            rows.extend_from_slice(&part.rows);
            for outcome in part.outcomes {
                match outcome {
                    Ok(segment) => decoded.push((record, segment)),
                    Err(refused) => outputs.refused.push((record, refused)),
                }
                record += 1;
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
            let wanted = explain.wants(anomalous);
            let most = if wanted { explain.most } else { 0 };
            let normal = match nearest {
                Some(nearest) if anomalous && wanted => nearest.of(scored.row)?,
                _ => None,
            };
            let verdict = self.judge.judge(scored, segment, normal, most);
            outputs.add(record, segment, &verdict, wanted);
            Ok(())
        })
    }

    fn judge_images(
        &self,
        reader: &ImageReader,
        images: &[&[u8]],
        explain: Explain,
        maps: bool,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Outputs> {
        let mut model = self.model.lock().expect("a scorer does not panic");
        let mut outputs = Outputs::default();
        outputs.begin(images.len());
        for (chunk, part) in images.chunks(IMAGE_CHUNK).enumerate() {
            // Bare images have neither a field nor a key, so they have no segment.
            let part: Vec<_> = part.iter().map(|i| (*i, self.judge.threshold)).collect();
            let judged = model.pool.score_images(reader, &part, explain.most);
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
                let verdict = self.judge.judge_image(score, None, &finding, None, None);
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

    fn to_dict<'py>(
        &self,
        py: Python<'py>,
        outputs: Outputs,
        notes: Vec<String>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        let notes: Vec<String> = notes.iter().map(|note| named(note)).collect();
        dict.set_item("notes", notes)?;
        dict.set_item("anomaly_score", outputs.scores.into_pyarray(py))?;
        dict.set_item("p_value", outputs.p_values.into_pyarray(py))?;
        dict.set_item("anomaly_grade", outputs.grades.into_pyarray(py))?;
        dict.set_item("threshold", outputs.thresholds.into_pyarray(py))?;
        dict.set_item("severity", outputs.severities.into_pyarray(py))?;
        dict.set_item("segment", outputs.segments.into_pyarray(py))?;
        dict.set_item("segments", &self.segment_names)?;
        let refused = outputs.refused.into_iter();
        let refused = refused.map(|(row, e)| (row, e.reason.as_str(), named(&e.detail)));
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
    /// Makes room for `records` more, and returns the number of the first.
    fn begin(&mut self, records: usize) -> usize {
        let first = self.scores.len();
        let all = first + records;
        self.scores.resize(all, f32::NAN);
        self.p_values.resize(all, f64::NAN);
        self.grades.resize(all, f32::NAN);
        self.thresholds.resize(all, f32::NAN);
        self.severities.resize(all, 0);
        self.segments.resize(all, -1);
        first
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
