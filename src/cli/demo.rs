//! `residuald demo`: the daemon on an embedded broker, fed with a bundle's sample stream, watched in the terminal.

mod watch;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::config::{ClientSettings, Config};
use crate::dataset::{self, Example};
use crate::kafka::Sink;
use crate::kafka::embedded::{EmbeddedBroker, FETCH_WAIT, SPREAD, capacity};
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;
use crate::telemetry;

use super::daemon;
use super::failure::Failure;
use super::feed::{Feed, kafka_settings};
use super::produce::positive;
use watch::Watcher;

const TOPIC: &str = "records";
const ANOMALIES: &str = "anomalies";
const DEAD_LETTERS: &str = "dead-letters";
const PARTITIONS: i32 = 4;
const REFRESH: Duration = Duration::from_millis(250);
/// Without a terminal, a line now and then.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Run the whole thing here: embedded broker, sample stream, verdicts with their reasons in the terminal
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald demo
  residuald demo --records 20000 --rate 5000 --json")]
pub struct Arguments {
    /// The bundle; its sample.ndjson.gz is the stream
    #[arg(long, value_name = "DIR", default_value = "models/payments")]
    bundle: PathBuf,
    /// Stop after this many records, and fail unless every one is accounted for; the sample is repeated as needed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    records: Option<u64>,
    /// Records a second
    #[arg(long, default_value_t = 2000.0, value_parser = positive)]
    rate: f64,
    /// As fast as it goes instead
    #[arg(long, conflicts_with = "rate")]
    unpaced: bool,
    /// Where /status and /metrics are served; a free port if it is taken
    #[arg(long, default_value = "127.0.0.1:9464")]
    listen: String,
    /// One JSON object as the last line
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Summary {
    consumed: u64,
    scored: u64,
    dead_letters: u64,
    skipped: u64,
    unaccounted: i64,
    anomalies: u64,
    precision: Option<f64>,
    recall: Option<f64>,
    seconds: f64,
    records_per_second: f64,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let sample = read_sample(&arguments.bundle)?;
    let broker = EmbeddedBroker::start(&[(TOPIC, PARTITIONS), (ANOMALIES, 1), (DEAD_LETTERS, 1)])?;
    let config = config(arguments, &broker.brokers)?;
    telemetry::init(&config.telemetry);
    let stop = Shutdown::default();
    let daemon = daemon::start(config, &stop)?;
    let watcher = Watcher::start(&broker.brokers, ANOMALIES)?;
    println!(
        "scoring {} records of {} again and again; look at http://{}/status and http://{}/metrics, Ctrl-C drains",
        sample.len(),
        arguments.bundle.display(),
        daemon.address,
        daemon.address
    );
    let started = Instant::now();
    let fed = std::thread::scope(|scope| {
        let (metrics, brokers) = (&daemon.metrics, &broker.brokers);
        let (sample, stop) = (&sample, &stop);
        let feeder = scope.spawn(move || feed(arguments, brokers, sample, metrics, stop));
        show(metrics, &watcher, stop, arguments);
        feeder
            .join()
            .unwrap_or_else(|_| Err(Failure::internal("the feeding thread panicked")))
    });
    let metrics = daemon.metrics.clone();
    daemon.wait()?;
    let positives = fed?;
    watcher.wait_for(metrics.anomalies_total());
    let summary = summarise(&metrics, &watcher, positives, started);
    report(arguments, &summary)
}

fn read_sample(bundle: &Path) -> Result<Vec<Example>, Failure> {
    let options = dataset::Options {
        label: Some("label".into()),
        ..dataset::Options::default()
    };
    let data = dataset::open(&bundle.join("sample.ndjson.gz"), &options)?;
    let sample: Result<Vec<Example>, _> = data.collect();
    let sample = sample?;
    match sample.is_empty() {
        true => Err(Failure::data("the sample stream is empty")),
        false => Ok(sample),
    }
}

/// Bytes.
pub fn average_payload(sample: &[Example]) -> u64 {
    let total: usize = sample.iter().map(|e| e.payload.len()).sum();
    (total / sample.len()) as u64
}

fn config(arguments: &Arguments, brokers: &str) -> Result<Config, Failure> {
    let free = std::net::TcpListener::bind(&arguments.listen).is_ok();
    let listen = if free {
        &arguments.listen
    } else {
        "127.0.0.1:0"
    };
    let quote = |text: &str| serde_json::Value::from(text);
    let settings = [
        format!("kafka.brokers={}", quote(brokers)),
        format!("kafka.topics={}", quote(TOPIC)),
        format!("output.anomalies_topic={}", quote(ANOMALIES)),
        format!("output.dead_letter_topic={}", quote(DEAD_LETTERS)),
        format!(
            "model.bundle={}",
            quote(&arguments.bundle.to_string_lossy())
        ),
        format!("http.listen={}", quote(listen)),
        // The broker goes before the watcher does, which is no news.
        "telemetry.log_level=error,librdkafka=off,rdkafka=off".to_owned(),
    ];
    let mut config = Config::load(None, Vec::new(), &settings)?;
    config.kafka.consumer.set(FETCH_WAIT.0, FETCH_WAIT.1);
    Ok(config)
}

/// Sends the sample until the limit or a stop; returns the number of labelled anomalies among what was sent.
/// With a limit, asks for the stop once everything is finished.
fn feed(
    arguments: &Arguments,
    brokers: &str,
    sample: &[Example],
    metrics: &Metrics,
    stop: &Shutdown,
) -> Result<u64, Failure> {
    let fed = send(arguments, brokers, sample, metrics, stop);
    if let Ok(sent) = &fed {
        while metrics.finished() < *sent && !stop.is_requested() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    stop.request();
    let sent = fed? as usize;
    let anomalies = |records: &[Example]| records.iter().filter(|e| e.label == Some(true)).count();
    let (rounds, rest) = (sent / sample.len(), sent % sample.len());
    Ok((rounds * anomalies(sample) + anomalies(&sample[..rest])) as u64)
}

fn send(
    arguments: &Arguments,
    brokers: &str,
    sample: &[Example],
    metrics: &Metrics,
    stop: &Shutdown,
) -> Result<u64, Failure> {
    let mut kafka = kafka_settings(brokers, ClientSettings::default());
    kafka.producer.set(SPREAD.0, SPREAD.1);
    let sink = Sink::connect(&kafka, &[TOPIC], stop)?;
    let window = capacity(PARTITIONS, average_payload(sample));
    let limit = usize::try_from(arguments.records.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
    let feed = Feed {
        sink: &sink,
        topic: TOPIC,
        rate: (!arguments.unpaced).then_some(arguments.rate),
        stop,
    };
    let records = sample.iter().cycle().take(limit).cloned().map(Ok);
    feed.run(records, |sent| sent < metrics.finished() + window)
}

/// Shows rate, lag and what was found until a stop.
fn show(metrics: &Metrics, watcher: &Watcher, stop: &Shutdown, arguments: &Arguments) {
    let terminal = std::io::stderr().is_terminal() && !arguments.json;
    let bar = if terminal {
        let style = ProgressStyle::with_template("{spinner} {msg}").expect("a valid template");
        ProgressBar::new_spinner().with_style(style)
    } else {
        ProgressBar::hidden()
    };
    let (mut before, mut since) = (0, Instant::now());
    let mut last_line = Instant::now();
    while !stop.is_requested() {
        std::thread::sleep(REFRESH);
        let scored = metrics.records_scored.get();
        let rate = (scored - before) as f64 / since.elapsed().as_secs_f64();
        (before, since) = (scored, Instant::now());
        let lag = metrics.records_consumed.get() - metrics.finished();
        let found = watcher.found();
        let precision = found.precision().map_or("-".into(), |p| format!("{p:.3}"));
        let line = format!(
            "{rate:>7.0} records/s, {scored} scored, {lag} in flight, {} anomalies, precision {precision}",
            found.flagged
        );
        if terminal {
            for anomaly in watcher.latest() {
                bar.println(anomaly);
            }
            bar.set_message(line);
            bar.tick();
        } else if !arguments.json && last_line.elapsed() >= LINE_EVERY {
            last_line = Instant::now();
            watcher.latest().iter().for_each(|a| println!("{a}"));
            println!("{line}");
        }
    }
    bar.finish_and_clear();
}

fn summarise(metrics: &Metrics, watcher: &Watcher, positives: u64, started: Instant) -> Summary {
    let found = watcher.found();
    let seconds = started.elapsed().as_secs_f64();
    let consumed = metrics.records_consumed.get();
    let recall = (positives > 0).then(|| found.right as f64 / positives as f64);
    Summary {
        consumed,
        scored: metrics.records_scored.get(),
        dead_letters: metrics.dead_letters_total(),
        skipped: metrics.skipped_total(),
        unaccounted: consumed as i64 - metrics.finished() as i64,
        anomalies: metrics.anomalies_total(),
        precision: found.precision(),
        recall,
        seconds,
        records_per_second: consumed as f64 / seconds,
    }
}

fn report(arguments: &Arguments, summary: &Summary) -> Result<(), Failure> {
    if arguments.json {
        println!("{}", serde_json::json!(summary));
    } else {
        let shown = |value: Option<f64>| value.map_or("-".into(), |v| format!("{v:.3}"));
        println!(
            "{} records in {:.1} s: {} scored, {} dead letters, {} skipped, {} unaccounted for; {} anomalies, precision {}, recall {}",
            summary.consumed,
            summary.seconds,
            summary.scored,
            summary.dead_letters,
            summary.skipped,
            summary.unaccounted,
            summary.anomalies,
            shown(summary.precision),
            shown(summary.recall)
        );
    }
    let complete = arguments.records.is_none_or(|n| n == summary.consumed);
    if summary.unaccounted != 0 || !complete {
        return Err(Failure::internal(format!(
            "{} records asked for, {} consumed, {} unaccounted for",
            arguments.records.unwrap_or(summary.consumed),
            summary.consumed,
            summary.unaccounted
        )));
    }
    Ok(())
}
