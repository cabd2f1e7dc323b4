//! `residuald calibrate`: what a score means, anew, from recent normal records, and no training.

mod flagged;
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
use crate::cli::shared::refusals::{Refusal, Refusals};
use crate::cli::shared::scoring::{BATCH, all_cores};
use crate::cli::shared::threshold::{default_rate, default_rule};
use crate::daemon::model;
use crate::failure::Failure;
use sample::Sample;
use trim::MOST_TIMES;

/// Calibrate a bundle on recent normal records: new thresholds and p-values for the same model
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald calibrate models/payments --data normal.csv --out models/payments-june
  residuald calibrate models/payments --topic payments --from -7d --out models/payments-june
  residuald calibrate models/payments --topic payments --from -7d --exclude-flagged --out models/payments-june
  residuald calibrate models/payments --data normal.csv --by merchant.category --out models/payments-june
  residuald calibrate models/surface --data parts/test --out models/surface-line2

Only normal records may count: a false-alarm rate says what share of them is flagged, so anomalies among them hide others like them. \
What is left out is said. With --label, and in a folder of pictures with folders for its classes, it is the labelled anomalies. \
With --exclude-flagged it is what a daemon has flagged, but for as many records as it flags of normal ones. With --contamination \
it is that share of the records, those with the highest scores. Without any of them the bundle's calibration says how many \
normal records score how high: if its threshold flags more than twice its share, and more than chance explains, the records beyond \
that number are left out. \
--contamination 0 keeps them all.

The bundle that is written is the old one with another calibration.json and another version. To put it in force set model.bundle, or write \
over the old one (--out the same, --force) and send SIGHUP.

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
    /// Leave out this share of the records, those with the highest scores; 0 if all are normal
    #[arg(long, value_name = "SHARE", value_parser = contamination)]
    contamination: Option<f64>,
    /// Leave out the records that a daemon has flagged, by its verdicts in this topic; that of the settings, or anomalies, if it is not named
    #[arg(long, value_name = "TOPIC", num_args = 0..=1, require_equals = true, conflicts_with = "data")]
    exclude_flagged: Option<Option<String>>,
    #[command(flatten)]
    range: RangeArguments,
    #[command(flatten)]
    connection: ConnectionArguments,
    /// The bundle to write: a folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Its version; that of the bundle and the time, as 1+20260131-080000, if not given
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
struct Summary<'r> {
    /// Records that the calibration is made of.
    records: usize,
    cannot_be_scored: u64,
    /// Why, the most frequent reason first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<Refusal<'r>>,
    /// Labelled anomalies.
    left_out: usize,
    /// Anomalies by a daemon's verdicts, and by their scores.
    left_out_flagged: usize,
    left_out_too_high: usize,
    version: String,
    /// The false-alarm rate of the thresholds below.
    rate: f64,
    before: Side,
    after: Side,
    /// The share of all that were scored that the threshold before, of all, flags at the bundle's own rate.
    flagged_before: f64,
    /// That threshold and that rate.
    #[serde(skip)]
    in_force: (f32, f64),
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
    let mut sample = sample;
    let in_force = (
        default_threshold(&bundle.calibration)?,
        default_rate(&bundle.calibration),
    );
    let flagged_before = sample.flagged_by(in_force.0);
    sample.trim(arguments.contamination, &bundle.calibration)?;
    let calibration = sample.calibration()?;
    let version = match &arguments.version {
        Some(version) => version.clone(),
        None => own_version(&bundle.manifest.version),
    };
    let summary = Summary {
        flagged_before,
        in_force,
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
        _ => Err("expected a share from 0 to 0.5: what is more frequent is normal".into()),
    }
}

/// The version before with the time behind it, in place of one that was put there by an earlier calibration.
fn own_version(before: &str) -> String {
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
            records: sample.scores.len(),
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
            in_force: (0.0, rate),
            segments,
        })
    }

    fn print(&self, arguments: &Arguments, refusals: &Refusals) {
        let Summary { before, after, .. } = self;
        let count = |number: usize| HumanCount(number as u64).to_string();
        println!(
            "{} normal records scored, {} cannot be scored, {} labelled anomalies left out

                          before          now
  records         {:>14} {:>12}
  median score    {:>14.4} {:>12.4}
  threshold       {:>14.4} {:>12.4}   at a false-alarm rate of {:.2e}

The threshold before, {:.4} at a rate of {:.2e}, flags {:.2e} of the records.",
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
            self.in_force.0,
            self.in_force.1,
            self.flagged_before,
        );
        self.print_left_out(arguments);
        if self.cannot_be_scored > 0 {
            println!("{} cannot be scored: {refusals}", self.cannot_be_scored);
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
        let told = |records: usize| {
            let share = 100.0 * records as f64 / all as f64;
            format!("{} records ({share:.2} %)", HumanCount(records as u64))
        };
        if arguments.exclude_flagged.is_some() {
            println!(
                "{} are left out because a daemon has flagged them.",
                told(self.left_out_flagged)
            );
        }
        let too_high = told(self.left_out_too_high);
        let times = self.flagged_before / self.in_force.1;
        match arguments.contamination {
            Some(_) => println!(
                "{too_high} with the highest scores are left out, as --contamination says."
            ),
            None if self.left_out_too_high > 0 => println!(
                "{too_high} are left out as likely anomalies: the threshold before flags {:.1} times its share, and so many normal records\n\
                 do not score so high. If they are normal, keep them with --contamination 0.",
                times
            ),
            None if times > MOST_TIMES => println!(
                "That is {times:.1} times its share, which in so few records may be chance, so none is left out. If they are anomalies,\n\
                 say so with --label, --exclude-flagged or --contamination."
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
