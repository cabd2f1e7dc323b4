//! `residuald calibrate`: computes new thresholds and p-values from recent normal records, without training.

mod flagged;
mod new_value;
mod residuals;
mod sample;
mod trim;
mod write;

use std::path::PathBuf;

use indicatif::HumanCount;
use serde::Serialize;
use serde_json::json;

use crate::bundle::segments::{LEAST_RECORDS, MOST_SEGMENTS};
use crate::bundle::{Bundle, Calibration, SegmentBy, SegmentId, Segments};
use crate::config::Config;

use crate::cli::shared::connection::{ConnectionArguments, RangeArguments, topic};
use crate::cli::shared::files::{FormatArgument, shown};
use crate::cli::shared::images::ImageArguments;
use crate::cli::shared::refusals::{Refusal, Refusals};
use crate::cli::shared::threshold::default_rule;
use crate::cli::shared::wrapping::WrappingArguments;
use crate::config::default_rate;
use crate::daemon::model;
use crate::failure::Failure;
use crate::onnx::{BATCH, all_cores};
use new_value::NewValue;
use sample::Sample;
use trim::MOST_TIMES;

/// Calibrate a bundle on recent normal records: compute new thresholds and p-values for the same model
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald calibrate models/payments --data normal.csv --out models/payments-june
  residuald calibrate models/payments --topic payments --from -7d --out models/payments-june
  residuald calibrate models/payments --topic payments --from -7d --exclude-flagged --out models/payments-june
  residuald calibrate models/payments --data normal.csv --by merchant.category --out models/payments-june
  residuald calibrate models/surface --data parts/test --out models/surface-line2

The records must be normal. The false-alarm rate is the share of normal records that are flagged, so anomalies among them would \
hide others of their kind. These records are left out and counted in the summary:
  --label, or images in one folder per class: the labelled anomalies
  --exclude-flagged: the records that a daemon flagged, except as many as it flags among normal records by chance
  --contamination: this share of the records, taken from the highest scores; 0 keeps all
  none of these options: the records in excess of what the bundle's calibration expects, highest scores first, if its threshold \
flags more than twice its rate and more than chance explains

The new bundle differs from the old one only in calibration.json and the version. To use it, point model.bundle at it, or overwrite \
the old bundle (same --out, --force) and send SIGHUP.

With --by each segment of the records, for example each merchant category, gets its own threshold and p-values. The smaller the \
segment, the more it borrows from all records. Values with fewer than 20 records, records without the field and values that \
appear only later use the overall calibration; the summary says how many of their normal records that would flag. A bundle with \
segments keeps them and recalibrates them, unless --by, --by-key or --no-segments is given. Memory: 4 bytes per record, 24 with segments.")]
pub struct Arguments {
    /// Bundle to calibrate
    bundle: PathBuf,
    /// Calibrate per value of this field (dotted path) of strings, numbers or booleans, whether or not the model reads it
    #[arg(long, value_name = "FIELD", group = "segments")]
    by: Option<String>,
    /// Calibrate per message key; with --data, pass --key FIELD to name the field that holds it
    #[arg(long, group = "segments")]
    by_key: bool,
    /// Calibrate all records together, even if the bundle has segments
    #[arg(long, group = "segments")]
    no_segments: bool,
    /// Field (dotted path) that holds the message key
    #[arg(long, value_name = "FIELD", requires = "data")]
    key: Option<String>,
    /// Files of normal records: .csv, .tsv, .ndjson, .jsonl or .json, each also .gz, .parquet, .pq, .arrow, .feather or .npz; a folder of
    /// them, a pattern in quotes such as 'part-*.csv', or - for standard input; or a folder of images. May be given several times
    #[arg(long, value_name = "FILE", conflicts_with = "topic")]
    data: Option<Vec<PathBuf>>,
    #[command(flatten)]
    format: FormatArgument,
    /// Field (dotted path) with the label; records labelled as anomalies are left out
    #[arg(long, value_name = "FIELD", requires = "data")]
    label: Option<String>,
    /// Label of normal records, or name of the folder of normal images [default: 0, or good for a folder]
    #[arg(long, value_name = "VALUE", requires = "data")]
    normal: Option<String>,
    #[command(flatten)]
    wrapping: WrappingArguments,
    #[command(flatten)]
    images: ImageArguments,
    /// Topic of normal records to read instead of --data [default: the topic of --config]
    #[arg(long)]
    topic: Option<String>,
    /// Leave out this share of the records, taken from the highest scores; 0 keeps all
    #[arg(long, value_name = "SHARE", value_parser = contamination)]
    contamination: Option<f64>,
    /// Leave out the records that a daemon flagged according to its verdicts in this topic [default: output.anomalies_topic of
    /// --config, else anomalies]
    #[arg(long, value_name = "TOPIC", num_args = 0..=1, require_equals = true, conflicts_with = "data")]
    exclude_flagged: Option<Option<String>>,
    #[command(flatten)]
    range: RangeArguments,
    #[command(flatten)]
    connection: ConnectionArguments,
    /// Folder of the new bundle
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Version of the new bundle [default: the old version plus the time, such as 1+20260131-080000]
    #[arg(long)]
    version: Option<String>,
    /// Overwrite --out if it exists
    #[arg(long)]
    force: bool,
    /// Print one JSON object at the end instead of text
    #[arg(long)]
    json: bool,
}

/// Maximum number of segments in the summary.
const SHOWN: usize = 10;

/// The changes that a calibration makes.
#[derive(Serialize)]
struct Summary<'r> {
    /// Records used for the calibration.
    records: usize,
    cannot_be_scored: u64,
    /// Why records cannot be scored, the most frequent reason first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<Refusal<'r>>,
    /// Number of labelled anomalies, which are left out.
    left_out: usize,
    /// Number of records left out because a daemon flagged them.
    left_out_flagged: usize,
    /// Number of records left out because of their scores.
    left_out_too_high: usize,
    version: String,
    /// The false-alarm rate of the thresholds below.
    rate: f64,
    before: Side,
    after: Side,
    /// Share of all scored records that the old overall threshold flags at the bundle's own rate.
    flagged_before: f64,
    /// The old overall threshold and the bundle's own rate.
    #[serde(skip)]
    old_threshold_and_rate: (f32, f64),
    #[serde(skip_serializing_if = "Option::is_none")]
    segments: Option<SegmentSummary>,
}

#[derive(Serialize)]
struct SegmentSummary {
    by: SegmentBy,
    /// Number of distinct values in the records.
    values: usize,
    /// Number of values with their own calibration.
    calibrated: usize,
    /// Number of records in calibrated segments.
    records: usize,
    /// The largest segments, with their thresholds.
    largest: Vec<SegmentSide>,
    /// `None` with fewer than two calibrated segments.
    new_value: Option<NewValue>,
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
            Sample::of_data(loaded, data, by, config, arguments)?,
            shown(data),
        ),
        None => {
            let topic = the_topic(arguments, config)?;
            let sample = Sample::of_topic(loaded, &topic, by, &connection, arguments)?;
            (sample, format!("topic {topic}"))
        }
    };
    let mut sample = sample;
    let old_threshold_and_rate = (
        default_threshold(&bundle.calibration)?,
        default_rate(&bundle.calibration),
    );
    let flagged_before = sample.flagged_by(old_threshold_and_rate.0);
    sample.trim(arguments.contamination, &bundle.calibration)?;
    let calibration = sample.calibration()?;
    let version = match &arguments.version {
        Some(version) => version.clone(),
        None => version_with_time(&bundle.manifest.version),
    };
    let summary = Summary {
        flagged_before,
        old_threshold_and_rate,
        version,
        ..Summary::of(&sample, &bundle.calibration, &calibration)?
    };
    let facts = json!({
        "time": jiff::Timestamp::now().to_string(),
        "by": concat!("residuald ", env!("CARGO_PKG_VERSION")),
        "source": source,
        "records": summary.records,
        "cannot_be_scored": summary.cannot_be_scored,
        "left_out": summary.left_out,
        "left_out_flagged": summary.left_out_flagged,
        "left_out_too_high": summary.left_out_too_high,
        "version_before": bundle.manifest.version,
        "sha256_before": bundle.sha256,
        "segments": summary.segments.as_ref().map(|s| json!({"by": s.by, "calibrated": s.calibrated})),
    });
    write::bundle(
        &arguments.bundle,
        &arguments.out,
        &calibration,
        &summary.version,
        &facts,
    )?;
    if arguments.json {
        println!("{}", json!(summary));
    } else {
        summary.print(arguments, &sample.refusals);
    }
    Ok(())
}

fn contamination(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=0.5).contains(&share) => Ok(share),
        _ => Err(
            "it must be a share from 0 to 0.5: more than half of the records cannot be anomalies"
                .into(),
        ),
    }
}

/// Returns the old version with the current time as its suffix, replacing that of an earlier calibration.
fn version_with_time(before: &str) -> String {
    let trained = before
        .split_once('+')
        .map_or(before, |(trained, _)| trained);
    format!(
        "{trained}+{}",
        jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S")
    )
}

fn default_threshold(calibration: &Calibration) -> Result<f32, Failure> {
    let rate = default_rate(calibration);
    Ok(calibration.all.threshold_at(rate)?)
}

/// Returns how records are segmented. `None` if they are not.
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
            "no records are given: use --data FILE or --topic TOPIC with normal records",
        ));
    }
    topic(arguments.topic.as_deref(), config)
}

impl<'r> Summary<'r> {
    fn of(
        sample: &'r Sample,
        before: &Calibration,
        after: &Calibration,
    ) -> Result<Summary<'r>, Failure> {
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
        Ok(Summary {
            records: sample.scored.scores.len(),
            cannot_be_scored: sample.refusals.count(),
            reasons: sample.refusals.all(),
            left_out: sample.left_out.labelled,
            left_out_flagged: sample.left_out.flagged,
            left_out_too_high: sample.left_out.too_high,
            version: String::new(),
            rate,
            before: side(before)?,
            after: side(after)?,
            flagged_before: 0.0,
            old_threshold_and_rate: (0.0, rate),
            segments,
        })
    }

    fn print(&self, arguments: &Arguments, refusals: &Refusals) {
        let Summary { before, after, .. } = self;
        let count = |number: usize| HumanCount(number as u64).to_string();
        println!(
            "{} normal records scored, {} could not be scored, {} labelled anomalies left out

                          before          now
  records         {:>14} {:>12}
  median score    {:>14.4} {:>12.4}
  threshold       {:>14.4} {:>12.4}   at a false-alarm rate of {:.2e}

The old threshold, {:.4} at a rate of {:.2e}, flags {:.2e} of the records.",
            count(self.records),
            HumanCount(self.cannot_be_scored),
            count(self.left_out),
            count(before.records),
            count(after.records),
            before.median,
            after.median,
            before.threshold,
            after.threshold,
            self.rate,
            self.old_threshold_and_rate.0,
            self.old_threshold_and_rate.1,
            self.flagged_before,
        );
        self.print_left_out(arguments);
        if self.cannot_be_scored > 0 {
            println!("{} could not be scored: {refusals}", self.cannot_be_scored);
        }
        if let Some(segments) = &self.segments {
            segments.print(self.records);
        }
        println!(
            "wrote {}, version {}",
            arguments.out.display(),
            self.version
        );
    }

    fn print_left_out(&self, arguments: &Arguments) {
        let all = self.records + self.left_out_flagged + self.left_out_too_high;
        let with_share = |records: usize| {
            let share = 100.0 * records as f64 / all as f64;
            format!("{} records ({share:.2} %)", HumanCount(records as u64))
        };
        if arguments.exclude_flagged.is_some() {
            println!(
                "{} are left out because a daemon flagged them.",
                with_share(self.left_out_flagged)
            );
        }
        let too_high = with_share(self.left_out_too_high);
        let times = self.flagged_before / self.old_threshold_and_rate.1;
        match arguments.contamination {
            Some(_) => println!(
                "{too_high} with the highest scores are left out because of --contamination."
            ),
            None if self.left_out_too_high > 0 => println!(
                "{too_high} are left out as likely anomalies: the old threshold flags {:.1} times its rate, more than normal records\n\
                 explain. If they are normal, keep them with --contamination 0.",
                times
            ),
            None if times > MOST_TIMES => println!(
                "That is {times:.1} times its rate. It may be chance in so small a sample, so no records are left out. If they are anomalies,\n\
                 leave them out with --label, --exclude-flagged or --contamination."
            ),
            None => {}
        }
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
            new_value: sample.new_value(rate),
        }
    }

    fn print(&self, all: usize) {
        let count = |number: usize| HumanCount(number as u64).to_string();
        println!(
            "
by {}: {} of {} values calibrated, with {} of {} records; the other records use the overall threshold
(values with fewer than {LEAST_RECORDS} records, values beyond the {MOST_SEGMENTS} most frequent, records without a value)",
            self.by,
            count(self.calibrated),
            count(self.values),
            count(self.records),
            count(all),
        );
        for side in &self.largest {
            // Escaped and cut, because producers choose this text.
            let shown: String = side.segment.escape_debug().take(40).collect();
            println!(
                "  {shown:<24} {:>9} {:>12.4}",
                count(side.records),
                side.threshold
            );
        }
        if let Some(new_value) = &self.new_value {
            new_value.print();
        }
    }
}
