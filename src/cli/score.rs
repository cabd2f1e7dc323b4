//! `residuald score`: judges a file or a folder of images as the daemon would.

mod folder;

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use serde_json::json;

use crate::bundle::{Calibration, ModelInput, SegmentId};
use crate::config::Provider;
use crate::dataset::{self, ErrorKind, Place};
use crate::decode::{DecodeError, Decoder, Reason, RecordFormat, RowError, SetBy};
use crate::evaluation::{AtThreshold, auroc, average_precision, precision_recall};
use crate::image::ImageReader;
use crate::onnx::{CHUNK, IMAGE_CHUNK, Judged, Nearest, ScorerPool, inference_on};
use crate::shutdown::Shutdown;
use crate::verdict::{Judge, Verdict};

use crate::cli::shared::files::{FormatArgument, shown};
use crate::cli::shared::images::{ImageArguments, warn_of_depth};
use crate::cli::shared::output::out;
use crate::cli::shared::progress;
use crate::cli::shared::reasons::reasons;
use crate::cli::shared::refusals::some_scored;
use crate::cli::shared::refusals::{Refusal, Refusals};
use crate::cli::shared::scoring::Highest;
use crate::cli::shared::scoring::key_fits;
use crate::cli::shared::threshold::{ThresholdArguments, default_rule, segments};
use crate::cli::shared::wrapping::WrappingArguments;
use crate::daemon::input;
use crate::daemon::model::{self, Loaded};
use crate::failure::Failure;

/// Number of reasons or regions in a verdict.
const REASONS: usize = 5;

/// Score files of records (CSV, NDJSON, JSON, Parquet, Arrow, NPZ) or a folder of images; with labels also AUROC, average precision and the alert rate
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald score payments.csv --bundle models/payments
  residuald score models/payments/sample.ndjson.gz --bundle models/payments --label label --out verdicts.ndjson
  residuald score history/ 'more/part-*.parquet' --bundle models/payments
  zcat payments.csv.gz | residuald score - --bundle models/payments
  residuald score tiles --bundle models/surface --masks tiles/ground_truth --html sheet.html

A folder of images is read in Anomalib's layout: FOLDER/test, or FOLDER if there is no test, has a folder per class, and normal
images are in the folder good. Without a folder of normal images, the images have no labels. With --masks DIR, the mask of tiles/test/crack/000.png is
DIR/crack/000_mask.png or DIR/crack/000.png.")]
pub struct Arguments {
    /// Files of records: .csv, .tsv, .ndjson, .jsonl or .json, each also .gz, .parquet, .pq, .arrow, .feather or .npz; a folder of them, a
    /// pattern in quotes such as 'part-*.csv', or - for standard input; or a folder of images
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    format: FormatArgument,
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Field (dotted path) with the label
    #[arg(long, value_name = "FIELD")]
    label: Option<String>,
    /// Label of normal records, or name of the folder of normal images; any other is an anomaly [default: 0, or good for a
    /// folder]
    #[arg(long, value_name = "VALUE")]
    normal: Option<String>,
    /// Field (dotted path) that holds the message key, for a bundle that is calibrated by key
    #[arg(long, value_name = "FIELD")]
    key: Option<String>,
    #[command(flatten)]
    wrapping: WrappingArguments,
    #[command(flatten)]
    images: ImageArguments,
    /// Folder with the masks of the images, for pixel AUROC and AUPRO; FOLDER itself if the masks are beside the images
    #[arg(long, value_name = "DIR")]
    masks: Option<PathBuf>,
    /// Write a contact sheet to this HTML file: original, reconstruction and heatmap of each image, sorted by grade
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Score on all CPU cores or on the first GPU
    #[arg(long, value_enum, default_value_t = Provider::Cpu)]
    provider: Provider,
    #[command(flatten)]
    threshold: ThresholdArguments,
    /// Write every verdict to this file, one JSON object per line; - is standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Number of the most anomalous records to show
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// Print one JSON object at the end instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Summary<'r> {
    records: usize,
    scored: usize,
    dead_letters: u64,
    /// Why records cannot be scored, the most frequent reason first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<Refusal<'r>>,
    anomalies: usize,
    alert_rate: f64,
    threshold: f32,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    labelled: Option<Labelled>,
}

#[derive(Serialize)]
struct Labelled {
    records: usize,
    auroc: Option<f64>,
    average_precision: Option<f64>,
    #[serde(flatten)]
    at_threshold: AtThreshold,
}

/// One line of `--out`. Records are numbered from 1.
#[derive(Serialize)]
struct Line<'a> {
    record: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<bool>,
    #[serde(flatten)]
    verdict: &'a Verdict<'a>,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let started = Instant::now();
    let rule = arguments.threshold.rule();
    let rule = |calibration: &Calibration| rule.unwrap_or_else(|| default_rule(calibration));
    let (inference, batch) = inference_on(arguments.provider);
    let loaded = model::load(&arguments.bundle, &inference, batch, rule)?;
    let reads_images = matches!(loaded.bundle.manifest.input, ModelInput::Image(_));
    if reads_images && arguments.files.iter().any(|path| path.is_dir()) {
        return folder::run(arguments, loaded, out(arguments.out.as_deref())?, started);
    }
    if arguments.masks.is_some() || arguments.html.is_some() {
        return Err(Failure::usage(
            "--masks and --html require a folder of images, and a bundle that reads images",
        ));
    }
    if arguments.normal.is_some() && arguments.label.is_none() {
        return Err(Failure::usage("--normal requires --label FIELD"));
    }
    let segments = loaded.bundle.calibration.segments.as_ref();
    key_fits(segments.map(|s| &s.by), arguments.key.as_deref())?;
    let mut options = dataset::Options {
        label: arguments.label.clone(),
        key: arguments.key.clone(),
        format: arguments.format.format,
        wrapping: arguments.wrapping.wrapping(),
        ..dataset::Options::default()
    };
    if let Some(normal) = &arguments.normal {
        options.normal.clone_from(normal);
    }
    let data = dataset::open_all(&arguments.files, &options).map_err(|e| match e.kind {
        // A folder of images was perhaps meant.
        ErrorKind::Folder(_) => Failure::data(format!(
            "{e}; the bundle {} reads tables, not images",
            loaded.bundle.manifest.name
        )),
        _ => e.into(),
    })?;
    let reader = arguments
        .images
        .reader(&loaded.bundle.manifest.input, None)?;
    let out = out(arguments.out.as_deref())?;
    let mut run = Run::new(loaded, reader, out, arguments.top);
    run.all(data, arguments)?;
    run.report(arguments, started)
}

/// Writes a line to `--out`, if it is given.
fn write_line(out: &mut Option<Box<dyn Write>>, line: &impl Serialize) -> Result<(), Failure> {
    if let Some(out) = out {
        serde_json::to_writer(&mut *out, line).map_err(Failure::output)?;
        out.write_all(b"\n").map_err(Failure::output)?;
    }
    Ok(())
}

struct Run {
    judge: Judge,
    nearest: Option<Nearest>,
    decoder: Decoder,
    /// Set if the bundle reads images.
    reader: Option<ImageReader>,
    scoring: ScorerPool,
    out: Option<Box<dyn Write>>,
    records: u64,
    refusals: Refusals,
    scores: Vec<f32>,
    labels: Vec<Option<bool>>,
    /// Whether each score is above its threshold.
    flagged: Vec<bool>,
    /// The most anomalous records: each one's record number and formatted reasons.
    highest: Highest<(u64, String)>,
    /// Rows of the current chunk, in row-major order.
    rows: Vec<f32>,
    /// Segments of the current chunk's rows.
    segments: Vec<Option<SegmentId>>,
    /// Images of the current chunk.
    images: Vec<WaitingImage>,
    /// Record numbers of the current chunk's rows.
    numbers: Vec<u64>,
}

/// An image that is not scored yet.
struct WaitingImage {
    record: u64,
    label: Option<bool>,
    segment: Option<SegmentId>,
    payload: Vec<u8>,
}

impl Run {
    fn new(
        loaded: Loaded,
        reader: Option<ImageReader>,
        out: Option<Box<dyn Write>>,
        top: usize,
    ) -> Run {
        let features = loaded.bundle.features();
        let format = match &reader {
            Some(reader) => RecordFormat::Images(reader.clone()),
            None => RecordFormat::Json,
        };
        Run {
            decoder: Decoder::new(features, format, loaded.segment()),
            reader,
            scoring: ScorerPool::new(loaded.scorers, features.len()),
            judge: loaded.judge,
            nearest: loaded.nearest,
            out,
            records: 0,
            refusals: Refusals::by_flags(),
            scores: Vec::new(),
            labels: Vec::new(),
            flagged: Vec::new(),
            highest: Highest::new(top),
            rows: Vec::new(),
            segments: Vec::new(),
            images: Vec::new(),
            numbers: Vec::new(),
        }
    }

    fn all(&mut self, mut data: dataset::Dataset, arguments: &Arguments) -> Result<(), Failure> {
        let bar = progress::of_file(&data, arguments.json);
        while let Some(next) = data.next() {
            self.records += 1;
            let problem = match next {
                Ok(example) => match self.decode(&example) {
                    Ok(segment) if self.reader.is_some() => {
                        self.images.push(WaitingImage {
                            record: self.records,
                            label: example.label,
                            segment,
                            payload: example.payload,
                        });
                        None
                    }
                    Ok(segment) => {
                        self.segments.push(segment);
                        self.labels.push(example.label);
                        self.numbers.push(self.records);
                        None
                    }
                    Err(DecodeError::Row(e)) => Some((e.reason.as_str(), e.detail)),
                    // A deletion, for example.
                    Err(_) => None,
                },
                Err(e) if e.is_fatal() => return Err(e.into()),
                Err(e) => Some(("malformed", e.to_string().into())),
            };
            if let Some((reason, detail)) = problem {
                self.refusals.add(reason, &detail);
                let detail = SetBy::Flags.named(&detail);
                let Place { file, unit, number } = data.place();
                let mut line = json!({"record": self.records, unit: number, "reason": reason, "error": detail});
                if let Some(file) = file {
                    line["file"] = json!(file);
                }
                write_line(&mut self.out, &line)?;
            }
            if self.numbers.len() == CHUNK || self.images.len() == IMAGE_CHUNK {
                self.score_chunk()?;
                bar.set_position(data.progress().done);
            }
        }
        self.score_chunk()?;
        progress::end(&bar, &data);
        self.reader.as_ref().map(warn_of_depth);
        Ok(data.check_labels()?)
    }

    fn decode(&mut self, example: &dataset::Example) -> Result<Option<SegmentId>, DecodeError> {
        let (decoder, rows, key) = (&mut self.decoder, &mut self.rows, example.key.as_deref());
        input::decode(decoder, &example.payload, key, rows, &Shutdown::default())
    }

    fn score_chunk(&mut self) -> Result<(), Failure> {
        if let Some(reader) = &self.reader {
            let images = std::mem::take(&mut self.images);
            let threshold_of = |image: &WaitingImage| self.judge.threshold_of(image.segment);
            let with_thresholds = images
                .iter()
                .map(|i| (i.payload.as_slice(), threshold_of(i)));
            let with_thresholds: Vec<_> = with_thresholds.collect();
            let judged = self
                .scoring
                .score_images(reader, &with_thresholds, REASONS)?;
            for (image, judged) in images.iter().zip(judged) {
                self.take_image(image, judged)?;
            }
            return Ok(());
        }
        let Run {
            judge,
            nearest,
            scoring,
            out,
            scores,
            labels,
            flagged,
            highest,
            rows,
            segments,
            numbers,
            refusals,
            ..
        } = self;
        scoring.score(rows, |i, scored| {
            let (score, record, segment) = (scored.score, numbers[i], segments[i]);
            if let Some(flaw) = scored.flaw() {
                labels.remove(scores.len());
                let reason = Reason::Unscorable.as_str();
                refusals.add(reason, &flaw);
                let line = json!({"record": record, "reason": reason, "error": flaw});
                return write_line(out, &line);
            }
            let label = labels[scores.len()];
            scores.push(score);
            let anomalous = judge.is_anomaly(score, segment);
            flagged.push(anomalous);
            let is_among_highest = highest.takes(score);
            if out.is_none() && !is_among_highest {
                return Ok(());
            }
            let normal = match nearest {
                Some(nearest) if anomalous => nearest.of(scored.row)?,
                _ => None,
            };
            let verdict = judge.judge(scored, segment, normal, REASONS);
            let line = Line {
                record,
                label,
                verdict: &verdict,
            };
            write_line(out, &line)?;
            if is_among_highest {
                highest.insert(score, (record, reasons(&verdict)));
            }
            Ok(())
        })?;
        rows.clear();
        segments.clear();
        numbers.clear();
        Ok(())
    }

    /// Records the result for an image. Its maps are left out, because a file of verdicts cannot contain them.
    fn take_image(&mut self, image: &WaitingImage, judged: Judged) -> Result<(), Failure> {
        let WaitingImage {
            record,
            label,
            segment,
            ..
        } = *image;
        let (score, finding) = match judged {
            Ok(judged) => judged,
            Err(RowError { reason, detail }) => {
                self.refusals.add(reason.as_str(), &detail);
                let detail = SetBy::Flags.named(&detail);
                let line = json!({"record": record, "reason": reason.as_str(), "error": detail});
                return write_line(&mut self.out, &line);
            }
        };
        self.scores.push(score);
        self.labels.push(label);
        self.flagged.push(self.judge.is_anomaly(score, segment));
        let verdict = self.judge.judge_image(score, segment, &finding, None, None);
        let line = Line {
            record,
            label,
            verdict: &verdict,
        };
        write_line(&mut self.out, &line)?;
        if self.highest.takes(score) {
            self.highest.insert(score, (record, reasons(&verdict)));
        }
        Ok(())
    }

    fn report(mut self, arguments: &Arguments, started: Instant) -> Result<(), Failure> {
        if let Some(out) = &mut self.out {
            out.flush().map_err(Failure::output)?;
        }
        if self.records == 0 {
            return Err(Failure::data(format!(
                "{} contains no records",
                shown(&arguments.files)
            )));
        }
        let anomalies = self.flagged.iter().filter(|flagged| **flagged).count();
        let summary = Summary {
            records: self.records as usize,
            scored: self.scores.len(),
            dead_letters: self.refusals.count(),
            reasons: self.refusals.all(),
            anomalies,
            alert_rate: anomalies as f64 / self.scores.len().max(1) as f64,
            threshold: self.judge.threshold,
            seconds: started.elapsed().as_secs_f64(),
            labelled: labelled(&self.scores, &self.labels, &self.flagged),
        };
        if arguments.json {
            println!("{}", json!(summary));
        } else {
            self.print(&summary);
        }
        some_scored(self.scores.len(), &self.refusals)
    }

    fn print(&self, summary: &Summary<'_>) {
        println!(
            "{} records in {:.1} s: {} scored, {} could not be scored, {} anomalies (score above {:.4}{}), alert rate {:.5}",
            summary.records,
            summary.seconds,
            summary.scored,
            summary.dead_letters,
            summary.anomalies,
            summary.threshold,
            segments(&self.judge),
            summary.alert_rate
        );
        if summary.dead_letters > 0 {
            println!(
                "{} could not be scored: {}",
                summary.dead_letters, self.refusals
            );
        }
        if let Some(labelled) = &summary.labelled {
            let shown = |value: Option<f64>| value.map_or("n/a".into(), |v| format!("{v:.4}"));
            println!(
                "compared with {} labels: AUROC {}, average precision {}, precision {}, recall {}",
                labelled.records,
                shown(labelled.auroc),
                shown(labelled.average_precision),
                shown(labelled.at_threshold.precision),
                shown(labelled.at_threshold.recall)
            );
        }
        for (score, (record, reasons)) in self.highest.iter() {
            println!("{score:>9.3}  record {record:<8} {reasons}");
        }
    }
}

/// Compares scores with labels. `None` if there are no labels.
fn labelled(scores: &[f32], labels: &[Option<bool>], flagged: &[bool]) -> Option<Labelled> {
    let all = scores.iter().zip(flagged).zip(labels);
    let all = all.filter_map(|((score, flagged), label)| Some(((*score, *flagged), (*label)?)));
    let ((scores, flagged), labels): ((Vec<f32>, Vec<bool>), Vec<bool>) = all.unzip();
    (!labels.is_empty()).then(|| Labelled {
        records: labels.len(),
        auroc: auroc(&scores, &labels),
        average_precision: average_precision(&scores, &labels),
        at_threshold: precision_recall(&flagged, &labels),
    })
}
