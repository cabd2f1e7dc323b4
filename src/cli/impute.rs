//! `residuald impute`: fills what records lack with the median or mode of several draws.

use std::time::Instant;

use serde_json::{Value, json};

use crate::bundle::Draft;
use crate::bundle::manifest::Feature;
use crate::diffusion::Sample;
use crate::imputation::{
    self, DRAWS, FIELD, INTERVAL, Imputed, MOST_DRAWS, edits, is_incomplete, optional,
};
use crate::onnx::{CHUNK, Imputer};
use crate::patch::Edit;

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
    #[arg(long, value_name = "N", default_value_t = DRAWS as u64, value_parser = clap::value_parser!(u64).range(1..=MOST_DRAWS as u64))]
    draws: u64,
    /// Share of the draws that the interval holds
    #[arg(long, value_name = "SHARE", default_value_t = INTERVAL)]
    interval: f32,
    #[command(flatten)]
    sampler: SamplerArguments,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let started = Instant::now();
    if !(arguments.interval > 0.0 && arguments.interval < 1.0) {
        return Err(Failure::usage("--interval must be above 0 and below 1"));
    }
    let bundle = Draft::read(&arguments.common.bundle).finish()?;
    let generative = generative(&bundle)?;
    let features = bundle.features();
    field_is_free(FIELD, features)?;
    let sampler = arguments.sampler.open(generative, features.len(), None)?;
    let draws = arguments.draws as usize;
    let mut filler = Filler {
        imputer: Imputer::new(sampler, features, draws, arguments.interval),
        features,
        seed: arguments.sampler.seed,
        draws: arguments.draws,
        tally: vec![Tally::default(); features.len()],
        drawn: 0,
    };
    let at_once = (CHUNK / draws).max(1);
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

/// How often a feature was missing, and what became of it.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    filled: u64,
    left_missing: u64,
}

struct Filler<'f> {
    imputer: Imputer,
    features: &'f [Feature],
    seed: u64,
    draws: u64,
    tally: Vec<Tally>,
    /// Number of samples that were drawn.
    drawn: u64,
}

impl<'f> Filler<'f> {
    /// Returns what to fill in each of the records, whose rows are [N, F].
    fn fill(&mut self, rows: &[f32]) -> Result<Vec<Vec<Edit<'f>>>, Failure> {
        let width = self.features.len();
        let incomplete = |row: &&[f32]| is_incomplete(self.features, row);
        let (mut asked, mut first) = (Vec::new(), Vec::new());
        for row in rows.chunks_exact(width).filter(incomplete) {
            asked.extend_from_slice(row);
            first.push(Sample {
                seed: self.seed,
                number: self.drawn,
            });
            self.drawn += self.draws;
        }
        let mut imputed = self.imputer.impute(&asked, &first)?.into_iter();
        let each = rows.chunks_exact(width).map(|row| match incomplete(&row) {
            true => imputed.next().unwrap_or_default(),
            false => Vec::new(),
        });
        let each: Vec<imputation::Imputation> = each.collect();
        for (column, imputed) in each.iter().flatten() {
            let tally = &mut self.tally[*column];
            match imputed {
                Imputed::Absent { .. } => tally.left_missing += 1,
                _ => tally.filled += 1,
            }
        }
        Ok(each
            .iter()
            .map(|imputed| edits(self.features, imputed))
            .collect())
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
