//! `residuald calibrate`: what a score means, anew, from recent normal records, and no training.

mod sample;
mod write;

use std::path::{Path, PathBuf};

use indicatif::HumanCount;
use serde::Serialize;
use serde_json::json;

use crate::bundle::segments::{LEAST_RECORDS, MOST_SEGMENTS};
use crate::bundle::{Bundle, Calibration, SegmentBy, SegmentId, Segments};
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
  residuald calibrate models/payments --data normal.csv --by merchant.category --out models/payments-june
  residuald calibrate models/surface --data parts/test --out models/surface-line2

The records should be normal, or nearly all of them: what share of them may be flagged is what a false-alarm rate says. \
With --label, and in a folder of pictures with folders for its classes, anomalies are left out. The bundle that is written is the \
old one with another calibration.json. To put it in force set model.bundle, or write over the old one (--out the same, \
--force) and send SIGHUP.

With --by every segment of the records, a merchant's category for example, gets thresholds and p-values of its own; the \
smaller it is, the more it borrows from all. Values with fewer than 20 records, records without the field and values that come \
new go by those of all. A bundle that has segments keeps them, calibrated anew, unless --by, --by-key or --no-segments says \
otherwise. Memory: 4 bytes a record, with segments 24.")]
pub struct Arguments {
    /// The bundle to calibrate
    bundle: PathBuf,
    /// Calibrate by the value of this field (dotted path): a string, number or boolean of the record, read by the model or not
    #[arg(long, value_name = "FIELD", group = "segments")]
    by: Option<String>,
    /// Calibrate by the key of the messages; with --data, --key says which field was it
    #[arg(long, group = "segments")]
    by_key: bool,
    /// Calibrate all records alike, whatever the bundle did before
    #[arg(long, group = "segments")]
    no_segments: bool,
    /// Field (dotted path) whose text is the message key
    #[arg(long, value_name = "FIELD", requires = "data")]
    key: Option<String>,
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

/// Segments in the summary.
const SHOWN: usize = 10;

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
    /// The share of these records that the threshold before, of all, flags; expected are `rate`.
    flagged_before: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    segments: Option<SegmentSummary>,
}

#[derive(Serialize)]
struct SegmentSummary {
    by: SegmentBy,
    /// Different values of the records, and how many of them have a calibration of their own.
    values: usize,
    calibrated: usize,
    /// Records of the latter.
    records: usize,
    /// The largest, with their thresholds.
    largest: Vec<SegmentSide>,
}

#[derive(Serialize)]
struct SegmentSide {
    segment: String,
    records: usize,
    threshold: f32,
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
    let by = segment_by(arguments, &bundle)?;
    let (sample, source) = match &arguments.data {
        Some(data) => (
            Sample::of_data(loaded, data, by, arguments)?,
            data.display().to_string(),
        ),
        None => {
            let topic = the_topic(arguments, config)?;
            let sample = Sample::of_topic(loaded, &topic, by, &connection, arguments)?;
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
        "segments": summary.segments.as_ref().map(|s| json!({"by": s.by, "calibrated": s.calibrated})),
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

/// What the records are told apart by, if they are.
fn segment_by(arguments: &Arguments, bundle: &Bundle) -> Result<Option<SegmentBy>, Failure> {
    let before = bundle.calibration.segments.as_ref();
    let by = match &arguments.by {
        _ if arguments.no_segments => None,
        _ if arguments.by_key => Some(SegmentBy::Key),
        Some(path) => Some(SegmentBy::Field(path.clone())),
        None => before.map(|segments| segments.by.clone()),
    };
    match by.as_ref().and_then(|by| by.fault(&bundle.manifest.input)) {
        Some(fault) => Err(Failure::usage(format!("--by: {fault}"))),
        None => Ok(by),
    }
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
                records: calibration.all.count,
                median: calibration.all.quantile(0.5),
                threshold: calibration.all.threshold_at(rate)?,
            })
        };
        let segments = after.segments.as_ref();
        let segments = segments.map(|segments| SegmentSummary::of(sample, segments, rate));
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
            segments,
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

The threshold before flags {:.2e} of these records.",
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
        );
        if let Some(segments) = &self.segments {
            segments.print(self.records);
        }
        println!("wrote {}", out.display());
    }
}

impl SegmentSummary {
    fn of(sample: &Sample, segments: &Segments, rate: f64) -> SegmentSummary {
        let ids = (0..).map(SegmentId).zip(&segments.values);
        let mut all: Vec<SegmentSide> = ids
            .map(|(id, segment)| SegmentSide {
                segment: segment.value.clone(),
                records: segment.scores.count,
                threshold: segments.threshold_at(id, rate),
            })
            .collect();
        let records = all.iter().map(|side| side.records).sum();
        all.sort_by_key(|side| std::cmp::Reverse(side.records));
        all.truncate(SHOWN);
        SegmentSummary {
            by: segments.by.clone(),
            values: sample.values(),
            calibrated: segments.values.len(),
            records,
            largest: all,
        }
    }

    fn print(&self, all: usize) {
        let count = |number: usize| HumanCount(number as u64).to_string();
        println!(
            "
by {}: {} of {} values calibrated, {} of {} records; the others go by the threshold of all
(values with fewer than {LEAST_RECORDS} records, those beyond the {MOST_SEGMENTS} most frequent, records without one)",
            self.by,
            count(self.calibrated),
            count(self.values),
            count(self.records),
            count(all),
        );
        for side in &self.largest {
            // Whoever writes records chooses it.
            let shown: String = side.segment.escape_debug().take(40).collect();
            println!(
                "  {shown:<24} {:>9} {:>12.4}",
                count(side.records),
                side.threshold
            );
        }
    }
}
