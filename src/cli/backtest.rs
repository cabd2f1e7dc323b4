//! `residuald backtest`: judges a range of a topic as the daemon would, without publishing anything.

mod comparison;
mod report;
mod tally;

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::batch::{Batch, TopicPartition};
use crate::bundle::Calibration;
use crate::config::{Config, InferenceSettings};
use crate::decode::{DecodeError, Decoder, Reason, RecordFormat, RowError, Split};
use crate::kafka::history::{Ended, History};
use crate::message::{ModelId, verdict_message};
use crate::onnx::{BATCH, CHUNK, Nearest, ScorerPool, all_cores};
use crate::record::{Place, Record};
use crate::shutdown::Shutdown;
use crate::verdict::{Judge, ThresholdRule};

use crate::cli::shared::connection::{ConnectionArguments, RangeArguments, empty_range, topic};
use crate::cli::shared::output::out;
use crate::cli::shared::progress;
use crate::cli::shared::progress::stop_on_ctrl_c;
use crate::cli::shared::reasons::reasons;
use crate::cli::shared::refusals::some_scored;
use crate::cli::shared::threshold::{ThresholdArguments, default_rule};
use crate::daemon::input;
use crate::daemon::model;
use crate::failure::Failure;
use comparison::Comparison;
use tally::{Covered, Covers, High, Tally};

/// Number of features that a verdict lists, if there is no settings file.
const ATTRIBUTIONS: usize = 5;

/// Judge the records of a topic with any bundle: report alerts per day, the most anomalous records, and how another bundle
/// compares
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald backtest --topic payments --bundle models/payments --from -7d
  residuald backtest --config residuald.toml --bundle models/next --against models/payments --from -24h
  residuald backtest --topic payments --bundle models/payments --from 0:1000 --to 0:2000 --out verdicts.ndjson --json

It joins no consumer group, commits no offsets and publishes nothing. Ids and scores equal the daemon's, bit for bit. The end of the range is \
fixed at the start. Only committed records are read (-X isolation.level=read_uncommitted reads all). Alerts per day are computed from \
the records' timestamps, if they cover at least an hour. Memory: 24 bytes per record, 52 with --against.")]
pub struct Arguments {
    /// Topic to read [default: the topic of --config]
    #[arg(long)]
    topic: Option<String>,
    /// Bundle to judge with [default: the bundle of --config]
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// A second bundle that judges the same records, for comparison
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
    #[command(flatten)]
    range: RangeArguments,
    #[command(flatten)]
    connection: ConnectionArguments,
    #[command(flatten)]
    threshold: ThresholdArguments,
    /// Write every verdict of --bundle to this file, one per line, as the daemon would publish it; - is standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Number of records to list, both of the most anomalous ones and of those that the bundles score most differently
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// Print one JSON object at the end instead of text
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let started = Instant::now();
    let connection = arguments.connection.load()?;
    let config = connection.config.as_ref();
    let topic = topic(arguments.topic.as_deref(), config)?;
    let bundle = arguments
        .bundle
        .clone()
        .or_else(|| config.map(|config| config.model.bundle.clone()))
        .ok_or_else(|| Failure::usage("no bundle is given: use --bundle DIR, or --config FILE"))?;
    let stop = Shutdown::default();
    stop_on_ctrl_c(&stop)?;
    let side = |dir: &Path| Side::load(dir, arguments, config);
    let mut run = Run {
        first: side(&bundle)?,
        second: arguments.against.as_deref().map(side).transpose()?,
        comparison: Comparison::new(arguments.top),
        covered: Covered::default(),
        covers: None,
        places: Vec::new(),
        out: out(arguments.out.as_deref())?,
        include_record: config.is_none_or(|config| config.output.include_record),
        attributions: config.map_or(ATTRIBUTIONS, |config| config.output.attributions),
        topic,
    };
    let range = arguments.range.range();
    let history = History::open(&connection.kafka, &run.topic, &range, &stop)?;
    let notes = history.notes.clone();
    for note in &notes {
        eprintln!("{}: {note}", run.topic);
    }
    let spans = history.spans().clone();
    let ended = run.all(history, arguments, &stop)?;
    if run.covered.records == 0 && ended == Ended::Complete {
        return Err(empty_range(&run.topic, &spans));
    }
    run.covers = run.covered.covers();
    report::print(&run, ended, &notes, started.elapsed(), arguments.json);
    let sides = [Some(&run.first), run.second.as_ref()];
    sides.into_iter().flatten().try_for_each(|side| {
        let Tally {
            scores, rejected, ..
        } = &side.tally;
        match rejected.count() {
            0 => Ok(()),
            _ => some_scored(scores.len(), rejected),
        }
    })
}

/// One bundle with its scorer and results.
struct Side {
    dir: PathBuf,
    judge: Judge,
    nearest: Option<Nearest>,
    model: ModelId,
    input: RecordFormat,
    decoder: Decoder,
    scoring: ScorerPool,
    tally: Tally,
    /// The records of the chunk that could be decoded to a row, and their positions in the chunk.
    batch: Batch,
    positions: Vec<usize>,
    /// Score and threshold of each record in the chunk. NaN means not scored.
    scores: Vec<f32>,
    thresholds: Vec<f32>,
}

impl Side {
    fn load(dir: &Path, arguments: &Arguments, config: Option<&Config>) -> Result<Side, Failure> {
        let inference = match config {
            Some(config) => InferenceSettings {
                workers: all_cores().workers,
                ..config.inference.clone()
            },
            None => all_cores(),
        };
        if config.is_some_and(|config| config.translate.is_some()) {
            return Err(Failure::config(
                "translate.bundle: backtest reads tables, and only images are translated: give settings without it",
            ));
        }
        let rule: Option<ThresholdRule> = arguments.threshold.rule();
        let rule = rule.or(config.map(|config| config.threshold));
        let rule = |calibration: &Calibration| rule.unwrap_or_else(|| default_rule(calibration));
        let limit = config.map_or(inference.provider.load_timeout(), |c| c.model.load_timeout);
        let stop = Shutdown::default();
        let loaded = model::load_within(dir, &inference, BATCH, limit, &stop, |bundle| {
            model::must_read_tables(bundle, "backtest")?;
            Ok(rule(&bundle.calibration))
        })?;
        let features = loaded.bundle.features();
        let input = input::of_topic(config, &loaded.bundle)?;
        Ok(Side {
            dir: dir.to_owned(),
            decoder: Decoder::new(features, input.clone(), loaded.segment()),
            input,
            scoring: ScorerPool::new(loaded.scorers, features.len()),
            tally: Tally::new(arguments.top),
            judge: loaded.judge,
            nearest: loaded.nearest,
            model: loaded.model,
            batch: Batch::default(),
            positions: Vec::new(),
            scores: Vec::new(),
            thresholds: Vec::new(),
        })
    }

    /// Decodes the record into the chunk's next row. Waits for schemas, unless stopped.
    fn take(
        &mut self,
        record: &Record<'_>,
        keep_payload: bool,
        stop: &Shutdown,
    ) -> Result<(), DecodeError> {
        let payload = record.payload.unwrap_or_default();
        let position = self.scores.len();
        self.scores.push(f32::NAN);
        self.thresholds.push(f32::NAN);
        let rows = &mut self.batch.rows;
        let key_and_time = (record.key, record.timestamp_ms);
        let decoded = input::decode_written(&mut self.decoder, payload, key_and_time, rows, stop);
        let segment = decoded.inspect_err(|error| {
            if let DecodeError::Row(error) = error {
                self.tally.reject(error);
            }
        })?;
        let kept = Record {
            key: None,
            headers: Vec::new(),
            payload: record.payload.filter(|_| keep_payload),
            ..record.clone()
        };
        let from = TopicPartition {
            topic: 0,
            partition: record.partition,
        };
        self.batch.keep(&kept, from, segment, Instant::now());
        self.positions.push(position);
        Ok(())
    }

    fn clear(&mut self) {
        self.batch.clear();
        self.positions.clear();
        self.scores.clear();
        self.thresholds.clear();
    }
}

struct Run {
    topic: String,
    first: Side,
    second: Option<Side>,
    comparison: Comparison,
    covered: Covered,
    covers: Option<Covers>,
    /// The place of each record in the chunk.
    places: Vec<Place>,
    out: Option<Box<dyn Write>>,
    include_record: bool,
    attributions: usize,
}

impl Run {
    fn all(
        &mut self,
        history: History,
        arguments: &Arguments,
        stop: &Shutdown,
    ) -> Result<Ended, Failure> {
        let bar = progress::of_range("judging", arguments.json);
        bar.set_length(history.total());
        let ended = history.read::<Failure>(stop, |record, progress| {
            self.take(record, stop)?;
            if self.places.len() >= CHUNK
                || self
                    .first
                    .batch
                    .is_due(CHUNK, Duration::MAX, Instant::now())
            {
                self.score_chunk()?;
                bar.set_position(progress.done);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        self.score_chunk()?;
        if let Some(out) = &mut self.out {
            out.flush().map_err(Failure::output)?;
        }
        bar.finish_and_clear();
        Ok(ended)
    }

    fn take(&mut self, record: &Record<'_>, stop: &Shutdown) -> Result<(), Failure> {
        self.covered.take(record.timestamp_ms);
        let payload = record.payload.unwrap_or_default();
        if payload.is_empty() {
            self.covered.tombstones += 1;
            return Ok(());
        }
        match self.first.decoder.split(payload) {
            Ok(Split::One) => self.take_one(record, stop),
            Ok(Split::Empty) => {
                self.covered.nothing += 1;
                Ok(())
            }
            Ok(Split::Many(payloads)) => {
                self.covered.records += payloads.len() as u64 - 1;
                (0..).zip(&payloads).try_for_each(|(index, payload)| {
                    let one = Record {
                        index: Some(index),
                        payload: Some(payload),
                        ..record.clone()
                    };
                    self.take_one(&one, stop)
                })
            }
            // Both bundles refuse it for the same reason.
            Err(error) => {
                let sides = [Some(&mut self.first), self.second.as_mut()];
                let sides = sides.into_iter().flatten();
                sides.for_each(|side| side.tally.reject(&error));
                self.write_refused(record, &error)
            }
        }
    }

    fn take_one(&mut self, record: &Record<'_>, stop: &Shutdown) -> Result<(), Failure> {
        self.places.push(record.place());
        let keep_payload = self.out.is_some() && self.include_record;
        match self.first.take(record, keep_payload, stop) {
            Err(DecodeError::Row(error)) => self.write_refused(record, &error)?,
            Err(_) => self.covered.nothing += 1,
            Ok(()) => {}
        }
        if let Some(second) = &mut self.second {
            // The second bundle counts its own errors. Only the first writes to --out.
            let _ = second.take(record, false, stop);
        }
        Ok(())
    }

    fn score_chunk(&mut self) -> Result<(), Failure> {
        let published = self.out.as_deref_mut().map(|out| Published {
            out,
            include_record: self.include_record,
            attributions: self.attributions,
        });
        score(&mut self.first, &self.topic, published)?;
        if let Some(second) = &mut self.second {
            score(second, &self.topic, None)?;
            for (i, &place) in self.places.iter().enumerate() {
                let scores = [self.first.scores[i], second.scores[i]];
                let thresholds = [self.first.thresholds[i], second.thresholds[i]];
                self.comparison.take(place, scores, thresholds);
            }
            second.clear();
        }
        self.first.clear();
        self.places.clear();
        Ok(())
    }

    fn write_refused(&mut self, record: &Record<'_>, error: &RowError) -> Result<(), Failure> {
        self.write(&json!({
            "source": record.source(), "reason": error.reason.as_str(), "error": error.detail,
        }))
    }

    fn write(&mut self, line: &serde_json::Value) -> Result<(), Failure> {
        if let Some(out) = &mut self.out {
            writeln!(out, "{line}").map_err(Failure::output)?;
        }
        Ok(())
    }
}

/// The output for verdicts, and the settings that decide what they contain.
struct Published<'o> {
    out: &'o mut dyn Write,
    include_record: bool,
    attributions: usize,
}

fn score(side: &mut Side, topic: &str, published: Option<Published<'_>>) -> Result<(), Failure> {
    let Side {
        judge,
        nearest,
        model,
        input,
        scoring,
        tally,
        batch,
        positions,
        scores,
        thresholds,
        ..
    } = side;
    let mut published = published;
    let mut records = batch.records();
    scoring.score(&batch.rows, |row, scored| {
        let record = records.next().expect("one record per row");
        let score = scored.score;
        if let Some(flaw) = scored.flaw() {
            tally.reject(&RowError {
                reason: Reason::Unscorable,
                detail: flaw.into(),
            });
            return Ok(());
        }
        let segment = record.segment;
        let threshold = judge.threshold_of(segment);
        scores[positions[row]] = score;
        thresholds[positions[row]] = threshold;
        tally.score(score, threshold, record.timestamp_ms);
        let flagged = score > threshold;
        if flagged {
            tally.explain(&judge.judge(scored, segment, None, usize::MAX));
        }
        let grade = score / threshold;
        if tally.highest.takes(grade) {
            let record = format!("{topic}-{}", record.place());
            let why = reasons(&judge.judge(scored, segment, None, ATTRIBUTIONS));
            tally.highest.insert(grade, High { record, score, why });
        }
        if let Some(Published {
            out,
            include_record,
            attributions,
        }) = &mut published
        {
            let normal = match nearest {
                Some(nearest) if flagged => nearest.of(scored.row)?,
                _ => None,
            };
            let verdict = judge.judge(scored, segment, normal, *attributions);
            let json = include_record
                .then(|| input.to_json(record.payload))
                .flatten();
            let message = verdict_message(model, topic, record, &verdict, json.as_deref());
            out.write_all(&message.payload).map_err(Failure::output)?;
            out.write_all(b"\n").map_err(Failure::output)?;
        }
        Ok(())
    })
}
