//! `residuald impute`: fills what records lack with the median or mode of several draws.

use std::borrow::Cow;
use std::time::Instant;

use serde_json::{Value, json};

use crate::bundle::manifest::{Feature, FeatureKind, Missing};
use crate::bundle::{Draft, path};
use crate::onnx::CHUNK;
use crate::onnx::generative::Sampler;
use crate::synthetic::imputation::{Imputed, impute};
use crate::synthetic::patch::Edit;
use crate::synthetic::records::number_text;

use crate::cli::shared::generative::{SamplerArguments, generative, summary_line};
use crate::cli::shared::rewrite::{
    RewriteArguments, Rewritten, field_is_free, print_counts, rewrite,
};
use crate::failure::Failure;

/// Fill what records lack with the median or most frequent value of several draws, and add the interval
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald impute payments.csv --bundle models/payments --out filled.ndjson
  residuald impute flows.parquet --bundle flows --draws 50 --interval 0.8 --out filled.ndjson.gz

Each output record is the input record with its missing features filled in, and with the field `imputed`: for each filled number
{\"value\", \"low\", \"high\"}, for each filled category or boolean {\"value\", \"share\"}, the share of the draws with this value.
A value that most draws lack as well stays missing: {\"value\": null, \"share\"}. Times are not filled in. Records in which nothing is
missing are passed on as they are.")]
pub struct Arguments {
    #[command(flatten)]
    common: RewriteArguments,
    /// Number of draws for each record
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    draws: u64,
    /// Share of the draws that the interval holds
    #[arg(long, value_name = "SHARE", default_value_t = 0.9)]
    interval: f32,
    #[command(flatten)]
    sampler: SamplerArguments,
}

/// Name of the field that tells what was filled in.
const FIELD: &str = "imputed";

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let started = Instant::now();
    if !(arguments.interval > 0.0 && arguments.interval < 1.0) {
        return Err(Failure::usage("--interval must be above 0 and below 1"));
    }
    let bundle = Draft::read(&arguments.common.bundle).finish()?;
    let generative = generative(&bundle)?;
    let features = bundle.features();
    field_is_free(FIELD, features)?;
    let mut filler = Filler {
        sampler: arguments.sampler.open(generative, features.len(), None)?,
        features,
        draws: arguments.draws as usize,
        interval: arguments.interval,
        tally: vec![Tally::default(); features.len()],
        drawn: 0,
    };
    let at_once = (CHUNK / filler.draws).max(1);
    let done = rewrite(
        &arguments.common,
        FIELD,
        at_once,
        &optional(features),
        |rows| filler.fill(rows),
    )?;
    report(arguments, features, &filler.tally, &done, started);
    Ok(())
}

/// Returns the features, each of which may be missing.
fn optional(features: &[Feature]) -> Vec<Feature> {
    let mut features = features.to_vec();
    for feature in &mut features {
        feature.missing = Missing::Impute;
    }
    features
}

/// How often a feature was missing, and what became of it.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    filled: u64,
    left_missing: u64,
}

struct Filler<'f> {
    sampler: Sampler,
    features: &'f [Feature],
    draws: usize,
    interval: f32,
    tally: Vec<Tally>,
    /// Number of samples that were drawn.
    drawn: u64,
}

impl<'f> Filler<'f> {
    /// Returns what to fill in each of the records, whose rows are [N, F].
    fn fill(&mut self, rows: &[f32]) -> Result<Vec<Vec<Edit<'f>>>, Failure> {
        let (width, draws) = (self.features.len(), self.draws);
        let incomplete = |row: &&[f32]| row.iter().any(|value| value.is_nan());
        let asked: Vec<&[f32]> = rows.chunks_exact(width).filter(incomplete).collect();
        let x: Vec<f32> = asked.iter().flat_map(|row| row.repeat(draws)).collect();
        let known: Vec<f32> = x.iter().map(|value| f32::from(!value.is_nan())).collect();
        let x: Vec<f32> = x
            .iter()
            .map(|value| if value.is_nan() { 0.0 } else { *value })
            .collect();
        let drawn = self.sampler.draw(self.drawn, &x, &known)?;
        self.drawn += (asked.len() * draws) as u64;
        let mut drawn = drawn.chunks_exact(draws * width);
        let edits = rows.chunks_exact(width).map(|row| match incomplete(&row) {
            true => self.edits(row, drawn.next().unwrap_or_default()),
            false => Vec::new(),
        });
        Ok(edits.collect())
    }

    /// Returns what to fill in one record. `drawn`: [draws, F].
    fn edits(&mut self, row: &[f32], drawn: &[f32]) -> Vec<Edit<'f>> {
        let mut edits = Vec::new();
        let mut about = serde_json::Map::new();
        for (column, feature) in self.features.iter().enumerate() {
            if !row[column].is_nan() || matches!(feature.kind, FeatureKind::Timestamp { .. }) {
                continue;
            }
            let draws: Vec<f32> = drawn
                .iter()
                .copied()
                .skip(column)
                .step_by(row.len())
                .collect();
            let (value, said) = found(feature, &impute(feature, &draws, self.interval));
            about.insert(feature.name.clone(), said);
            let tally = &mut self.tally[column];
            match value {
                Some(json) => {
                    tally.filled += 1;
                    edits.push(Edit {
                        keys: path::keys_or_parts(&feature.path),
                        json,
                    });
                }
                None => tally.left_missing += 1,
            }
        }
        if !about.is_empty() {
            edits.push(Edit {
                keys: vec![Cow::Borrowed(FIELD)],
                json: Value::Object(about).to_string(),
            });
        }
        edits
    }
}

/// Returns the JSON of a filled value, if there is one, and what is said about it.
fn found(feature: &Feature, imputed: &Imputed) -> (Option<String>, Value) {
    let number =
        |value: f32| -> Value { serde_json::from_str(&number_text(value)).unwrap_or(Value::Null) };
    match (imputed, &feature.kind) {
        (Imputed::Number { value, low, high }, _) => (
            Some(number_text(*value)),
            json!({"value": number(*value), "low": number(*low), "high": number(*high)}),
        ),
        (Imputed::Category { value, share }, FeatureKind::Categorical { vocabulary }) => {
            let word = json!(vocabulary.get(*value));
            (
                Some(word.to_string()),
                json!({"value": word, "share": number(*share)}),
            )
        }
        (Imputed::Category { value, share }, _) => {
            let value = json!(*value > 0);
            (
                Some(value.to_string()),
                json!({"value": value, "share": number(*share)}),
            )
        }
        (Imputed::Absent { share }, _) => (None, json!({"value": null, "share": number(*share)})),
    }
}

fn report(
    arguments: &Arguments,
    features: &[Feature],
    tally: &[Tally],
    done: &Rewritten,
    started: Instant,
) {
    let seconds = started.elapsed().as_secs_f64();
    let Rewritten {
        records,
        refusals,
        replaced,
    } = done;
    let touched = features
        .iter()
        .zip(tally)
        .filter(|(_, tally)| tally.filled + tally.left_missing > 0);
    if arguments.common.json {
        let features: serde_json::Map<String, Value> = touched
            .map(|(feature, tally)| {
                (
                    feature.name.clone(),
                    json!({"filled": tally.filled, "left_missing": tally.left_missing}),
                )
            })
            .collect();
        let summary = json!({"records": records, "refused": refusals.count(), "reasons": refusals.all(), "features": features, "replaced": replaced, "seconds": seconds});
        summary_line(&arguments.common.out, &summary);
        return;
    }
    print_counts(done, seconds);
    for (feature, tally) in touched {
        let left = match tally.left_missing {
            0 => String::new(),
            left => format!(", {left} left missing because most draws lack it as well"),
        };
        eprintln!("{}: {} filled in{left}", feature.name, tally.filled);
    }
}
