//! `residuald demo`: runs the daemon on an embedded broker with a bundle's sample stream, and shows its verdicts.

mod watch;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::config::Config;
use crate::dataset::{self, Example};
use crate::kafka::embedded::{EmbeddedBroker, FETCH_WAIT, capacity};
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;
use crate::telemetry;
use crate::text::escaped_lines;

use crate::cli::shared::feed::{Feed, average_payload, embedded_sink, read_sample};
use crate::cli::shared::progress;
use crate::cli::shared::threshold::default_rule_of;
use crate::cli::shared::threshold::positive;
use crate::daemon;
use crate::daemon::reload::unchanging;
use crate::failure::Failure;
use watch::Watcher;

const TOPIC: &str = "records";
const ANOMALIES: &str = "anomalies";
const DEAD_LETTERS: &str = "dead-letters";
const PARTITIONS: i32 = 4;
/// Interval between updates of the status line.
const REFRESH: Duration = Duration::from_millis(250);
/// Interval between status lines if there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Run everything on this machine: an embedded broker, a sample stream, and verdicts with their reasons in the terminal
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald demo
  residuald demo --records 20000 --rate 5000 --json")]
pub struct Arguments {
    /// Bundle whose sample.ndjson.gz is streamed
    #[arg(long, value_name = "DIR", default_value = "models/payments")]
    bundle: PathBuf,
    /// Stop after this many records, and fail unless each has an outcome; the sample repeats as needed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    records: Option<u64>,
    /// Records per second
    #[arg(long, default_value_t = 2000.0, value_parser = positive)]
    rate: f64,
    /// Send as fast as possible instead of at --rate
    #[arg(long, conflicts_with = "rate")]
    unpaced: bool,
    /// Address of /status and /metrics; if the port is taken, a free one is used
    #[arg(long, default_value = "127.0.0.1:9464")]
    listen: String,
    /// Print one JSON object as the last line
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
    let options = dataset::Options {
        label: Some("label".into()),
        ..dataset::Options::default()
    };
    let sample = read_sample(&arguments.bundle.join("sample.ndjson.gz"), &options)?;
    let broker = EmbeddedBroker::start(&[(TOPIC, PARTITIONS), (ANOMALIES, 1), (DEAD_LETTERS, 1)])?;
    let config = config(arguments, &broker.brokers)?;
    telemetry::init(&config.telemetry);
    let stop = Shutdown::default();
    let settings = unchanging(&config);
    let daemon = daemon::start(config, settings, &stop)?;
    let watcher = Watcher::start(&broker.brokers, ANOMALIES)?;
    println!(
        "scoring the {} sample records of {} in a loop. Open http://{} or its /status and /metrics. Ctrl-C drains and stops",
        sample.len(),
        arguments.bundle.display(),
        daemon.address
    );
    let demo = Demo {
        arguments,
        brokers: &broker.brokers,
        sample: &sample,
        metrics: daemon.metrics.clone(),
        watcher,
        stop: &stop,
        sent: AtomicU64::new(0),
        started: Instant::now(),
    };
    let fed = std::thread::scope(|scope| {
        let feeder = scope.spawn(|| demo.feed());
        demo.show();
        feeder
            .join()
            .unwrap_or_else(|_| Err(Failure::internal("the producer thread panicked")))
    });
    daemon.wait()?;
    fed?;
    demo.watcher.wait_for(demo.metrics.anomalies_total());
    demo.report()
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
        // Hides the errors of the watcher's consumer, which outlives the broker.
        "telemetry.log_level=error,librdkafka=off,rdkafka=off".to_owned(),
    ];
    let mut config = Config::load(None, Vec::new(), &settings)?;
    config.kafka.consumer.set(FETCH_WAIT.0, FETCH_WAIT.1);
    config.threshold = default_rule_of(&arguments.bundle).unwrap_or(config.threshold);
    Ok(config)
}

struct Demo<'a> {
    arguments: &'a Arguments,
    brokers: &'a str,
    sample: &'a [Example],
    metrics: Metrics,
    watcher: Watcher,
    stop: &'a Shutdown,
    sent: AtomicU64,
    started: Instant,
}

/// Stops the demo when dropped, even if printing panics because nothing reads the output any more.
struct StopOnDrop<'s>(&'s Shutdown);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.request();
    }
}

impl Demo<'_> {
    /// Sends the sample until the limit or a stop. If there is a limit, requests the stop once every record has an outcome.
    fn feed(&self) -> Result<(), Failure> {
        let sent = self.send();
        if let Ok(sent) = &sent {
            while self.metrics.finished() < *sent && !self.stop.is_requested() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.stop.request();
        sent.map(|_| ())
    }

    fn send(&self) -> Result<u64, Failure> {
        let sink = embedded_sink(self.brokers, TOPIC, self.stop)?;
        let window = capacity(PARTITIONS, average_payload(self.sample));
        let limit = self.arguments.records.unwrap_or(u64::MAX);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let feed = Feed {
            sink: &sink,
            topic: TOPIC,
            rate: (!self.arguments.unpaced).then_some(self.arguments.rate),
            stop: self.stop,
        };
        let records = self.sample.iter().cycle().take(limit).cloned().map(Ok);
        feed.run(records, |sent| {
            self.sent.store(sent, Ordering::Relaxed);
            sent < self.metrics.finished() + window
        })
    }

    /// Shows the rate, the lag and the anomalies until a stop.
    fn show(&self) {
        let _stop = StopOnDrop(self.stop);
        let terminal = std::io::stderr().is_terminal() && !self.arguments.json;
        let bar = progress::spinner("{spinner} {msg}", !terminal);
        let (mut before, mut since) = (0, Instant::now());
        let mut last_line = Instant::now();
        while !self.stop.is_requested() {
            std::thread::sleep(REFRESH);
            let finished = self.metrics.finished();
            let rate = (finished - before) as f64 / since.elapsed().as_secs_f64();
            (before, since) = (finished, Instant::now());
            let lag = self.sent.load(Ordering::Relaxed).saturating_sub(finished);
            let (precision, recall) = self.quality();
            let line = format!(
                "{rate:>6.0} records/s, {finished} done, lag {lag}, {} anomalies, precision {}, recall {}",
                self.watcher.found().flagged,
                three_digits(precision),
                three_digits(recall)
            );
            if terminal {
                for anomaly in self.watcher.latest() {
                    bar.println(escaped_lines(&anomaly));
                }
                bar.set_message(line);
                bar.tick();
            } else if !self.arguments.json && last_line.elapsed() >= LINE_EVERY {
                last_line = Instant::now();
                self.watcher.latest().iter().for_each(|a| println!("{a}"));
                println!("{line}");
            }
        }
        bar.finish_and_clear();
    }

    /// Returns precision and recall so far. Recall is approximate within a round of the sample, because partitions are not read
    /// in step.
    fn quality(&self) -> (Option<f64>, Option<f64>) {
        let finished = self.metrics.finished() as usize;
        let anomalies = |records: &[Example]| {
            let labelled = records.iter().filter(|e| e.label == Some(true));
            labelled.count()
        };
        let (rounds, rest) = (finished / self.sample.len(), finished % self.sample.len());
        let positives = rounds * anomalies(self.sample) + anomalies(&self.sample[..rest]);
        let found = self.watcher.found();
        let recall = (positives > 0).then(|| found.right as f64 / positives as f64);
        (found.precision(), recall)
    }

    fn summary(&self) -> Summary {
        let seconds = self.started.elapsed().as_secs_f64();
        let consumed = self.metrics.records_consumed.get();
        let (precision, recall) = self.quality();
        Summary {
            consumed,
            scored: self.metrics.records_scored.get(),
            dead_letters: self.metrics.dead_letters_total(),
            skipped: self.metrics.skipped_total(),
            unaccounted: consumed as i64 - self.metrics.finished() as i64,
            anomalies: self.metrics.anomalies_total(),
            precision,
            recall,
            seconds,
            records_per_second: consumed as f64 / seconds,
        }
    }

    fn report(&self) -> Result<(), Failure> {
        let summary = self.summary();
        if self.arguments.json {
            println!("{}", serde_json::json!(summary));
        } else {
            println!(
                "{} records in {:.1} s: {} scored, {} dead letters, {} skipped, {} unaccounted for; {} anomalies, precision {}, recall {}",
                summary.consumed,
                summary.seconds,
                summary.scored,
                summary.dead_letters,
                summary.skipped,
                summary.unaccounted,
                summary.anomalies,
                three_digits(summary.precision),
                three_digits(summary.recall)
            );
        }
        let requested = self.arguments.records.unwrap_or(summary.consumed);
        if summary.unaccounted != 0 || requested != summary.consumed {
            return Err(Failure::internal(format!(
                "some records have no outcome: {requested} were requested, {} consumed, and {} have no outcome",
                summary.consumed, summary.unaccounted
            )));
        }
        Ok(())
    }
}

fn three_digits(value: Option<f64>) -> String {
    value.map_or("-".into(), |v| format!("{v:.3}"))
}
