//! `residuald rehearse`: sends a labelled stream, drawn from the configured bundle, through a topic and the daemon, and reports what the
//! daemon makes of it.

mod own_daemon;
mod page;
mod report;
mod rules;
mod sample;
mod send;
mod stream;
mod text;
mod verdicts;

use std::io::Write;
use std::path::PathBuf;

use crate::bundle::{Bundle, Draft, Generative};
use crate::config::{Config, LogFormat, TelemetrySettings, is_pattern};
use crate::daemon::reload::unchanging;
use crate::daemon::{self, model};
use crate::dataset::{self, Example};
use crate::kafka::embedded::{EmbeddedBroker, capacity};
use crate::message::ModelId;
use crate::shutdown::Shutdown;
use crate::telemetry;
use crate::verdict::Judge;

use crate::cli::shared::feed::without_transactions;
use crate::cli::shared::files::FormatArgument;
use crate::cli::shared::generative::{SamplerArguments, generative};
use crate::cli::shared::new_file::{NewFile, must_be_new};
use crate::cli::shared::progress::stop_on_ctrl_c;
use crate::cli::shared::settings::ConfigArguments;
use crate::cli::shared::threshold::positive;
use crate::failure::Failure;
use own_daemon::{DEAD_LETTERS, PARTITIONS, RECORDS, SCORES};
use report::{Input, Report, budget, usual_threshold};
use send::{Sending, Sent};
use stream::{Draw, Part, Stream};

/// Size in bytes that a verdict with all features hardly exceeds, for the room in the embedded broker.
const VERDICT_BYTES: u64 = 8_192;
/// Number of records that may be under way to a daemon elsewhere.
const UNDER_WAY: u64 = 10_000;
/// Maximum number of real records.
const MOST_SAMPLE: usize = 1_000_000;

/// Rehearse the settings before going live: send a labelled stream drawn from the bundle through a daemon, and compare alerts, recall and
/// latency with what you expect
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald rehearse --config residuald.toml
  residuald rehearse --config residuald.toml --records-per-day 2000000 --budget 40 --html rehearsal.html
  residuald rehearse --config residuald.toml --sample yesterday.ndjson.gz
  residuald rehearse --config residuald.toml --set threshold.false_alarm_rate=0.0005 --records 50000 --rate 2000 --json
  residuald rehearse --config residuald.toml --topic payments --rate 50

By default it starts a daemon of its own with your settings on an embedded broker: nothing is written to your topics. The stream has three
parts: normal records that the bundle keeps and was not trained on, the real records of --sample, and drawn records with anomalies among them.
A field of another meaning or unit in your topic can only be found in real records: give --sample.

With --topic, the records go to a topic of yours, and a daemon that runs with the same settings judges them. Its alerts are as real as any.
It requires output.scores_topic.

Exit code 1: the budget is missed, or something else is wrong; the report says what.")]
pub struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Number of records to draw, and maximum number of normal records to take from the bundle
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    records: u64,
    /// Share of the drawn records that become anomalies
    #[arg(long, value_name = "SHARE", default_value_t = 0.2, value_parser = share)]
    anomalies: f64,
    /// Strengths of the anomalies: 1 is plain to see, 0 is normal
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [0.25, 0.5, 1.0, 2.0], value_parser = strength)]
    strengths: Vec<f32>,
    /// Files of real records that are normal, as they are in your topic; may be given several times
    #[arg(long, value_name = "FILE")]
    sample: Vec<PathBuf>,
    #[command(flatten)]
    format: FormatArgument,
    /// Records per second
    #[arg(long, default_value_t = 500.0, value_parser = positive)]
    rate: f64,
    /// Records per day of the real stream [default: threshold.records_per_day, otherwise --rate for a whole day]
    #[arg(long, value_name = "N", value_parser = positive)]
    records_per_day: Option<f64>,
    /// False alarms a day that you accept [default: what [threshold] allows]
    #[arg(long, value_name = "ALERTS_PER_DAY", value_parser = positive)]
    budget: Option<f64>,
    /// Send the records to this topic, which a running daemon reads, instead of starting one
    #[arg(long)]
    topic: Option<String>,
    #[command(flatten)]
    sampler: SamplerArguments,
    /// Write the report to this file as one HTML page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Replace an existing page
    #[arg(long)]
    force: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|s| (0.001..=0.9).contains(s));
    share.ok_or_else(|| "it must be from 0.001 to 0.9".to_owned())
}

fn strength(text: &str) -> Result<f32, String> {
    let strength = text.parse().ok().filter(|s| *s > 0.0 && *s <= 100.0);
    strength.ok_or_else(|| "it must be above 0 and at most 100".to_owned())
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    if let Some(page) = &arguments.html {
        must_be_new(page, arguments.force)?;
    }
    let config = arguments.config.load()?;
    let bundle = Draft::read(&config.model.bundle).finish()?;
    model::must_read_tables(&bundle, "rehearse")?;
    let rehearsal = Rehearsal {
        arguments,
        generative: generative(&bundle)?,
        judge: Judge::new(
            bundle.features().to_vec(),
            bundle.calibration.clone(),
            config.threshold,
        )?,
        bundle: &bundle,
        config: &config,
        sample: real_records(arguments)?,
        stop: Shutdown::default(),
    };
    let report = match &arguments.topic {
        Some(topic) => rehearsal.with_a_running_daemon(topic)?,
        None => rehearsal.with_an_own_daemon()?,
    };
    show(&report, arguments)
}

fn show(report: &Report, arguments: &Arguments) -> Result<(), Failure> {
    if let Some(path) = &arguments.html {
        let mut file = NewFile::open(path, arguments.force, false)?;
        file.write_all(page::html(report).as_bytes())
            .map_err(Failure::output)?;
        file.finish()?;
    }
    match arguments.json {
        true => println!("{}", serde_json::json!(report)),
        false => text::print(report),
    }
    let records = &report.records;
    if records.sent < records.planned {
        return Err(Failure::interrupted(format!(
            "interrupted: the report is on {} of {} records",
            records.scored + records.refused,
            records.planned
        )));
    }
    match report.findings.len() {
        0 => Ok(()),
        1 => Err(Failure::not_passed("the rehearsal has found a fault")),
        many => Err(Failure::not_passed(format!(
            "the rehearsal has found {many} faults"
        ))),
    }
}

fn real_records(arguments: &Arguments) -> Result<Vec<Example>, Failure> {
    if arguments.sample.is_empty() {
        return Ok(Vec::new());
    }
    let options = dataset::Options {
        format: arguments.format.format,
        ..dataset::Options::default()
    };
    let data = dataset::open_all(&arguments.sample, &options)?;
    let sample: Vec<Example> = data.take(MOST_SAMPLE + 1).collect::<Result<_, _>>()?;
    match sample.len() {
        0 => Err(Failure::data("--sample has no records")),
        count if count > MOST_SAMPLE => Err(Failure::usage(format!(
            "--sample has more than {MOST_SAMPLE} records: give fewer"
        ))),
        _ => Ok(sample),
    }
}

struct Rehearsal<'a> {
    arguments: &'a Arguments,
    config: &'a Config,
    bundle: &'a Bundle,
    generative: &'a Generative,
    judge: Judge,
    sample: Vec<Example>,
    stop: Shutdown,
}

impl Rehearsal<'_> {
    fn with_an_own_daemon(self) -> Result<Report, Failure> {
        let broker = EmbeddedBroker::start(&own_daemon::TOPICS)?;
        let features = self.bundle.features().len();
        let (own, notes) = own_daemon::settings(self.config, &broker.brokers, features);
        telemetry::init(&own.telemetry);
        let kafka = own.kafka.clone();
        let settings = unchanging(&own);
        let daemon = daemon::start(own, settings, &self.stop)?;
        let metrics = daemon.metrics.clone();
        let stop = self.stop.clone();
        let done = self.draw().and_then(|stream| {
            let payload = average(&stream);
            let sending = Sending {
                kafka: &kafka,
                topic: RECORDS,
                outcomes: [SCORES, DEAD_LETTERS],
                window: capacity(PARTITIONS, payload.max(VERDICT_BYTES)),
                metrics: Some(metrics),
                rate: self.arguments.rate,
                records_per_day: self.budget().records_per_day,
                hidden: self.arguments.json,
                stop: &stop,
            };
            let sent = sending.run(&stream)?;
            Ok((stream, sent))
        });
        stop.request();
        daemon.wait()?;
        let (stream, sent) = done?;
        Ok(self.report(&stream, &sent, notes, true))
    }

    fn with_a_running_daemon(self, topic: &str) -> Result<Report, Failure> {
        let topics = &self.config.kafka.topics;
        let reads = topics.iter().any(|read| read == topic || is_pattern(read));
        if !reads {
            return Err(Failure::usage(format!(
                "--topic {topic}: the daemon does not read it: kafka.topics is {}",
                topics.join(", ")
            )));
        }
        let Some(scores) = &self.config.output.scores_topic else {
            return Err(Failure::usage(
                "--topic requires output.scores_topic, because without it a record that is not flagged cannot be told from one that is lost",
            ));
        };
        telemetry::init(&TelemetrySettings {
            log_level: "error".into(),
            log_format: LogFormat::Text,
        });
        stop_on_ctrl_c(&self.stop)?;
        let stream = self.draw()?;
        let kafka = without_transactions(self.config.kafka.clone());
        let sending = Sending {
            kafka: &kafka,
            topic,
            outcomes: [scores, &self.config.output.dead_letter_topic],
            window: UNDER_WAY,
            metrics: None,
            rate: self.arguments.rate,
            records_per_day: self.budget().records_per_day,
            hidden: self.arguments.json,
            stop: &self.stop,
        };
        let sent = sending.run(&stream)?;
        let mut notes = Vec::new();
        if self.config.output.attributions < self.bundle.features().len() {
            notes.push("verdicts list only output.attributions features, so shares of the residual are lower bounds".to_owned());
        }
        Ok(self.report(&stream, &sent, notes, false))
    }

    fn budget(&self) -> report::Budget {
        let arguments = self.arguments;
        budget(
            arguments.budget,
            arguments.records_per_day,
            arguments.rate,
            &self.judge,
            self.config.threshold,
        )
    }

    fn draw(&self) -> Result<Stream, Failure> {
        let arguments = self.arguments;
        let mut strengths = arguments.strengths.clone();
        strengths.sort_by(f32::total_cmp);
        strengths.dedup();
        let draw = Draw {
            records: arguments.records,
            anomalies: arguments.anomalies,
            strengths: &strengths,
            seed: arguments.sampler.seed,
        };
        let width = self.bundle.features().len();
        let sampler = arguments.sampler.open(self.generative, width, None)?;
        stream::draw(
            &draw,
            sampler,
            self.bundle,
            self.generative,
            self.sample.clone(),
            &self.stop,
            arguments.json,
        )
    }

    fn report(
        &self,
        stream: &Stream,
        sent: &Sent,
        mut notes: Vec<String>,
        evaluates_rules: bool,
    ) -> Report {
        notes.extend(stream.notes.iter().cloned());
        let (default_rate, default_threshold) = usual_threshold(&self.bundle.calibration);
        let residuals = |part| verdicts::at(&sent.found.residuals, part);
        let shifts = match self.sample.is_empty() {
            true => Vec::new(),
            false => sample::compare(
                stream.of(Part::Sample),
                self.bundle,
                self.generative,
                residuals(Part::Sample),
                residuals(Part::Calm),
            ),
        };
        report::report(Input {
            stream,
            found: &sent.found,
            snapshots: &sent.snapshots,
            evaluates_rules,
            judge: &self.judge,
            rule: self.config.threshold,
            default_threshold,
            default_rate,
            budget: self.budget(),
            sent: sent.records,
            rate: self.arguments.rate,
            seed: self.arguments.sampler.seed,
            model: ModelId {
                name: self.bundle.manifest.name.clone(),
                version: self.bundle.manifest.version.clone(),
                sha256: self.bundle.sha256.clone(),
            },
            shifts,
            notes,
        })
    }
}

/// Returns the mean size of a payload in bytes.
fn average(stream: &Stream) -> u64 {
    let total: usize = stream.payloads.iter().map(Vec::len).sum();
    (total / stream.payloads.len().max(1)) as u64
}
