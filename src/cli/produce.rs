//! `residuald produce`: sends the records of a file to a topic.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;

use crate::dataset;
use crate::kafka::Sink;
use crate::shutdown::Shutdown;

use crate::cli::shared::connection::{ConnectionArguments, topic};
use crate::cli::shared::feed::{Feed, without_transactions};
use crate::cli::shared::files::{FormatArgument, shown};
use crate::cli::shared::progress::{self, stop_on_ctrl_c};
use crate::cli::shared::refusals::Refusals;
use crate::cli::shared::threshold::positive;
use crate::failure::Failure;

/// Send the records of files (CSV, NDJSON, JSON, Parquet, Arrow, NPZ) to a topic, one JSON object per message
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald produce payments.csv --topic payments --rate 500
  residuald produce flows.parquet --topic flows --brokers kafka:9092 --key source_ip -X security.protocol=SSL")]
pub struct Arguments {
    /// Files of records: .csv, .tsv, .ndjson, .jsonl or .json, each also .gz, .parquet, .pq, .arrow, .feather or .npz; a folder of them, a
    /// pattern in quotes such as 'part-*.csv', or - for standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    format: FormatArgument,
    /// Topic to write to [default: the topic of --config]
    #[arg(long)]
    topic: Option<String>,
    /// Records per second [default: as fast as the broker accepts them]
    #[arg(long, value_parser = positive)]
    rate: Option<f64>,
    /// Field (dotted path) that becomes the message key
    #[arg(long, value_name = "FIELD")]
    key: Option<String>,
    /// Stop after this many records
    #[arg(long, value_name = "N")]
    records: Option<u64>,
    #[command(flatten)]
    connection: ConnectionArguments,
    /// Print one JSON object at the end instead of text
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let connection = arguments.connection.load()?;
    let topic = topic(arguments.topic.as_deref(), connection.config.as_ref())?;
    let options = dataset::Options {
        key: arguments.key.clone(),
        format: arguments.format.format,
        ..dataset::Options::default()
    };
    let mut data = dataset::open_all(&arguments.files, &options)?;
    let kafka = without_transactions(connection.kafka);
    let stop = Shutdown::default();
    stop_on_ctrl_c(&stop)?;
    let sink = Sink::connect(&kafka, &[&topic], &stop)?;
    let started = Instant::now();
    let bar = progress::of_file(&data, arguments.json);
    let mut left_out = Refusals::default();
    let limit = usize::try_from(arguments.records.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
    let examples = std::iter::from_fn(|| {
        loop {
            let next = data.next()?;
            bar.set_position(data.progress().done);
            match next {
                Ok(example) => return Some(Ok(example)),
                Err(e) if e.is_fatal() => return Some(Err(e.into())),
                Err(e) => left_out.add("malformed", &e.to_string()),
            }
        }
    })
    .take(limit);
    let feed = Feed {
        sink: &sink,
        topic: &topic,
        rate: arguments.rate,
        stop: &stop,
    };
    let delivered = feed.run(examples, |_| true)?;
    progress::end(&bar, &data);
    let seconds = started.elapsed().as_secs_f64();
    if arguments.json {
        println!(
            "{}",
            json!({
                "produced": delivered,
                "left_out": left_out.count(),
                "reasons": left_out.all(),
                "seconds": seconds,
            })
        );
    } else {
        println!(
            "{delivered} records delivered to {topic} in {seconds:.1} s, {} left out",
            left_out.count()
        );
        if left_out.count() > 0 {
            println!("left out: {left_out}");
        }
    }
    match (delivered, left_out.count()) {
        (0, 0) if limit > 0 && !stop.is_requested() => Err(Failure::data(format!(
            "{} contains no records",
            shown(&arguments.files)
        ))),
        (0, bad) if bad > 0 => Err(Failure::data(format!(
            "none of the {bad} records could be sent: {left_out}"
        ))),
        _ => Ok(()),
    }
}
