//! The normal record that is most like an anomaly. Asked for anomalies only, so a session of its own.

use ort::session::Session;
use ort::value::{TensorElementType, TensorRef};

use super::scorer::{builder, commit, tensor_fault};
use super::{Runtime, ScorerError};
use crate::bundle::{Fault, Feature, Normals};
use crate::decode::JsonDecoder;
use crate::verdict::Neighbour;

const MODEL: &str = "nearest.onnx";
const RECORDS: &str = "normals.ndjson";

/// Single-threaded, on the CPU.
#[derive(Debug)]
pub struct Nearest {
    session: Session,
    width: usize,
    /// [records, width]
    rows: Vec<f32>,
    ids: Vec<Option<String>>,
}

impl Nearest {
    /// # Errors
    /// [`ScorerError::Graph`] when a record does not fit the schema, or the graph not the records.
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
        let (input, output) = (session.inputs().first(), session.outputs().first());
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
        };
        let rows = nearest.rows.clone();
        if nearest.ask(&rows)?.contains(&None) {
            let count = nearest.ids.len();
            let problem = format!("names a record beyond the {count} of {RECORDS}");
            return Err(fault(MODEL, problem));
        }
        Ok(nearest)
    }

    /// The number of a record for each row of `rows`, [n, features]; `None` where the graph names no record.
    ///
    /// # Errors
    /// [`ScorerError::Run`] when ONNX Runtime fails.
    fn ask(&mut self, rows: &[f32]) -> Result<Vec<Option<usize>>, ScorerError> {
        let shape = [rows.len() / self.width, self.width];
        let x = TensorRef::from_array_view((shape, rows))?;
        let outputs = self.session.run(ort::inputs!["x" => x])?;
        let (_, found) = outputs["nearest"].try_extract_tensor::<i64>()?;
        let known = |&n: &i64| usize::try_from(n).ok().filter(|n| *n < self.ids.len());
        Ok(found.iter().map(known).collect())
    }

    /// The record that is most like `row`, [features].
    ///
    /// # Errors
    /// [`ScorerError::Run`] when ONNX Runtime fails.
    pub fn of(&mut self, row: &[f32]) -> Result<Option<Neighbour<'_>>, ScorerError> {
        let found = self.ask(row)?[0];
        Ok(found.map(|n| Neighbour {
            id: self.ids[n].as_deref(),
            row: &self.rows[n * self.width..(n + 1) * self.width],
        }))
    }
}
