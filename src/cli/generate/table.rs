//! `residuald generate` with a bundle for tables: draws records.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::ProgressBar;
use jiff::Zoned;
use jiff::civil::{Date, Weekday};
use serde_json::{Value, json};

use super::report::page;
use super::trace::{self, Trace};
use super::{Arguments, first_given};
use crate::bundle::{Bundle, Generative};
use crate::dataset::Example;
use crate::kafka::Sink;
use crate::onnx::CHUNK;
use crate::onnx::generative::Sampler;
use crate::shutdown::Shutdown;
use crate::synthetic::anomalies::{Injector, KINDS, Kind, Wishes};
use crate::synthetic::conditions::Conditions;
use crate::synthetic::privacy::Gate;
use crate::synthetic::quality;
use crate::synthetic::records::{Cell, CellType, Records};

use crate::cli::shared::connection::{ConnectionArguments, topic};
use crate::cli::shared::feed::{Feed, without_transactions};
use crate::cli::shared::generative::{generative, summary_line};
use crate::cli::shared::new_file::{NewFile, must_be_new, written};
use crate::cli::shared::progress::{self, stop_on_ctrl_c};
use crate::cli::shared::records_file::RecordsFile;
use crate::cli::shared::threshold::positive;
use crate::failure::Failure;

const LABEL: &str = "label";
const SCENARIO: &str = "scenario";
/// Least number of samples that are compared with real records. Fewer could hide copies.
const LEAST_COMPARED: u64 = 1_000;
/// Maximum number of samples on the page.
const MOST_COMPARED: usize = 10_000;
/// Maximum number of records in one call.
const MOST_RECORDS: u64 = 1_000_000_000;

#[derive(clap::Args)]
#[command(next_help_heading = "Records of a bundle for tables")]
pub struct TableArguments {
    /// Hold a feature at a value and draw the rest: merchant_category=jewellery; may be given several times
    #[arg(long = "where", value_name = "NAME=VALUE", value_parser = name_and_value)]
    conditions: Vec<(String, String)>,
    /// Share of the records that become anomalies, with the fields `label` (0 or 1) and `scenario` (the kind)
    #[arg(long, value_name = "SHARE", value_parser = share)]
    anomalies: Option<f64>,
    /// Kinds of anomalies: tail, foreign, relation, unseen, ramp [default: all that the schema allows]
    #[arg(
        long,
        value_name = "KIND",
        value_delimiter = ',',
        requires = "anomalies"
    )]
    kinds: Vec<Kind>,
    /// Add a field with a key, which is the message key in a topic
    #[arg(long, value_name = "FIELD")]
    key: Option<String>,
    /// Number of different keys
    #[arg(long, value_name = "N", default_value_t = 1000, requires = "key", value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// First day of the week in which times are [default: the Monday of this week]
    #[arg(long, value_name = "DATE")]
    start: Option<Date>,
    /// Go on where an interrupted run has stopped (NDJSON only)
    #[arg(long)]
    resume: bool,
    /// Write records that come closer to training records than chance allows
    #[arg(long)]
    allow_copies: bool,
    /// Write a page that compares the records with real ones, as HTML
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Send the records to this topic instead of a file
    #[arg(long, conflicts_with_all = ["out", "resume"])]
    topic: Option<String>,
    /// Records per second, for --topic [default: as fast as they are drawn]
    #[arg(long, value_parser = positive, requires = "topic")]
    rate: Option<f64>,
    #[command(flatten)]
    connection: ConnectionArguments,
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it must be NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn share(text: &str) -> Result<f64, String> {
    let share = text
        .parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "it must be from 0 to 1".to_owned())
}

impl TableArguments {
    /// Returns the name of an option that was given.
    pub fn given(&self) -> Option<&'static str> {
        first_given(&[
            ("--where", !self.conditions.is_empty()),
            ("--anomalies", self.anomalies.is_some()),
            ("--key", self.key.is_some()),
            ("--start", self.start.is_some()),
            ("--resume", self.resume),
            ("--allow-copies", self.allow_copies),
            ("--report", self.report.is_some()),
            ("--topic", self.topic.is_some()),
        ])
    }
}

/// Draws records with the bundle, and writes them to a file or a topic.
pub fn run(bundle: &Bundle, arguments: &Arguments) -> Result<(), Failure> {
    let generative = generative(bundle)?;
    let options = &arguments.table;
    if arguments.strength.is_some() && options.anomalies.is_none() {
        return Err(Failure::usage(
            "--strength has no effect without --anomalies: give --anomalies, or leave --strength out",
        ));
    }
    if let Some(page) = &options.report {
        must_be_new(page, arguments.force)?;
    }
    if let Some(path) = arguments.out.as_ref().filter(|_| !options.resume) {
        RecordsFile::check(path, arguments.force)?;
    }
    let started = Instant::now();
    let stop = Shutdown::default();
    stop_on_ctrl_c(&stop)?;
    let mut drawing = Drawing::new(bundle, generative, arguments, &stop)?;
    if let Some(folder) = &arguments.trace {
        trace::prepare(folder, drawing.sampler.steps(), arguments.force)?;
    }
    let done = match &options.topic {
        Some(name) => to_topic(&mut drawing, name, options, &stop)?,
        None => to_file(&mut drawing, arguments, &stop)?,
    };
    drawing.bar.finish_and_clear();
    if let Some(path) = &options.report {
        write_page(&mut drawing, bundle, generative, path, arguments.force)?;
    }
    if let Some(folder) = arguments.trace.as_ref().filter(|_| done.records > 0) {
        write_trace(
            &mut drawing,
            bundle,
            generative,
            arguments,
            done.records,
            folder,
        )?;
    }
    report(&drawing, &done, arguments, started);
    let count = drawing.count;
    if done.records == count {
        return Ok(());
    }
    let place = done
        .unfinished
        .map_or(done.place, |part| part.display().to_string());
    let hint = if done.can_resume {
        ": go on with --resume"
    } else {
        ""
    };
    Err(Failure::interrupted(format!(
        "interrupted: {} of {count} records are in {place}{hint}",
        done.records
    )))
}

/// What was written.
struct Done {
    records: u64,
    place: String,
    /// The file of an interrupted run, which does not have its name yet.
    unfinished: Option<PathBuf>,
    can_resume: bool,
}

fn to_file(
    drawing: &mut Drawing<'_>,
    arguments: &Arguments,
    stop: &Shutdown,
) -> Result<Done, Failure> {
    let default = PathBuf::from("-");
    let options = &arguments.table;
    let path = arguments.out.as_ref().unwrap_or(&default);
    if options.resume && path.as_os_str() == "-" {
        return Err(Failure::usage("--resume requires --out FILE"));
    }
    let before = if options.resume { written(path)? } else { None };
    if let Some((count, first)) = &before {
        drawing.resume(*count, first)?;
    }
    let mut file = RecordsFile::open(path, &drawing.records, arguments.force, before.is_some())?;
    let mut records = drawing.next;
    while let Some(next) = drawing.next() {
        let cells = match next {
            Ok((cells, _)) => cells,
            Err(failure) => {
                file.discard();
                return Err(failure);
            }
        };
        file.write(&drawing.records, cells)?;
        records += 1;
    }
    let place = path.display().to_string();
    if stop.is_requested() && records < drawing.count {
        let can_resume = matches!(file, RecordsFile::Ndjson(_)) && place != "-";
        let unfinished = file.interrupt()?;
        return Ok(Done {
            records,
            place,
            unfinished,
            can_resume,
        });
    }
    file.finish()?;
    Ok(Done {
        records,
        place,
        unfinished: None,
        can_resume: false,
    })
}

fn to_topic(
    drawing: &mut Drawing<'_>,
    name: &str,
    options: &TableArguments,
    stop: &Shutdown,
) -> Result<Done, Failure> {
    let connection = options.connection.load()?;
    let topic = topic(Some(name), connection.config.as_ref())?;
    let kafka = without_transactions(connection.kafka);
    let sink = Sink::connect(&kafka, &[&topic], stop)?;
    let feed = Feed {
        sink: &sink,
        topic: &topic,
        rate: options.rate,
        stop,
    };
    let examples = std::iter::from_fn(|| {
        let next = drawing.next()?;
        Some(next.map(|(cells, key)| Example {
            payload: drawing.records.json(&cells),
            label: None,
            key: key.map(String::into_bytes),
        }))
    });
    let records = feed.run(examples, |_| true)?;
    Ok(Done {
        records,
        place: topic,
        unfinished: None,
        can_resume: false,
    })
}

/// The cells of a record, and its key.
type Drawn = (Vec<Cell>, Option<String>);

/// Draws the records of a range of sample numbers, chunk by chunk.
struct Drawing<'s> {
    sampler: Sampler,
    conditions: Conditions,
    injector: Option<Injector>,
    records: Records,
    gate: Gate,
    /// Number of records at the last test.
    tested: u64,
    /// The first rows as they were drawn, before anomalies, for the page.
    sample: Vec<f32>,
    keys: Option<u64>,
    allow_copies: bool,
    seed: u64,
    width: usize,
    /// Number of the next sample to draw.
    next: u64,
    count: u64,
    /// Drawn records that are not taken yet, the first one last.
    ready: Vec<Drawn>,
    anomalies: [u64; KINDS.len()],
    bar: ProgressBar,
    stop: &'s Shutdown,
}

impl<'s> Drawing<'s> {
    fn new(
        bundle: &Bundle,
        generative: &Generative,
        arguments: &Arguments,
        stop: &'s Shutdown,
    ) -> Result<Drawing<'s>, Failure> {
        let options = &arguments.table;
        let features = bundle.features();
        let about = &generative.about;
        let conditions = Conditions::parse(&options.conditions, features, about);
        let conditions =
            conditions.map_err(|problem| Failure::usage(format!("--where: {problem}")))?;
        let mut extras = Vec::new();
        if let Some(key) = &options.key {
            extras.push((key.as_str(), CellType::Text));
        }
        if options.anomalies.is_some() {
            extras.extend([(LABEL, CellType::Integer), (SCENARIO, CellType::Text)]);
        }
        let start = options.start.unwrap_or_else(this_monday);
        let records = Records::new(features, about, &extras, start, arguments.sampler.seed)
            .map_err(Failure::usage)?;
        if records.have_times() && options.start.is_none() {
            eprintln!("times are in the week from {start}: choose another one with --start");
        }
        let injector = match options.anomalies {
            Some(share) => Some(injector(share, arguments, bundle, generative, &conditions)?),
            None => None,
        };
        let width = features.len();
        let noise = arguments.noise.as_deref();
        let mut sampler = arguments.sampler.open(generative, width, noise)?;
        let count = arguments.count(sampler.noise_file(), MOST_RECORDS)?;
        let dimensions = sampler.dimensions();
        let gate = Gate::new(
            &generative.reference,
            |rows| sampler.encode(rows),
            dimensions,
        )?;
        Ok(Drawing {
            sampler,
            conditions,
            injector,
            records,
            gate,
            tested: 0,
            sample: Vec::new(),
            keys: options.key.is_some().then_some(options.keys),
            allow_copies: options.allow_copies,
            seed: arguments.sampler.seed,
            width,
            next: 0,
            count,
            ready: Vec::new(),
            anomalies: [0; KINDS.len()],
            bar: progress::of_count(count, "records", arguments.json),
            stop,
        })
    }

    /// Goes on after `count` records, of which the first one is in the line `first`.
    fn resume(&mut self, count: u64, first: &[u8]) -> Result<(), Failure> {
        self.draw(0, 1)?;
        let own = self.ready.pop().map(|(cells, _)| self.records.json(&cells));
        self.anomalies = [0; KINDS.len()];
        if own.as_deref() != first.strip_suffix(b"\n") {
            return Err(Failure::usage(
                "--resume: the file was begun with other options or with another bundle: give the same ones, or leave --resume out",
            ));
        }
        self.next = count.min(self.count);
        self.bar.set_position(self.next);
        Ok(())
    }

    /// Draws `count` samples from the number `first` on, compares them with real records, and makes records of them.
    fn draw(&mut self, first: u64, count: usize) -> Result<(), Failure> {
        let (x, known) = self.conditions.rows(count);
        let mut rows = self.sampler.draw(first, &x, &known)?;
        self.gate.add(&self.sampler.encode(&rows)?);
        let room = (MOST_COMPARED * self.width).saturating_sub(self.sample.len());
        self.sample.extend_from_slice(&rows[..rows.len().min(room)]);
        let compared = self.gate.privacy().records;
        // A test after each chunk would find an excess by chance sooner or later.
        let is_due = compared >= 2 * self.tested || first + count as u64 >= self.count;
        if is_due {
            self.tested = compared;
        }
        if let Some(problem) = self
            .gate
            .privacy()
            .fault()
            .filter(|_| is_due && !self.allow_copies)
        {
            return Err(Failure::data(format!(
                "the records give away training data: {problem}. Nothing more is written. Train with more records or fewer steps, or write them all the same with --allow-copies"
            )));
        }
        // Samples beyond the last record are only compared.
        for (number, row) in (first..self.count).zip(rows.chunks_exact_mut(self.width)) {
            let injector = self.injector.as_ref();
            let kind = injector.and_then(|injector| injector.apply(number, row));
            if let Some(kind) = kind {
                self.anomalies[kind as usize] += 1;
            }
            let mut extras = Vec::new();
            let key = self.keys.map(|keys| key(self.seed, number, keys, injector));
            extras.extend(key.clone().map(Cell::Text));
            if injector.is_some() {
                extras.push(Cell::Integer(kind.is_some().into()));
                extras.push(Cell::Text(kind.map_or("normal", Kind::as_str).to_owned()));
            }
            self.ready
                .push((self.records.cells(number, row, &extras), key));
        }
        self.ready.reverse();
        Ok(())
    }

    fn next(&mut self) -> Option<Result<Drawn, Failure>> {
        if self.ready.is_empty() {
            let count = (self.count - self.next).min(CHUNK as u64);
            if count == 0 || self.stop.is_requested() {
                return None;
            }
            // One batch for each core keeps Ctrl-C and the bar prompt. The first chunk is large, because it is compared with real records
            // before anything is written.
            let (count, drawn) = match self.next {
                0 => (count, count.max(LEAST_COMPARED)),
                _ => (
                    count.min(self.sampler.at_once()),
                    count.min(self.sampler.at_once()),
                ),
            };
            if let Err(failure) = self.draw(self.next, drawn as usize) {
                return Some(Err(failure));
            }
            self.next += count;
            self.bar.set_position(self.next);
        }
        self.ready.pop().map(Ok)
    }
}

fn injector(
    share: f64,
    arguments: &Arguments,
    bundle: &Bundle,
    generative: &Generative,
    conditions: &Conditions,
) -> Result<Injector, Failure> {
    let options = &arguments.table;
    let wishes = Wishes {
        share,
        kinds: match options.kinds.is_empty() {
            true => KINDS.to_vec(),
            false => options.kinds.clone(),
        },
        strength: arguments.strength.map_or(1.0, |strength| strength as f32),
        has_keys: options.key.is_some(),
        seed: arguments.sampler.seed,
    };
    let held: Vec<bool> = conditions.known.iter().map(|known| *known == 1.0).collect();
    let made = Injector::new(
        wishes,
        bundle.features(),
        &generative.about,
        &generative.reference,
        &held,
    );
    let (injector, notes) = made.map_err(Failure::usage)?;
    for note in notes {
        eprintln!("{note}");
    }
    Ok(injector)
}

/// Returns the key of a sample. Some keys are far more frequent than others, as with real customers.
fn key(seed: u64, number: u64, keys: u64, injector: Option<&Injector>) -> String {
    let ramp = injector.and_then(|injector| injector.ramp(number));
    let mut random = fastrand::Rng::with_seed(
        seed ^ ramp.map_or(number.wrapping_mul(2), |(ramp, _)| ramp.wrapping_mul(2) + 1),
    );
    random.u64(..);
    let key = (random.f64().powi(2) * keys as f64) as u64;
    format!("key-{key:06}")
}

fn this_monday() -> Date {
    let today = Zoned::now().date();
    today
        .nth_weekday(-1, Weekday::Monday)
        .ok()
        .filter(|_| today.weekday() != Weekday::Monday)
        .unwrap_or(today)
}

/// Writes the folder of `--trace`.
fn write_trace(
    drawing: &mut Drawing<'_>,
    bundle: &Bundle,
    generative: &Generative,
    arguments: &Arguments,
    count: u64,
    folder: &Path,
) -> Result<(), Failure> {
    let start = arguments.table.start.unwrap_or_else(this_monday);
    let (features, about) = (bundle.features(), &generative.about);
    // Neither keys nor labels: anomalies are made of samples.
    let records = Records::new(features, about, &[], start, arguments.sampler.seed);
    let records = records.map_err(Failure::usage)?;
    let trace = Trace {
        folder,
        overwrites: arguments.force,
        name: &bundle.manifest.name,
        features,
        real: &generative.reference.held_out,
        records: &records,
    };
    let samples = trace.write(&mut drawing.sampler, &drawing.conditions, count)?;
    eprintln!(
        "the states of {samples} samples are in {}",
        folder.display()
    );
    Ok(())
}

/// Writes the page of `--report`.
fn write_page(
    drawing: &mut Drawing<'_>,
    bundle: &Bundle,
    generative: &Generative,
    path: &Path,
    force: bool,
) -> Result<(), Failure> {
    let features = bundle.features();
    let real = &generative.reference.held_out;
    let points = drawing.sampler.encode(&drawing.sample)?;
    let both = [&points[..], drawing.gate.held_out()];
    let quality = quality::compare(
        features,
        &drawing.sample,
        real,
        both,
        drawing.sampler.dimensions(),
    );
    let name = &bundle.manifest.name;
    let page = page(
        name,
        features,
        &drawing.sample,
        real,
        &quality,
        drawing.gate.privacy(),
    );
    let mut file = NewFile::open(path, force, false)?;
    file.write_all(page.map_err(Failure::internal)?.as_bytes())
        .map_err(Failure::output)?;
    file.finish()
}

fn report(drawing: &Drawing<'_>, done: &Done, arguments: &Arguments, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    let privacy = drawing.gate.privacy();
    let kinds = KINDS
        .into_iter()
        .zip(drawing.anomalies)
        .filter(|(_, count)| *count > 0);
    let kinds: Vec<(&str, u64)> = kinds.map(|(kind, count)| (kind.as_str(), count)).collect();
    if arguments.json {
        let kinds: serde_json::Map<String, Value> = kinds
            .into_iter()
            .map(|(kind, count)| (kind.to_owned(), count.into()))
            .collect();
        let summary = json!({"records": done.records, "seconds": seconds, "seed": arguments.sampler.seed, "anomalies": kinds, "privacy": privacy});
        summary_line(Path::new(&done.place), &summary);
        return;
    }
    let place = if done.place == "-" {
        String::new()
    } else {
        format!(" to {}", done.place)
    };
    eprintln!(
        "{} records written{place} in {seconds:.1} s (seed {})",
        done.records, arguments.sampler.seed
    );
    if !kinds.is_empty() {
        let kinds: Vec<String> = kinds
            .iter()
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        eprintln!("anomalies among them: {}", kinds.join(", "));
    }
    eprintln!(
        "privacy: {:.1} % are closer to a training record than to a held-out one (50 % is chance)",
        100.0 * privacy.share_closer()
    );
}
