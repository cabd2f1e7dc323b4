//! Files of records in memory.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use arrow_array::RecordBatchReader;
use arrow_array::ffi_stream::RecordBatchStreamReader;
use numpy::ndarray::Array2;
use numpy::{IntoPyArray, PyArray1, PyArray2, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyCapsule, PyDict};
use residuald::bundle::SegmentBy;
use residuald::bundle::notation::MissingValue;
use residuald::dataset::inference::{Wishes, infer, infer_columns};
use residuald::dataset::table;
use residuald::dataset::{Progress, Unit};
use residuald::decode::{Decoder, Envelope, RecordFormat, SegmentReader, Unwrap, Wrapping};

use serde::Serialize;

use crate::schema::{Text, features_of};
use crate::{error, named};

/// Records in the order of their files. `Table(records)` holds JSON objects that are in memory already, `bytes` or `str`.
#[pyclass(frozen, module = "residuald")]
pub struct Table {
    pub table: table::Table,
    paths: OnceLock<Vec<String>>,
}

impl From<table::Table> for Table {
    fn from(table: table::Table) -> Table {
        Table {
            table,
            paths: OnceLock::new(),
        }
    }
}

type Opened = (Table, BTreeMap<usize, (&'static str, String)>);

type Encoded<'py> = (
    Bound<'py, PyArray2<f32>>,
    Bound<'py, PyArray1<bool>>,
    Bound<'py, PyDict>,
);

#[pymethods]
impl Table {
    #[new]
    fn new(records: Vec<Text>) -> Table {
        let records = records.iter().map(|record| record.bytes().to_vec());
        table::Table::from_payloads(records).into()
    }

    /// A data frame or table with Arrow's C stream interface (`__arrow_c_stream__`) -> Table. Its buffers are not copied. A column
    /// `a.b` is the field `b` of the object `a`. The index of a pandas frame is a column if it has a name. Raises Error.
    #[staticmethod]
    fn from_arrow(data: &Bound<'_, PyAny>) -> PyResult<Table> {
        let frames = data.py().import("residuald.frames")?;
        let data = frames.call_method1("without_unnamed_index", (data,))?;
        let mut reader = batches_of(&data)?;
        let schema = reader.schema();
        let table = table::Table::from_batches(schema, &mut reader).map_err(error)?;
        Ok(table.into())
    }

    /// Numbers, float64 [n, paths], as the fields at these dotted paths -> Table. NaN is a missing value. Raises Error.
    #[staticmethod]
    fn from_rows(paths: Vec<String>, rows: PyReadonlyArray2<'_, f64>) -> PyResult<Table> {
        let rows = rows.as_array();
        let values: Vec<f64> = rows.iter().copied().collect();
        let table = table::Table::from_rows(&paths, &values).map_err(error)?;
        Ok(table.into())
    }

    fn __len__(&self) -> usize {
        self.table.len()
    }

    /// The dotted paths of the fields, in the order in which they first appear.
    #[getter]
    fn paths(&self, py: Python<'_>) -> Vec<String> {
        py.detach(|| self.paths.get_or_init(|| self.table.paths()))
            .clone()
    }

    /// The files that were read, a dict each: `path`, `rows` (in the file) and `drawn` (of them in the table, None if all).
    #[getter]
    fn files<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let dict = |file: &table::FileFacts| {
            let facts = PyDict::new(py);
            facts.set_item("path", &file.path)?;
            facts.set_item("rows", file.rows)?;
            facts.set_item("drawn", file.drawn)?;
            Ok(facts)
        };
        self.table.files.iter().map(dict).collect()
    }

    /// What was left out or changed in reading, a sentence each.
    #[getter]
    fn notes(&self) -> Vec<String> {
        self.table.notes.iter().map(|note| named(note)).collect()
    }

    /// The JSON of one record, as a producer would send it.
    fn record<'py>(&self, py: Python<'py>, row: usize) -> PyResult<Bound<'py, PyBytes>> {
        self.check(row)?;
        Ok(PyBytes::new(py, self.table.payload(row)))
    }

    /// The rows of those numbers, int64 [n], in that order. Shares the records' memory.
    fn take(&self, rows: PyReadonlyArray1<'_, i64>) -> PyResult<Table> {
        let rows = rows.as_array();
        let rows: Vec<usize> = rows
            .iter()
            .map(|&row| self.row(row))
            .collect::<PyResult<_>>()?;
        Ok(self.table.take(rows).into())
    }

    /// A schema (dicts as in a manifest, or a Schema) -> (X float32 [n, features], accepted bool [n], {reason: records refused}).
    ///
    /// NaN = missing, -1 = a category that is not in the vocabulary. A refused record's row is NaN.
    fn encode<'py>(&self, py: Python<'py>, schema: &Bound<'py, PyAny>) -> PyResult<Encoded<'py>> {
        let features = features_of(schema)?;
        let encoded = py.detach(|| self.table.encode(&features));
        let x = Array2::from_shape_vec((self.table.len(), features.len()), encoded.x);
        let x = x.map_err(error)?.into_pyarray(py);
        let refused = PyDict::new(py);
        for (reason, count) in encoded.refused {
            refused.set_item(named(&reason), count)?;
        }
        Ok((x, encoded.accepted.into_pyarray(py), refused))
    }

    /// The records taken out of their envelopes -> (Table [n], {row: (reason, detail)} of those that cannot be or that have nothing
    /// to score; their record is null).
    fn opened(&self, py: Python<'_>, envelope: Vec<String>, allow_nan: bool) -> PyResult<Opened> {
        let wrapping = wrapping(&envelope, "none", allow_nan)?;
        let mut refused = BTreeMap::new();
        let payloads = py.detach(|| {
            let records = self.table.payloads().enumerate();
            let plain = records.map(|(row, payload)| {
                let (reason, detail) = match wrapping.plain(payload) {
                    Ok(Ok(plain)) => return plain,
                    Ok(Err(skip)) => (skip.as_str(), "there is nothing to score".to_owned()),
                    Err(e) => (e.reason.as_str(), named(&e.to_string())),
                };
                refused.insert(row, (reason, detail));
                b"null".to_vec()
            });
            plain.collect::<Vec<_>>()
        });
        Ok((table::Table::from_payloads(payloads).into(), refused))
    }

    /// The texts at a dotted path [n], as categories have them: None if missing or not a plain value.
    fn texts(&self, py: Python<'_>, path: &str) -> Vec<Option<String>> {
        py.detach(|| self.table.texts(path))
    }

    /// The numbers at a dotted path, float64 [n]: NaN if missing or not a number.
    fn numbers<'py>(&self, py: Python<'py>, path: &str) -> Bound<'py, PyArray1<f64>> {
        py.detach(|| self.table.numbers(path)).into_pyarray(py)
    }

    /// Whether the label at a dotted path is `normal`, bool [n]: compared as numbers if both are numbers, otherwise as text.
    ///
    /// A missing label is not normal.
    fn is_normal<'py>(
        &self,
        py: Python<'py>,
        path: &str,
        normal: &str,
    ) -> Bound<'py, PyArray1<bool>> {
        let labels = py.detach(|| self.table.is_normal(path, normal));
        let labels: Vec<bool> = labels
            .into_iter()
            .map(|label| label == Some(true))
            .collect();
        labels.into_pyarray(py)
    }

    /// The segments by the field at a dotted path [n], as the daemon names them. None for a record without a segment.
    fn segments(&self, py: Python<'_>, path: &str) -> Vec<Option<String>> {
        py.detach(|| {
            let by = SegmentBy::Field(path.to_owned());
            let mut decoder =
                Decoder::new(&[], RecordFormat::Json, Some(SegmentReader::learning(by)));
            let mut ids = Vec::with_capacity(self.table.len());
            for record in self.table.payloads() {
                ids.push(decoder.decode(record, None, &mut Vec::new()).ok().flatten());
            }
            let names = decoder.segments();
            ids.into_iter()
                .map(|id| Some(names[id?.0 as usize].clone()))
                .collect()
        })
    }

    /// Guesses a schema -> (features as dicts, notes: what was converted or left out, why, and how to change it).
    ///
    /// Leaves out the paths in `leave_out`. Takes those in `keep` even where they look like identifiers or only grow. Texts and
    /// numbers in `missing` count as missing.
    #[pyo3(signature = (leave_out = vec![], keep = vec![], missing = vec![]))]
    fn infer<'py>(
        &self,
        py: Python<'py>,
        leave_out: Vec<String>,
        keep: Vec<String>,
        missing: Vec<Spelling>,
    ) -> PyResult<(Bound<'py, PyAny>, Vec<String>)> {
        let wishes = wishes(leave_out, keep, missing);
        let inferred = py.detach(|| infer(&self.table, &wishes)).map_err(error)?;
        Ok((objects(py, &inferred.features)?, inferred.notes))
    }

    /// What `infer` makes of every column, a dict each: `path`, `read_as` (None if it is left out), `notes` (why), `examples` and
    /// `missing` (records without a value).
    #[pyo3(signature = (leave_out = vec![], keep = vec![], missing = vec![]))]
    fn describe<'py>(
        &self,
        py: Python<'py>,
        leave_out: Vec<String>,
        keep: Vec<String>,
        missing: Vec<Spelling>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let wishes = wishes(leave_out, keep, missing);
        let inferred = py.detach(|| infer_columns(&self.table, &wishes));
        objects(py, &inferred.map_err(error)?.columns)
    }
}

impl Table {
    fn check(&self, row: usize) -> PyResult<()> {
        let length = self.table.len();
        let message = || format!("no row {row}: the table has {length}");
        if row < length {
            Ok(())
        } else {
            Err(PyIndexError::new_err(message()))
        }
    }

    fn row(&self, row: i64) -> PyResult<usize> {
        let row =
            usize::try_from(row).map_err(|_| PyIndexError::new_err(format!("no row {row}")))?;
        self.check(row).map(|()| row)
    }
}

/// Data with Arrow's C stream interface -> a reader of its record batches.
pub fn batches_of(data: &Bound<'_, PyAny>) -> PyResult<RecordBatchStreamReader> {
    let capsule = data.call_method0("__arrow_c_stream__")?;
    let capsule = capsule.cast::<PyCapsule>()?;
    let stream = capsule.pointer_checked(Some(c"arrow_array_stream"))?;
    // SAFETY: a capsule of this name holds a stream (Arrow PyCapsule interface), which the reader moves out of it.
    let reader = unsafe { RecordBatchStreamReader::from_raw(stream.as_ptr().cast()) };
    reader.map_err(error)
}

/// A value that counts as missing.
#[derive(FromPyObject)]
pub enum Spelling {
    Number(f64),
    Text(String),
}

fn wishes(leave_out: Vec<String>, keep: Vec<String>, missing: Vec<Spelling>) -> Wishes {
    let missing = missing.into_iter().map(|value| match value {
        Spelling::Number(number) => MissingValue::Number(number),
        Spelling::Text(text) => MissingValue::Text(text),
    });
    Wishes {
        leave_out,
        keep,
        missing: missing.collect(),
    }
}

/// Python objects of what JSON can hold.
fn objects<'py>(py: Python<'py>, value: &impl Serialize) -> PyResult<Bound<'py, PyAny>> {
    let json = serde_json::to_string(value).map_err(error)?;
    py.import("json")?.call_method1("loads", (json,))
}

/// A path, or several.
#[derive(FromPyObject)]
pub enum Paths {
    One(PathBuf),
    Several(Vec<PathBuf>),
}

/// Reads files in order. Each may be a folder of part files, a pattern such as "part-*.csv", or "-" for standard input.
///
/// `format` is "csv", "tsv", "ndjson", "json", "parquet", "arrow" or "npz"; by default the files' names tell it, or their content
/// if they have no extension. If the files hold more than `max_rows` records, `max_rows` are drawn at random, each equally likely.
///
/// `envelope` (names, the outermost first), `unwrap` and `allow_nan` say how JSON records are wrapped, as the daemon's settings
/// input.envelope, input.unwrap and input.allow_nan do.
/// `progress(path, done, total, unit)` is called now and then; `unit` is "bytes" or "rows". Raises Error, which names the file.
#[pyfunction]
#[pyo3(signature = (files, max_rows = None, seed = 0, progress = None, format = None, envelope = vec![], unwrap = "none", allow_nan = false))]
#[expect(
    clippy::too_many_arguments,
    reason = "they are Python's keyword arguments"
)]
pub fn read(
    py: Python<'_>,
    files: Paths,
    max_rows: Option<usize>,
    seed: u64,
    progress: Option<Py<PyAny>>,
    format: Option<&str>,
    envelope: Vec<String>,
    unwrap: &str,
    allow_nan: bool,
) -> PyResult<Table> {
    let files = match files {
        Paths::One(file) => vec![file],
        Paths::Several(files) => files,
    };
    let format = format.map(str::parse).transpose();
    let format = format.map_err(PyValueError::new_err::<String>)?;
    let wrapping = wrapping(&envelope, unwrap, allow_nan)?;
    if files.is_empty() || max_rows == Some(0) {
        return Err(PyValueError::new_err(
            "read needs a file, and max_rows of at least 1",
        ));
    }
    let mut stopped = None;
    let read = py.detach(|| {
        table::Table::read(
            &files,
            format,
            (!wrapping.is_plain()).then_some(wrapping),
            max_rows.unwrap_or(usize::MAX),
            seed,
            |path, done| match Python::attach(|py| report(py, progress.as_ref(), path, done)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    stopped = Some(error);
                    ControlFlow::Break(())
                }
            },
        )
    });
    match stopped {
        Some(error) => Err(error),
        None => read.map(Table::from).map_err(error),
    }
}

/// How JSON records are wrapped, as Python's arguments say it.
pub fn wrapping(envelope: &[String], unwrap: &str, allow_nan: bool) -> PyResult<Wrapping> {
    let envelopes = envelope.iter().map(|name| name.parse::<Envelope>());
    Ok(Wrapping {
        envelopes: envelopes
            .collect::<Result<_, String>>()
            .map_err(|problem| PyValueError::new_err(format!("envelope: {problem}")))?,
        unwrap: unwrap
            .parse::<Unwrap>()
            .map_err(|problem| PyValueError::new_err(format!("unwrap: {problem}")))?,
        allow_nan,
        ..Wrapping::default()
    })
}

/// Raises what a signal raises, KeyboardInterrupt for instance.
fn report(
    py: Python<'_>,
    progress: Option<&Py<PyAny>>,
    path: &Path,
    done: Progress,
) -> PyResult<()> {
    py.check_signals()?;
    if let Some(progress) = progress {
        let unit = match done.unit {
            Unit::Bytes => "bytes",
            Unit::Rows => "rows",
        };
        progress.call1(py, (path, done.done, done.total, unit))?;
    }
    Ok(())
}
