//! `residuald produce`: a file into a topic.

use std::path::PathBuf;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::config::{LogFormat, Telemetry};
use crate::dataset::{self, Dataset, Unit};
use crate::kafka::Sink;
use crate::shutdown::Shutdown;
use crate::telemetry;

use super::connection::ClientArguments;
use super::failure::Failure;
use super::feed::{Feed, kafka_settings};

/// Send the records of a CSV, Parquet or NDJSON file to a topic, one JSON object a message
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald produce payments.csv --topic payments --rate 500
  residuald produce flows.parquet --topic flows --brokers kafka:9092 --key source_ip -X security.protocol=SSL")]
pub struct Arguments {
    /// .csv, .ndjson or .jsonl, each also .gz, or .parquet
    file: PathBuf,
    #[arg(long)]
    topic: String,
    #[arg(long, default_value = "localhost:9092")]
    brokers: String,
    /// Records a second; as fast as the broker takes them if not given
    #[arg(long, value_parser = positive)]
    rate: Option<f64>,
    /// Field (dotted path) whose text becomes the message key
    #[arg(long, value_name = "FIELD")]
    key: Option<String>,
    /// Stop after this many records
    #[arg(long, value_name = "N")]
    records: Option<u64>,
    #[command(flatten)]
    client: ClientArguments,
    /// One JSON object at the end instead of text
    #[arg(long)]
    json: bool,
}

/// Rates above zero.
pub fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err("expected a number above 0".into()),
    }
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    telemetry::init(&Telemetry {
        log_level: "error".into(),
        log_format: LogFormat::Text,
    });
    let options = dataset::Options {
        key: arguments.key.clone(),
        ..dataset::Options::default()
    };
    let mut data = dataset::open(&arguments.file, &options)?;
    let kafka = kafka_settings(&arguments.brokers, arguments.client.settings());
    let stop = Shutdown::default();
    stop_on_ctrl_c(&stop)?;
    let sink = Sink::connect(&kafka, &[&arguments.topic], &stop)?;
    let started = Instant::now();
    let bar = progress_bar(&data, arguments.json);
    let mut bad_records = 0;
    let limit = usize::try_from(arguments.records.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
    let examples = std::iter::from_fn(|| {
        loop {
            let next = data.next()?;
            bar.set_position(data.progress().done);
            match next {
                Ok(example) => return Some(Ok(example)),
                Err(e) if e.is_fatal() => return Some(Err(e.into())),
                Err(e) => {
                    bad_records += 1;
                    bar.println(format!("left out: {e}"));
                }
            }
        }
    })
    .take(limit);
    let feed = Feed {
        sink: &sink,
        topic: &arguments.topic,
        rate: arguments.rate,
        stop: &stop,
    };
    let delivered = feed.run(examples, |_| true)?;
    bar.finish_and_clear();
    let seconds = started.elapsed().as_secs_f64();
    if arguments.json {
        println!(
            "{}",
            json!({"produced": delivered, "left_out": bad_records, "seconds": seconds})
        );
    } else {
        println!(
            "{delivered} records delivered to {} in {seconds:.1} s, {bad_records} left out",
            arguments.topic
        );
    }
    Ok(())
}

/// A bar for reading a file; hidden where nobody looks.
pub fn progress_bar(data: &Dataset, hidden: bool) -> ProgressBar {
    if hidden {
        return ProgressBar::hidden();
    }
    let progress = data.progress();
    let template = match progress.unit {
        Unit::Bytes => "{bar:40} {bytes}/{total_bytes} {elapsed}, {eta} left {msg}",
        Unit::Rows => "{bar:40} {human_pos}/{human_len} rows {elapsed}, {eta} left {msg}",
    };
    ProgressBar::new(progress.total)
        .with_style(ProgressStyle::with_template(template).expect("a valid template"))
}

/// For verbs without HTTP: Ctrl-C and SIGTERM end the work after what is in flight.
pub fn stop_on_ctrl_c(stop: &Shutdown) -> Result<(), Failure> {
    stop.on_signals().map_err(Failure::internal)
}
