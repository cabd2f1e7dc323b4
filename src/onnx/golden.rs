//! Checks that the scores of a bundle's golden records match the trainer's scores.

use serde::Serialize;

use super::{ImageScores, Scorer, ScorerError};
use crate::batch::Scores;
use crate::bundle::{Fault, Feature, Golden, ModelInput, Pixels, Tolerance};
use crate::decode::JsonDecoder;
use crate::image::{FIELD, ImageReader, Limits, highest};
use crate::verdict::Scored;

const FILE: &str = "golden.ndjson";
/// The number of mismatches that are described. The rest are only counted.
const NAMED: usize = 5;

/// How well the scores of the golden records agreed.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct GoldenCheck {
    pub records: usize,
    /// The largest |got - expected| / max(|expected|, 1e-6).
    pub worst_relative_error: f32,
}

/// Decodes and scores every golden record as the daemon would.
///
/// # Errors
/// The outer error is a failure of ONNX Runtime. The inner error lists the faults: records that cannot be decoded or
/// whose scores differ.
pub fn check(
    records: &[Golden],
    input: &ModelInput,
    tolerance: Tolerance,
    scorer: &mut Scorer,
) -> Result<Result<GoldenCheck, Vec<Fault>>, ScorerError> {
    let (scored, mut problems) = match input {
        ModelInput::Tabular { features } => score_rows(records, features, scorer)?,
        ModelInput::Image(pixels) => score_images(records, *pixels, scorer)?,
    };
    let mut worst: f32 = 0.0;
    for (line, want, got) in &scored {
        worst = worst.max((got - want).abs() / want.abs().max(1e-6));
        if !tolerance.accepts(*got, *want) {
            problems.push(format!(
                "record {line} scores {got} here, {want} in training: this runtime does not reproduce the model"
            ));
        }
    }
    if problems.is_empty() {
        return Ok(Ok(GoldenCheck {
            records: scored.len(),
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

/// For each scored record its line, the trainer's score and the score computed here. Then the problems of the other
/// records.
type Outcome = (Vec<(usize, f32, f32)>, Vec<String>);

fn score_rows(
    records: &[Golden],
    features: &[Feature],
    scorer: &mut Scorer,
) -> Result<Outcome, ScorerError> {
    let mut decoder = JsonDecoder::new(features);
    let mut problems = Vec::new();
    let (mut rows, mut expected) = (Vec::new(), Vec::new());
    for (line, golden) in (1..).zip(records) {
        match decoder.decode(golden.record.get().as_bytes(), &mut rows) {
            Ok(_) => expected.push((line, golden.score)),
            Err(e) => problems.push(unfit(line, &e)),
        }
    }
    let mut scores = Scores::default();
    scorer.score(&rows, &mut scores)?;
    let width = features.len();
    let mut scored = Vec::new();
    for (at, (line, want)) in expected.into_iter().enumerate() {
        let row = &rows[at * width..(at + 1) * width];
        match Scored::at(&scores, at, row).flaw() {
            Some(flaw) => problems.push(format!("record {line} cannot be judged: {flaw}")),
            None => scored.push((line, want, scores[at])),
        }
    }
    Ok((scored, problems))
}

fn score_images(
    records: &[Golden],
    pixels: Pixels,
    scorer: &mut Scorer,
) -> Result<Outcome, ScorerError> {
    let reader = ImageReader::new(pixels, FIELD, Limits::default());
    let (mut scored, mut problems) = (Vec::new(), Vec::new());
    let mut scores = ImageScores::default();
    for (line, golden) in (1..).zip(records) {
        match reader.read(golden.record.get().as_bytes()) {
            Ok(image) => {
                scores.clear();
                scorer.score_pixels(&image.rows, &mut scores)?;
                scored.push((line, golden.score, highest(&scores.scores)));
            }
            Err(e) => problems.push(unfit(line, &e)),
        }
    }
    Ok((scored, problems))
}

fn unfit(line: usize, problem: &impl std::fmt::Display) -> String {
    format!("record {line} does not fit the schema: {problem}")
}
