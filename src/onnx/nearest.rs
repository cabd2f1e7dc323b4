//! Finds the normal record nearest to an anomaly. This has its own session, because only anomalies need it.

use ort::session::Session;
use ort::value::{TensorElementType, TensorRef};

use super::buckets::{Buckets, padded};
use super::interrupt::Interrupt;
use super::outputs::values;
use super::scorer::{builder, commit, tensor_fault};
use super::{Runtime, ScorerError};
use crate::bundle::{Fault, Feature, Normals};
use crate::decode::JsonDecoder;
use crate::verdict::Neighbour;

pub(super) const MODEL: &str = "nearest.onnx";
const RECORDS: &str = "normals.ndjson";
/// The number of anomalies in one run. More of them in a batch are rare.
const AT_ONCE: usize = 64;

/// The session for the search. It is single-threaded and runs on the CPU.
#[derive(Debug)]
pub struct Nearest {
    session: Session,
    width: usize,
    /// [records, width]
    rows: Vec<f32>,
    ids: Vec<Option<String>>,
    buckets: Buckets,
    padded: Vec<f32>,
    interrupt: Interrupt,
}

impl Nearest {
    /// Decodes the normal records and creates a warmed-up session.
    ///
    /// # Errors
    /// [`ScorerError::Graph`] when a record does not fit the schema, or the graph does not fit the records.
    pub fn new(
        runtime: &Runtime,
        normals: &Normals,
        features: &[Feature],
    ) -> Result<Nearest, ScorerError> {
        let fault = |file, problem: String| ScorerError::Graph(vec![Fault::new(file, problem)]);
        let (mut decoder, mut rows) = (JsonDecoder::new(features), Vec::new());
        for (line, normal) in (1..).zip(&normals.records) {
            let decoded = decoder.decode(normal.record.get().as_bytes(), &mut rows);
            decoded.map_err(|e| {
                let problem = format!("record {line} does not fit the schema: {e}");
                fault(RECORDS, problem)
            })?;
        }
        let session = commit(&mut builder(runtime)?, MODEL, &normals.model)?;
        let width = features.len();
        let row = [-1, width as i64];
        let input = session.inputs().iter().find(|tensor| tensor.name() == "x");
        let mut outputs = session.outputs().iter();
        let output = outputs.find(|tensor| tensor.name() == "nearest");
        let faults = [
            tensor_fault("input", "x", TensorElementType::Float32, &row, input),
            tensor_fault("output", "nearest", TensorElementType::Int64, &[-1], output),
        ];
        if let Some(problem) = faults.into_iter().flatten().next() {
            return Err(fault(MODEL, problem));
        }
        let mut nearest = Nearest {
            session,
            width,
            rows,
            ids: normals.records.iter().map(|n| n.id.clone()).collect(),
            buckets: Buckets::up_to(AT_ONCE),
            padded: Vec::new(),
            interrupt: runtime.interrupt.clone(),
        };
        let rows = nearest.rows.clone();
        if nearest.ask(&rows)?.contains(&None) {
            let count = nearest.ids.len();
            let problem = format!(
                "returns the number of a record that does not exist: {RECORDS} holds {count} records"
            );
            return Err(fault(MODEL, problem));
        }
        Ok(nearest)
    }

    /// Returns the number of the nearest record for each row of `rows`, [n, features], independently of the other rows.
    /// A number is `None` if the graph returns no valid number.
    ///
    /// # Errors
    /// [`ScorerError::Run`] when ONNX Runtime fails.
    pub fn ask(&mut self, rows: &[f32]) -> Result<Vec<Option<usize>>, ScorerError> {
        let mut numbers = Vec::with_capacity(rows.len() / self.width);
        for part in rows.chunks(self.buckets.largest() * self.width) {
            let count = part.len() / self.width;
            let bucket = self.buckets.fit(count);
            let input = padded(part, bucket * self.width, &mut self.padded);
            let x = TensorRef::from_array_view(([bucket, self.width], input))?;
            let runs = self.interrupt.runs()?;
            let outputs = self
                .session
                .run_with_options(ort::inputs!["x" => x], runs)
                .map_err(|e| self.interrupt.failure(e))?;
            let found = values::<i64>(&outputs, MODEL, "nearest", &[bucket])?;
            let known = |&n: &i64| usize::try_from(n).ok().filter(|n| *n < self.ids.len());
            numbers.extend(found[..count].iter().map(known));
        }
        Ok(numbers)
    }

    /// Returns the record with this number.
    pub fn record(&self, number: usize) -> Neighbour<'_> {
        Neighbour {
            id: self.ids[number].as_deref(),
            row: &self.rows[number * self.width..(number + 1) * self.width],
        }
    }

    /// Returns the record nearest to `row`, [features].
    ///
    /// # Errors
    /// [`ScorerError::Run`] when ONNX Runtime fails.
    pub fn of(&mut self, row: &[f32]) -> Result<Option<Neighbour<'_>>, ScorerError> {
        let found = self.ask(row)?[0];
        Ok(found.map(|number| self.record(number)))
    }
}
