//! The screen's session. It returns an approximate log score for each row. Like a scorer, it is owned by one thread.

use ort::session::Session;
use ort::value::{TensorElementType, TensorRef};

use super::buckets::{Buckets, padded};
use super::interrupt::Interrupt;
use super::outputs::values;
use super::scorer::{builder, commit, tensor_fault};
use super::{Runtime, ScorerError};
use crate::bundle::{Fault, Feature, Golden};
use crate::decode::JsonDecoder;

pub(super) const MODEL: &str = "screen.onnx";
/// How far an approximate log score may deviate from the trainer's.
const TOLERANCE: f32 = 1e-3;

/// A single-threaded session on the CPU.
#[derive(Debug)]
pub struct ScreenSession {
    session: Session,
    width: usize,
    buckets: Buckets,
    padded: Vec<f32>,
    interrupt: Interrupt,
}

impl ScreenSession {
    /// Creates a warmed-up session of the graph `model` for rows of `width` features, in batches of up to
    /// `max_records`.
    ///
    /// # Errors
    /// [`ScorerError::Graph`] with all faults of the graph.
    pub fn new(
        runtime: &Runtime,
        model: &[u8],
        width: usize,
        max_records: usize,
    ) -> Result<ScreenSession, ScorerError> {
        let session = commit(&mut builder(runtime)?, MODEL, model)?;
        let row = [-1, width as i64];
        let input = session.inputs().iter().find(|tensor| tensor.name() == "x");
        let mut outputs = session.outputs().iter();
        let output = outputs.find(|tensor| tensor.name() == "screen");
        let faults = [
            tensor_fault("input", "x", TensorElementType::Float32, &row, input),
            tensor_fault(
                "output",
                "screen",
                TensorElementType::Float32,
                &[-1],
                output,
            ),
        ];
        let faults: Vec<_> = faults.into_iter().flatten().collect();
        if !faults.is_empty() {
            return Err(ScorerError::Graph(Fault::all(MODEL, faults).collect()));
        }
        let mut screen = ScreenSession {
            session,
            width,
            buckets: Buckets::up_to(max_records),
            padded: Vec::new(),
            interrupt: runtime.interrupt.clone(),
        };
        for records in screen.buckets.sizes().to_vec() {
            screen.ask(&vec![0.0; records * width], &mut Vec::new())?;
        }
        Ok(screen)
    }

    /// Appends an answer for each of `rows`, [records, features], to `answers`. A higher answer means less normal. The
    /// answer for a row is bit-for-bit the same in every batch.
    ///
    /// # Errors
    /// [`ScorerError::Run`] when ONNX Runtime fails.
    pub fn ask(&mut self, rows: &[f32], answers: &mut Vec<f32>) -> Result<(), ScorerError> {
        for part in rows.chunks(self.buckets.largest() * self.width) {
            let records = part.len() / self.width;
            let bucket = self.buckets.fit(records);
            let input = padded(part, bucket * self.width, &mut self.padded);
            let x = TensorRef::from_array_view(([bucket, self.width], input))?;
            let runs = self.interrupt.runs()?;
            let outputs = self
                .session
                .run_with_options(ort::inputs!["x" => x], runs)
                .map_err(|e| self.interrupt.failure(e))?;
            let found = values(&outputs, MODEL, "screen", &[bucket])?;
            answers.extend_from_slice(&found[..records]);
        }
        Ok(())
    }

    /// Returns the faults of golden records whose answers differ from the trainer's. Records that do not fit the schema
    /// are reported by the scorer's check.
    ///
    /// # Errors
    /// [`ScorerError::Run`] when ONNX Runtime fails.
    pub fn check(
        &mut self,
        golden: &[Golden],
        wanted: &[f32],
        features: &[Feature],
    ) -> Result<Option<Fault>, ScorerError> {
        let (mut decoder, mut row, mut answer) = (JsonDecoder::new(features), vec![], vec![]);
        for ((golden, want), line) in golden.iter().zip(wanted).zip(1..) {
            row.clear();
            answer.clear();
            let decoded = decoder.decode(golden.record.get().as_bytes(), &mut row);
            if decoded.is_err() {
                continue;
            }
            self.ask(&row, &mut answer)?;
            let got = answer[0];
            // A comparison with NaN is false, so NaN is never close enough.
            let close = (got - want).abs() <= TOLERANCE;
            if !close {
                let problem = format!(
                    "answers {got} to golden record {line} here, but {want} in training: this runtime does not reproduce the screen"
                );
                return Ok(Some(Fault::new(MODEL, problem)));
            }
        }
        Ok(None)
    }
}
