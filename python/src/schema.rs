//! Schemas: the features of a model's input, as Python objects and as the daemon's.

use std::sync::Mutex;

use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use residuald::bundle::Feature;
use residuald::bundle::manifest::feature_faults;
use residuald::decode::JsonDecoder;
use serde_json::Value;

use crate::{RefusedError, error, named};

/// The features of a row, checked.
///
/// `Schema(features)`: a sequence of dicts as in a bundle's manifest, or a Schema. Raises Error with every fault.
#[pyclass(frozen, module = "residuald")]
pub struct Schema {
    pub features: Vec<Feature>,
    decoder: Mutex<JsonDecoder>,
}

#[pymethods]
impl Schema {
    #[new]
    fn new(features: &Bound<'_, PyAny>) -> PyResult<Schema> {
        let features = features_of(features)?;
        let decoder = Mutex::new(JsonDecoder::new(&features));
        Ok(Schema { features, decoder })
    }

    fn __len__(&self) -> usize {
        self.features.len()
    }

    /// One record, the text of a JSON object -> float32 [features]: NaN = missing, -1 = a category that is not in the vocabulary.
    ///
    /// Raises RefusedError.
    fn decode<'py>(&self, py: Python<'py>, record: Text) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let mut row = Vec::with_capacity(self.features.len());
        let mut decoder = self.decoder.lock().expect("a decoder does not panic");
        match decoder.decode(record.bytes(), &mut row) {
            Ok(_) => Ok(row.into_pyarray(py)),
            Err(refused) => Err(RefusedError::new_err(named(&refused.to_string()))),
        }
    }
}

/// A schema's features -> the same, every key checked, with the defaults of what may be left out. Raises Error with every fault.
#[pyfunction]
pub fn check_schema<'py>(features: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let checked = serde_json::to_string(&features_of(features)?).map_err(error)?;
    features
        .py()
        .import("json")?
        .call_method1("loads", (checked,))
}

/// Features of a Schema, or of dicts.
pub fn features_of(schema: &Bound<'_, PyAny>) -> PyResult<Vec<Feature>> {
    if let Ok(schema) = schema.cast::<Schema>() {
        return Ok(schema.get().features.clone());
    }
    let list = schema
        .py()
        .import("builtins")?
        .call_method1("list", (schema,));
    let list = list.map_err(|_| error("a schema's features must be a list of objects"))?;
    let text: String = schema
        .py()
        .import("json")?
        .call_method1("dumps", (list,))?
        .extract()?;
    let entries: Vec<Value> = serde_json::from_str(&text).map_err(error)?;
    let mut features = Vec::with_capacity(entries.len());
    let mut faults = Vec::new();
    for (number, entry) in entries.into_iter().enumerate() {
        match feature_of(number, &entry) {
            Ok(feature) => features.push(feature),
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() {
        faults = feature_faults(&features);
    }
    if faults.is_empty() {
        return Ok(features);
    }
    Err(error(faults.join("; ")))
}

fn feature_of(number: usize, entry: &Value) -> Result<Feature, String> {
    let place = match entry.get("name").and_then(Value::as_str) {
        Some(name) if !name.is_empty() => format!("feature `{name}`"),
        _ => {
            return Err(format!(
                "feature {number} has no name: every feature needs a `name`"
            ));
        }
    };
    let feature: Feature =
        serde_json::from_value(entry.clone()).map_err(|e| format!("{place}: {e}"))?;
    let known = serde_json::to_value(&feature).map_err(|e| e.to_string())?;
    let said_nothing =
        |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    let unknown = entry
        .as_object()
        .into_iter()
        .flatten()
        .find(|(key, value)| !said_nothing(value) && known.get(key).is_none());
    match unknown {
        None => Ok(feature),
        Some((key, _)) => Err(format!(
            "{place}: a feature of type {} has no key `{key}`",
            known["type"].as_str().unwrap_or_default()
        )),
    }
}

/// JSON as `bytes` or `str`.
#[derive(FromPyObject)]
pub enum Text<'py> {
    Bytes(Bound<'py, PyBytes>),
    Str(pyo3::pybacked::PyBackedStr),
}

impl Text<'_> {
    pub fn bytes(&self) -> &[u8] {
        match self {
            Text::Bytes(bytes) => bytes.as_bytes(),
            Text::Str(text) => text.as_bytes(),
        }
    }
}
