//! `residuald calibrate`: what a score means, anew, from recent normal records, and no training.

mod sample;
mod write;

use std::path::{Path, PathBuf};

use indicatif::HumanCount;
use serde::Serialize;
use serde_json::json;

use crate::bundle::Calibration;
use crate::config::Config;

use super::connection::{ConnectionArguments, RangeArguments, topic};
use super::failure::Failure;
use super::model;
use super::scoring::{BATCH, all_cores};
use super::threshold::{default_rate, default_rule};
use sample::Sample;

/// Calibrate a bundle on recent normal records: new thresholds and p-values for the same model
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald calibrate models/payments --data normal.csv --out models/payments-june
  residuald calibrate models/payments --topic payments --from -7d --out models/payments-june
  residuald calibrate models/surface --data parts/test --out models/surface-line2

The records should be normal, or nearly all of them: what share of them may be flagged is what a false-alarm rate says. \
With --label, and in a folder of pictures with folders for its classes, anomalies are left out. The bundle that is written is the \
old one with another calibration.json. To put it in force set model.bundle, or write over the old one (--out the same, \
--force) and send SIGHUP. Memory: 4 bytes a record.")]
pub struct Arguments {
    /// The bundle to calibrate
    bundle: PathBuf,
    /// Normal records: .csv, .ndjson or .jsonl, each also .gz, or .parquet; or a folder of pictures
    #[arg(long, value_name = "FILE", conflicts_with = "topic")]
    data: Option<PathBuf>,
    /// Field (dotted path) that tells anomalies, which are left out, from normal records
    #[arg(long, value_name = "FIELD", requires = "data")]
    label: Option<String>,
    /// The label of a normal record, or the folder of the normal pictures [default: 0, good]
    #[arg(long, value_name = "VALUE", requires = "data")]
    normal: Option<String>,
    /// A topic of normal records instead; that of --config, if it reads one, if neither is given
    #[arg(long)]
    topic: Option<String>,
    #[command(flatten)]
    range: RangeArguments,
    #[command(flatten)]
    connection: ConnectionArguments,
    /// The bundle to write: a folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Its version; that of the bundle if not given
    #[arg(long)]
    version: Option<String>,
    /// Write over --out if it is there
    #[arg(long)]
    force: bool,
    /// One JSON object at the end instead of text
    #[arg(long)]
    json: bool,
}

/// What changed.
#[derive(Serialize)]
struct Summary {
    /// Normal records that were scored.
    records: usize,
    cannot_be_scored: usize,
    /// Labelled anomalies, left out.
    left_out: usize,
    /// The false-alarm rate of the thresholds below.
    rate: f64,
    before: Side,
    after: Side,
    /// The share of these records that the threshold before flags; expected are `rate`.
    flagged_before: f64,
}

#[derive(Serialize)]
struct Side {
    records: usize,
    median: f32,
    threshold: f32,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    write::may_be_written(&arguments.out, arguments.force)?;
    let connection = arguments.connection.load()?;
    let config = connection.config.as_ref();
    let loaded = model::load(&arguments.bundle, &all_cores(), BATCH, default_rule)?;
    let bundle = loaded.bundle.clone();
    let (sample, source) = match &arguments.data {
        Some(data) => (
            Sample::of_data(loaded, data, arguments)?,
            data.display().to_string(),
        ),
        None => {
            let topic = the_topic(arguments, config)?;
            let sample = Sample::of_topic(loaded, &topic, &connection, arguments)?;
            (sample, format!("topic {topic}"))
        }
    };
    let calibration = sample.calibration()?;
    let summary = Summary::of(&sample, &bundle.calibration, &calibration)?;
    let facts = json!({
        "time": jiff::Timestamp::now().to_string(),
        "by": concat!("residuald ", env!("CARGO_PKG_VERSION")),
        "source": source,
        "records": summary.records,
        "cannot_be_scored": summary.cannot_be_scored,
        "left_out": summary.left_out,
        "sha256_before": bundle.sha256,
    });
    let version = arguments.version.as_deref();
    write::bundle(
        &arguments.bundle,
        &arguments.out,
        &calibration,
        version,
        &facts,
    )?;
    if arguments.json {
        println!("{}", json!(summary));
    } else {
        summary.print(&arguments.out);
    }
    Ok(())
}

fn the_topic(arguments: &Arguments, config: Option<&Config>) -> Result<String, Failure> {
    if arguments.topic.is_none() && config.is_none() {
        return Err(Failure::usage(
            "give the normal records: --data FILE, or --topic TOPIC",
        ));
    }
    topic(arguments.topic.as_deref(), config)
}

impl Summary {
    fn of(sample: &Sample, before: &Calibration, after: &Calibration) -> Result<Summary, Failure> {
        let rate = default_rate(before).max(default_rate(after));
        let side = |calibration: &Calibration| -> Result<Side, Failure> {
            Ok(Side {
                records: calibration.count,
                median: calibration.quantile(0.5),
                threshold: calibration.threshold_at(rate)?,
            })
        };
        let (before, after) = (side(before)?, side(after)?);
        let flagged = sample.scores.iter().filter(|s| **s > before.threshold);
        let flagged_before = flagged.count() as f64 / sample.scores.len() as f64;
        Ok(Summary {
            records: sample.scores.len(),
            cannot_be_scored: sample.refused,
            left_out: sample.left_out,
            rate,
            before,
            after,
            flagged_before,
        })
    }

    fn print(&self, out: &Path) {
        let Summary { before, after, .. } = self;
        let count = |number: usize| HumanCount(number as u64).to_string();
        println!(
            "{} normal records scored, {} cannot be scored, {} labelled anomalies left out

                          before          now
  records         {:>14} {:>12}
  median score    {:>14.4} {:>12.4}
  threshold       {:>14.4} {:>12.4}   at a false-alarm rate of {:.2e}

The threshold before flags {:.2e} of these records.
wrote {}",
            count(self.records),
            count(self.cannot_be_scored),
            count(self.left_out),
            count(before.records),
            count(after.records),
            before.median,
            after.median,
            before.threshold,
            after.threshold,
            self.rate,
            self.flagged_before,
            out.display()
        );
    }
}
