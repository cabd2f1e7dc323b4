//! A bundle proves itself: its golden records must get the trainer's scores here.

use serde::Serialize;

use super::{Scorer, ScorerError};
use crate::bundle::{Fault, Feature, Golden, Tolerance};
use crate::decode::JsonDecoder;

const FILE: &str = "golden.ndjson";
/// Mismatches named in full; the rest are counted.
const NAMED: usize = 5;

/// How well the golden records agreed.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct GoldenCheck {
    pub records: usize,
    /// The largest |got - expected| / max(|expected|, 1e-6).
    pub worst_relative_error: f32,
}

/// Decodes and scores every golden record as the daemon would.
///
/// # Errors
/// Outer: ONNX Runtime failed. Inner: the faults, each record that cannot be decoded or scores differently.
pub fn check(
    records: &[Golden],
    features: &[Feature],
    tolerance: Tolerance,
    scorer: &mut Scorer,
) -> Result<Result<GoldenCheck, Vec<Fault>>, ScorerError> {
    let mut decoder = JsonDecoder::new(features);
    let mut problems = Vec::new();
    let (mut rows, mut expected) = (Vec::new(), Vec::new());
    for (line, golden) in (1..).zip(records) {
        match decoder.decode(golden.record.get().as_bytes(), &mut rows) {
            Ok(()) => expected.push((line, golden.score)),
            Err(e) => problems.push(format!("record {line} does not fit the schema: {e}")),
        }
    }
    let (mut scores, mut residuals, mut reconstructions) = (vec![], vec![], vec![]);
    scorer.score(&rows, &mut scores, &mut residuals, &mut reconstructions)?;
    let mut worst: f32 = 0.0;
    for ((line, want), got) in expected.iter().zip(&scores) {
        worst = worst.max((got - want).abs() / want.abs().max(1e-6));
        if !tolerance.accepts(*got, *want) {
            problems.push(format!(
                "record {line} scores {got} here, {want} in training: this runtime does not reproduce the model"
            ));
        }
    }
    if problems.is_empty() {
        return Ok(Ok(GoldenCheck {
            records: scores.len(),
            worst_relative_error: worst,
        }));
    }
    let more = problems.len().saturating_sub(NAMED);
    problems.truncate(NAMED);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    Ok(Err(Fault::all(FILE, problems).collect()))
}
