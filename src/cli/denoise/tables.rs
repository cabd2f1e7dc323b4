//! `residuald denoise` for records: moves each record to the denoiser's mean at a noise level.

use std::borrow::Cow;
use std::time::Instant;

use serde_json::{Value, json};

use crate::bundle::manifest::{Feature, FeatureKind};
use crate::bundle::{Bundle, path};
use crate::onnx::CHUNK;
use crate::onnx::generative::Denoising;
use crate::patch::{Edit, number};

use super::Arguments;
use crate::cli::shared::generative::{denoising, generative, summary_line};
use crate::cli::shared::rewrite::{Rewritten, field_is_free, print_counts, rewrite};
use crate::failure::Failure;

/// Name of the field that tells what was changed.
const FIELD: &str = "denoised";
/// Number of records that the noise level is estimated from.
const MOST_ROWS: usize = 2_000;

pub fn run(arguments: &Arguments, bundle: &Bundle) -> Result<(), Failure> {
    let started = Instant::now();
    let for_images = [
        ("--steps", arguments.steps.is_some()),
        ("--bit-depth", arguments.images.bit_depth.is_some()),
        ("--provider", arguments.provider.is_some()),
    ];
    if let Some((name, _)) = for_images.iter().find(|(_, given)| *given) {
        return Err(Failure::usage(format!(
            "{name} has no effect, because {} is a bundle for tables: leave {name} out",
            arguments.common.bundle.display()
        )));
    }
    let generative = generative(bundle)?;
    let features = bundle.features();
    field_is_free(FIELD, features)?;
    let mut cleaner = Cleaner {
        denoising: denoising(generative, features.len())?,
        features,
        sigma: arguments.sigma,
        changed: vec![0; features.len()],
    };
    let done = rewrite(&arguments.common, FIELD, CHUNK, features, |rows| {
        cleaner.clean(rows)
    })?;
    report(arguments, &cleaner, &done, started);
    Ok(())
}

struct Cleaner<'f> {
    denoising: Denoising,
    features: &'f [Feature],
    /// `None` until it is estimated.
    sigma: Option<f32>,
    /// Number of records in which each feature changed.
    changed: Vec<u64>,
}

impl<'f> Cleaner<'f> {
    fn clean(&mut self, rows: &[f32]) -> Result<Vec<Vec<Edit<'f>>>, Failure> {
        let width = self.features.len();
        let sigma = match self.sigma {
            Some(sigma) => sigma,
            None => {
                let first = &rows[..rows.len().min(MOST_ROWS * width)];
                let sigma = self.denoising.estimate(first)?;
                eprintln!("estimated noise level: {sigma:.3}");
                *self.sigma.insert(sigma)
            }
        };
        if sigma == 0.0 {
            return Ok(vec![Vec::new(); rows.len() / width]);
        }
        let clean = self.denoising.mean(rows, sigma)?;
        let both = rows.chunks_exact(width).zip(clean.chunks_exact(width));
        Ok(both.map(|(old, new)| self.edits(old, new)).collect())
    }

    fn edits(&mut self, old: &[f32], new: &[f32]) -> Vec<Edit<'f>> {
        let mut edits = Vec::new();
        let mut before = serde_json::Map::new();
        for (column, feature) in self.features.iter().enumerate() {
            let (old, new) = (old[column], new[column]);
            let is_number = matches!(feature.kind, FeatureKind::Number);
            // What is missing stays missing, and what is there stays there.
            if !is_number || old == new || old.is_nan() || new.is_nan() {
                continue;
            }
            self.changed[column] += 1;
            let from = serde_json::from_str(&number(old)).unwrap_or(Value::Null);
            before.insert(feature.name.clone(), from);
            edits.push(Edit {
                keys: path::keys_or_parts(&feature.path),
                json: number(new),
            });
        }
        if !before.is_empty() {
            edits.push(Edit {
                keys: vec![Cow::Borrowed(FIELD)],
                json: Value::Object(before).to_string(),
            });
        }
        edits
    }
}

fn report(arguments: &Arguments, cleaner: &Cleaner<'_>, done: &Rewritten, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    let Rewritten {
        records,
        refusals,
        replaced,
    } = done;
    let changed = cleaner
        .features
        .iter()
        .zip(&cleaner.changed)
        .filter(|(_, count)| **count > 0);
    if arguments.common.json {
        let changed: serde_json::Map<String, Value> = changed
            .map(|(feature, count)| (feature.name.clone(), json!(count)))
            .collect();
        let summary = json!({
            "records": records, "refused": refusals.count(), "reasons": refusals.all(), "sigma": cleaner.sigma,
            "changed": changed, "replaced": replaced, "seconds": seconds,
        });
        summary_line(&arguments.common.out, &summary);
        return;
    }
    print_counts(done, seconds);
    if cleaner.sigma == Some(0.0) {
        eprintln!("no noise was found, so nothing was changed: state a level with --sigma");
    }
    for (feature, count) in changed {
        eprintln!("{}: changed in {count} records", feature.name);
    }
}
