//! `residuald bench`: measures the CPU cost of each stage and of the whole pipeline in one run.

mod cpu;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::batch::Scores;
use crate::bundle::Bundle;
use crate::config::{Config, InferenceSettings, Provider};
use crate::dataset::{self, Example};
use crate::decode::JsonDecoder;
use crate::kafka::embedded::{EmbeddedBroker, FETCH_WAIT, capacity};
use crate::kafka::{Event, Source};
use crate::metrics::Metrics;
use crate::onnx::{ImageScores, Scorer};
use crate::shutdown::Shutdown;
use crate::status::{InForce, Status};
use crate::telemetry;

use crate::cli::shared::feed::{Feed, average_payload, embedded_sink, read_sample};
use crate::cli::shared::images::{ImageArguments, warn_of_depth};
use crate::cli::shared::threshold::{default_rule, default_rule_of};
use crate::daemon;
use crate::daemon::model;
use crate::daemon::reload::unchanging;
use crate::failure::Failure;
use cpu::Meter;

const TOPIC: &str = "records";
const PARTITIONS: i32 = 32;

/// Measure the stages consume, decode and score, the whole pipeline, and the pipeline with the bundle's screen if it has one;
/// efficiency is the CPU time of the stages divided by that of the whole pipeline
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald bench --bundle models/payments --json
  residuald bench --bundle models/surface --records 4000
  residuald bench --provider cuda --sessions 2 --batch 4096")]
pub struct Arguments {
    #[arg(long, value_name = "DIR", default_value = "models/payments")]
    bundle: PathBuf,
    /// Records to replay [default: the bundle's sample.ndjson.gz]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Records per measurement [default: as many as fit into the embedded broker]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(100..))]
    records: Option<u64>,
    /// Number of rounds of measurements; the medians are reported
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Scoring sessions, each with its own thread [default: one per core]
    #[arg(long, value_name = "N")]
    sessions: Option<usize>,
    /// Score on the CPU, or on the first GPU, which all sessions share
    #[arg(long, value_enum, default_value_t = Provider::Cpu)]
    provider: Provider,
    /// Records per batch of a session
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    batch: u64,
    #[command(flatten)]
    images: ImageArguments,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// The cost per record of one kind of measurement.
#[derive(Debug, Clone, Copy, Serialize)]
struct Cost {
    /// CPU time of this process, without the embedded broker and the producer of the records.
    cpu_us_per_record: f64,
    /// Throughput by wall clock. It is low where Kafka takes part, because the embedded broker shares the cores.
    records_per_second: f64,
}

#[derive(Serialize)]
struct Report {
    records: u64,
    rounds: u32,
    sessions: usize,
    consume: Cost,
    decode: Cost,
    score: Cost,
    end_to_end: Cost,
    /// The whole pipeline with `screen.mode = "on"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    screened: Option<Cost>,
    /// Throughput with the screen relative to without: median, lowest and highest of the rounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    screened_over_end_to_end: Option<[f64; 3]>,
    /// (consume + decode + score) / end_to_end in CPU time per record, the median of the rounds. The ratio is taken within a
    /// round, where every measurement met the same load from other processes.
    efficiency: f64,
    /// The lowest and the highest efficiency of any round.
    efficiency_range: [f64; 2],
    /// Throughput end to end relative to the scorer alone on the same cores, the median of the rounds.
    end_to_end_over_score: f64,
    /// The lowest and the highest such ratio of any round.
    end_to_end_over_score_range: [f64; 2],
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let bench = Bench::new(arguments)?;
    let bundle = bench.loaded()?.bundle;
    let has_screen = bundle.screen.is_some();
    arguments.images.reader(&bundle.manifest.input, None)?;
    let mut costs: [Vec<Cost>; 5] = Default::default();
    for round in 1..=arguments.rounds {
        type Measure = fn(&Bench) -> Result<Cost, Failure>;
        let kinds: [(&str, Measure); 5] = [
            ("consume", Bench::consume),
            ("decode", Bench::decode),
            ("score", Bench::score),
            ("end to end", |bench| bench.end_to_end("off")),
            ("screened", |bench| bench.end_to_end("on")),
        ];
        let kinds = &kinds[..if has_screen { 5 } else { 4 }];
        for ((name, measure), results) in kinds.iter().zip(&mut costs) {
            let cost = measure(&bench)?;
            eprintln!(
                "round {round} {name:<10} {:>7.2} µs CPU per record, {:>9.0} records/s",
                cost.cpu_us_per_record, cost.records_per_second
            );
            results.push(cost);
        }
    }
    let rounds = 0..arguments.rounds as usize;
    let efficiency = Spread::of(rounds.clone().map(|round| {
        let [consume, decode, score, whole] =
            [0, 1, 2, 3].map(|k| costs[k][round].cpu_us_per_record);
        (consume + decode + score) / whole
    }));
    let over_score = Spread::of(rounds.clone().map(|round| {
        let [score, whole] = [2, 3].map(|k| costs[k][round].records_per_second);
        whole / score
    }));
    let speedup = has_screen.then(|| {
        let spread = Spread::of(rounds.map(|round| {
            let [whole, screened] = [3, 4].map(|k| costs[k][round].records_per_second);
            screened / whole
        }));
        [spread.median, spread.range[0], spread.range[1]]
    });
    let [consume, decode, score, end_to_end, screened] = costs;
    let screened = has_screen.then(|| median(screened));
    let [consume, decode, score, end_to_end] = [consume, decode, score, end_to_end].map(median);
    let report = Report {
        records: bench.records,
        rounds: arguments.rounds,
        sessions: bench.sessions,
        consume,
        decode,
        score,
        end_to_end,
        screened,
        screened_over_end_to_end: speedup,
        efficiency: efficiency.median,
        efficiency_range: efficiency.range,
        end_to_end_over_score: over_score.median,
        end_to_end_over_score_range: over_score.range,
    };
    if arguments.json {
        println!("{}", serde_json::json!(report));
    } else {
        println!(
            "medians of {} rounds: consume {:.2} + decode {:.2} + score {:.2} µs CPU per record, end to end {:.2};  efficiency {:.3} ({:.3} to {:.3}); \
             {:.0} records/s, {:.3} ({:.3} to {:.3}) of the scorer alone",
            report.rounds,
            consume.cpu_us_per_record,
            decode.cpu_us_per_record,
            score.cpu_us_per_record,
            end_to_end.cpu_us_per_record,
            report.efficiency,
            report.efficiency_range[0],
            report.efficiency_range[1],
            end_to_end.records_per_second,
            report.end_to_end_over_score,
            report.end_to_end_over_score_range[0],
            report.end_to_end_over_score_range[1]
        );
        if let (Some(screened), Some([middle, low, high])) = (screened, speedup) {
            println!(
                "with the screen {:.2} µs CPU per record, {:.0} records/s, {middle:.2} ({low:.2} to {high:.2}) times the rate without it",
                screened.cpu_us_per_record, screened.records_per_second
            );
        }
    }
    Ok(())
}

struct Spread {
    median: f64,
    range: [f64; 2],
}

impl Spread {
    fn of(ratios: impl Iterator<Item = f64>) -> Spread {
        let mut ratios: Vec<f64> = ratios.collect();
        ratios.sort_by(f64::total_cmp);
        Spread {
            median: ratios[ratios.len() / 2],
            range: [ratios[0], ratios[ratios.len() - 1]],
        }
    }
}

fn median(mut costs: Vec<Cost>) -> Cost {
    costs.sort_by(|a, b| a.cpu_us_per_record.total_cmp(&b.cpu_us_per_record));
    costs[costs.len() / 2]
}

struct Bench {
    bundle: PathBuf,
    sample: Vec<Example>,
    records: u64,
    sessions: usize,
    provider: Provider,
    batch: usize,
    images: ImageArguments,
}

impl Bench {
    fn new(arguments: &Arguments) -> Result<Bench, Failure> {
        let default = arguments.bundle.join("sample.ndjson.gz");
        let file = arguments.data.as_ref().unwrap_or(&default);
        let sample = read_sample(file, &dataset::Options::default())?;
        let cores = thread::available_parallelism().map_or(1, usize::from);
        // All records are in the broker before the clock starts, so that no producer competes for the cores.
        let most = capacity(PARTITIONS, average_payload(&sample));
        let records = arguments.records.unwrap_or(most);
        if records > most {
            return Err(Failure::data(format!(
                "the embedded broker can hold only {most} of these records, but {records} were requested: lower --records"
            )));
        }
        Ok(Bench {
            bundle: arguments.bundle.clone(),
            sample,
            records,
            sessions: arguments.sessions.unwrap_or(cores).max(1),
            provider: arguments.provider,
            batch: usize::try_from(arguments.batch).expect("clap checked the range"),
            images: arguments.images.clone(),
        })
    }

    fn payloads(&self) -> impl Iterator<Item = &[u8]> {
        let records = usize::try_from(self.records).unwrap_or(usize::MAX);
        self.sample
            .iter()
            .cycle()
            .take(records)
            .map(|e| e.payload.as_slice())
    }

    fn loaded(&self) -> Result<model::Loaded, Failure> {
        let inference = InferenceSettings {
            provider: self.provider,
            ..InferenceSettings::on_cpu(self.sessions)
        };
        model::load(&self.bundle, &inference, self.batch, default_rule)
    }

    /// Measures taking messages from the broker without decoding them.
    fn consume(&self) -> Result<Cost, Failure> {
        let (config, _broker) = self.backlog("off")?;
        let others = cpu::threads();
        let model = crate::message::ModelId {
            name: String::new(),
            version: String::new(),
            sha256: String::new(),
        };
        let nothing = InForce {
            model,
            provider: "none",
            threshold: 1.0,
            segments: None,
            normal: Vec::new(),
            reader: None,
        };
        let status = Status::new(nothing, Instant::now());
        let mut source = Source::connect(
            &config.kafka,
            &[],
            Metrics::new(1.0),
            status,
            &Shutdown::default(),
        )?;
        let cost = self.take_all(&mut source, &others);
        // Close even after an error, because dropping a consumer that still owns partitions blocks forever.
        source.close(Duration::from_secs(1));
        cost
    }

    fn take_all(&self, source: &mut Source, others: &[u64]) -> Result<Cost, Failure> {
        let (mut consumed, mut meter) = (0, None);
        let mut progress = Progress::default();
        while consumed < self.records {
            if source.is_holding() {
                source.resume(Instant::now())?;
            }
            let rebalance = match source.poll(Duration::from_millis(100))? {
                Event::Message(_) => {
                    meter.get_or_insert_with(|| Meter::start(others));
                    consumed += 1;
                    continue;
                }
                Event::Idle => {
                    progress.check(consumed)?;
                    continue;
                }
                Event::Rebalance(rebalance) => rebalance,
            };
            source.complete(&rebalance)?;
        }
        let meter = meter.expect("there are records");
        Ok(meter.stop(self.records))
    }

    /// Measures decoding payloads in memory to rows.
    fn decode(&self) -> Result<Cost, Failure> {
        let loaded = self.loaded()?;
        // Records that fail to decode are part of the cost.
        if let Some(reader) = self.images.reader(&loaded.bundle.manifest.input, None)? {
            let meter = Meter::start(&[]);
            for payload in self.payloads() {
                let _ = reader.read(payload);
            }
            return Ok(meter.stop(self.records));
        }
        let mut decoder = JsonDecoder::new(loaded.bundle.features());
        let mut rows = Vec::new();
        let meter = Meter::start(&[]);
        for (i, payload) in self.payloads().enumerate() {
            if i % self.batch == 0 {
                rows.clear();
            }
            let _ = decoder.decode(payload, &mut rows);
        }
        Ok(meter.stop(self.records))
    }

    /// Measures scoring rows in memory with all sessions.
    fn score(&self) -> Result<Cost, Failure> {
        let mut loaded = self.loaded()?;
        let rows = self.rows(&loaded.bundle)?;
        let share = self.records as usize / self.sessions;
        let meter = Meter::start(&[]);
        thread::scope(|scope| {
            let threads: Vec<_> = loaded
                .scorers
                .iter_mut()
                .map(|scorer| scope.spawn(|| score_share(scorer, &rows, self.batch, share)))
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().expect("scoring does not panic"))
        })?;
        Ok(meter.stop((share * self.sessions) as u64))
    }

    /// Returns the decoded sample.
    fn rows(&self, bundle: &Bundle) -> Result<Rows, Failure> {
        if let Some(reader) = self.images.reader(&bundle.manifest.input, None)? {
            let read = self
                .sample
                .iter()
                .filter_map(|e| reader.read(&e.payload).ok());
            let images: Vec<Vec<u8>> = read.map(|image| image.rows).collect();
            warn_of_depth(&reader);
            if images.is_empty() {
                return Err(Failure::data(
                    "the sample has no image that can be decoded: give other images with --data",
                ));
            }
            return Ok(Rows::Images(images));
        }
        let mut decoder = JsonDecoder::new(bundle.features());
        let mut values = Vec::new();
        for example in &self.sample {
            let _ = decoder.decode(&example.payload, &mut values);
        }
        let width = bundle.features().len();
        Ok(Rows::Table { values, width })
    }

    /// Measures the whole daemon with the given `screen.mode`.
    fn end_to_end(&self, screen: &str) -> Result<Cost, Failure> {
        let (config, _broker) = self.backlog(screen)?;
        let others = cpu::threads();
        let stop = Shutdown::default();
        let settings = unchanging(&config);
        let daemon = daemon::start(config, settings, &stop)?;
        let metrics = daemon.metrics.clone();
        while metrics.records_consumed.get() == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        let meter = Meter::start(&others);
        let mut progress = Progress::default();
        let mut progressing = Ok(());
        while progressing.is_ok() && metrics.finished() < self.records {
            progressing = progress.check(metrics.finished());
            thread::sleep(Duration::from_millis(5));
        }
        let cost = meter.stop(self.records);
        stop.request();
        daemon.wait()?;
        progressing.map(|()| cost)
    }

    /// Starts an embedded broker that holds all records, and returns it with settings for a daemon that reads them.
    fn backlog(&self, screen: &str) -> Result<(Config, EmbeddedBroker), Failure> {
        let quote = |text: &str| serde_json::Value::from(text);
        let settings = [
            format!("kafka.topics={}", quote(TOPIC)),
            format!("model.bundle={}", quote(&self.bundle.to_string_lossy())),
            format!("batch.max_records={}", self.batch),
            format!("inference.workers={}", self.sessions),
            format!("inference.provider={}", self.provider.as_str()),
            format!("screen.mode={screen}"),
            "http.listen=127.0.0.1:0".to_owned(),
            "telemetry.log_level=error".to_owned(),
        ];
        let depth = self.images.bit_depth;
        let depth = depth.map(|bits| format!("input.bit_depth={bits}"));
        let settings: Vec<String> = settings.into_iter().chain(depth).collect();
        let mut config = Config::load(None, Vec::new(), &settings)?;
        config.threshold = default_rule_of(&self.bundle).unwrap_or(config.threshold);
        telemetry::init(&config.telemetry);
        let output = &config.output;
        let broker = EmbeddedBroker::start(&[
            (TOPIC, PARTITIONS),
            (&output.anomalies_topic, 1),
            (&output.dead_letter_topic, 1),
        ])?;
        config.kafka.brokers.clone_from(&broker.brokers);
        config.kafka.consumer.set(FETCH_WAIT.0, FETCH_WAIT.1);
        let stop = Shutdown::default();
        let sink = embedded_sink(&broker.brokers, TOPIC, &stop)?;
        let feed = Feed {
            sink: &sink,
            topic: TOPIC,
            rate: None,
            stop: &stop,
        };
        let records = usize::try_from(self.records).unwrap_or(usize::MAX);
        let examples = self.sample.iter().cycle().take(records).cloned().map(Ok);
        feed.run(examples, |_| true)?;
        Ok((config, broker))
    }
}

/// Notices a measurement that makes no progress.
#[derive(Default)]
struct Progress {
    count: u64,
    since: Option<Instant>,
}

impl Progress {
    /// Maximum time without progress. It is long because a slow model may need it for one batch of images.
    const PATIENCE: Duration = Duration::from_secs(120);

    fn check(&mut self, count: u64) -> Result<(), Failure> {
        if count > self.count || self.since.is_none() {
            (self.count, self.since) = (count, Some(Instant::now()));
        }
        match self.since {
            Some(since) if since.elapsed() > Self::PATIENCE => Err(Failure::internal(format!(
                "no record arrived for {:?} after the first {count}: the embedded broker lost records. Run the benchmark again",
                Self::PATIENCE
            ))),
            _ => Ok(()),
        }
    }
}

/// Input for a scorer.
enum Rows {
    /// [records, width].
    Table { values: Vec<f32>, width: usize },
    /// One uint8 tensor [tiles, height, width, channels] per image.
    Images(Vec<Vec<u8>>),
}

fn score_share(
    scorer: &mut Scorer,
    rows: &Rows,
    batch: usize,
    records: usize,
) -> Result<(), Failure> {
    let (values, width) = match rows {
        Rows::Table { values, width } => (values, *width),
        Rows::Images(images) => {
            let mut image_scores = ImageScores::default();
            for image in images.iter().cycle().take(records) {
                image_scores.clear();
                scorer.score_pixels(image, &mut image_scores)?;
            }
            return Ok(());
        }
    };
    let mut scores = Scores::default();
    let mut left = records;
    for batch in values.chunks(batch * width).cycle() {
        if left == 0 {
            break;
        }
        let batch = &batch[..batch.len().min(left * width)];
        scores.clear();
        scorer.score(batch, &mut scores)?;
        left -= scores.len();
    }
    Ok(())
}
