//! `residuald dead-letters replay`.
//!
//! All that a replay knows is in Kafka: a chunk of records and the markers that tell of them are one transaction. So
//! whatever ends a replay, the next one goes on where it was.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use indicatif::ProgressBar;
use serde_json::json;

use crate::dead_letter::{FailureHeaders, Intervals, Ledger, Marker, Obstacle, Revived};
use crate::kafka::history::Ended;
use crate::kafka::replay::Replay;
use crate::record::Record;
use crate::shutdown::Shutdown;

use super::{Selection, Survey};
use crate::cli::shared::progress;
use crate::cli::shared::progress::stop_on_ctrl_c;
use crate::failure::Failure;

/// What a transaction holds at most.
const CHUNK_LETTERS: usize = 1000;
const CHUNK_BYTES: usize = 8 << 20;

/// Send dead letters back to where they came from, each once
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald dead-letters replay --config residuald.toml --dry-run
  residuald dead-letters replay --brokers kafka:9092 --reason missing --from -24h
  residuald dead-letters replay --to-topic payments-repaired

Key, value, headers and timestamp go back as they came. A record without a key goes back to its partition; for others \
the partition follows from the key, by librdkafka's default partitioner (another one: -X partitioner=murmur2_random).

It can be repeated and killed at any time: a letter is sent to the same topic once. Each transaction also writes a \
marker of what it sent into the dead letter topic, so that topic must not be compacted. Consumers of the target must \
read committed records only (isolation.level=read_committed; residuald does). One replay of a dead letter topic runs at \
a time: a new one stops the old one. For ACLs: its transactional id is residuald-replay-TOPIC.

Retention goes by the timestamp, which is the old one: a target that keeps records for a shorter time than a letter is \
old deletes it soon. The daemon judges what comes back as a new record: its verdict has the new offset and so a new id.")]
pub struct Arguments {
    #[command(flatten)]
    selection: Selection,
    /// Send them all to this topic; otherwise each goes back to the one that it came from
    #[arg(long, value_name = "TOPIC")]
    to_topic: Option<String>,
    /// Only say what would be sent
    #[arg(long)]
    dry_run: bool,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (connection, topic) = arguments.selection.load()?;
    if arguments.to_topic.as_ref() == Some(&topic) {
        return Err(Failure::usage(format!(
            "--to-topic {topic}: the letters lie there already"
        )));
    }
    let stop = Shutdown::default();
    stop_on_ctrl_c(&stop)?;
    // Before the markers are read: nobody else writes one from here on.
    let producer = match arguments.dry_run {
        true => None,
        false => Some(Replay::connect(&connection.kafka, &topic, &stop)?),
    };
    let selection = &arguments.selection;
    let to_topic = arguments.to_topic.clone();
    let survey = selection.survey(&connection.kafka, &topic, to_topic, arguments.json, &stop)?;
    let left = match survey.ended {
        Ended::Complete => {
            let left = survey.wanted.without(&survey.replayed);
            left.without_places(&survey.discarded)
        }
        // It was stopped before it knew of all markers.
        Ended::Early => Ledger::default(),
    };
    let mut report = Report {
        letters: survey.places.count(),
        before: survey.wanted.count() - survey.wanted.without(&survey.replayed).count(),
        discarded: survey.places.count() - survey.places.without(&survey.discarded).count(),
        obstacles: &survey.obstacles,
        sent: BTreeMap::new(),
        left: left.count(),
        complete: survey.ended == Ended::Complete,
        dry_run: arguments.dry_run,
    };
    let Some(producer) = producer else {
        let to_send = left.counts().into_iter();
        report.sent = to_send.map(|(to, n)| (to.to_owned(), n)).collect();
        report.print(arguments.json);
        return Ok(());
    };
    let replayed = send(
        &producer,
        &survey,
        &left,
        arguments.json,
        &stop,
        &mut report,
    );
    if replayed.is_ok() || report.total() > 0 {
        report.print(arguments.json);
    }
    replayed
}

/// Sends what is left, chunk by chunk, and counts what is committed.
fn send(
    producer: &Replay,
    survey: &Survey,
    left: &Ledger,
    hidden: bool,
    stop: &Shutdown,
    report: &mut Report<'_>,
) -> Result<(), Failure> {
    let mut partitions = BTreeMap::new();
    for to in left.counts().into_keys() {
        partitions.insert(to, producer.partitions(to, stop)?);
    }
    let bar = progress::of_range("sending", hidden);
    bar.set_length(left.count());
    let mut chunk = Chunk::default();
    let ended = survey.reread(&left.places(), stop, |record, letter| {
        let to = survey.filter.target(letter, &survey.topic);
        let to = to.expect("only letters with a target are left");
        chunk.add(record, letter, to, partitions[to]);
        if chunk.is_full() {
            commit(producer, survey, &mut chunk, report, &bar)?;
        }
        Ok(ControlFlow::Continue(()))
    });
    // What was read before a stop goes out, too.
    if ended.is_ok() {
        commit(producer, survey, &mut chunk, report, &bar)?;
    }
    bar.finish_and_clear();
    report.complete = ended? == Ended::Complete;
    Ok(())
}

#[derive(Default)]
struct Chunk {
    records: Vec<Revived>,
    bytes: usize,
    /// Where its letters lie, by target and partition.
    letters: BTreeMap<(String, i32), Intervals>,
}

impl Chunk {
    fn add(
        &mut self,
        record: &Record<'_>,
        letter: &FailureHeaders<'_>,
        to: &str,
        partitions: usize,
    ) {
        let revived = Revived::of(record, letter, to, partitions);
        self.bytes += revived.bytes();
        self.records.push(revived);
        let letters = self.letters.entry((to.to_owned(), record.partition));
        letters.or_default().insert(record.offset, record.offset);
    }

    fn is_full(&self) -> bool {
        self.records.len() >= CHUNK_LETTERS || self.bytes >= CHUNK_BYTES
    }
}

fn commit(
    producer: &Replay,
    survey: &Survey,
    chunk: &mut Chunk,
    report: &mut Report<'_>,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let Chunk {
        mut records,
        letters,
        ..
    } = std::mem::take(chunk);
    if records.is_empty() {
        return Ok(());
    }
    let mut sent: BTreeMap<String, u64> = BTreeMap::new();
    for ((to, partition), offsets) in letters {
        *sent.entry(to.clone()).or_default() += offsets.count();
        let marker = Marker { to, offsets };
        records.push(marker.revived(&survey.topic, partition));
    }
    producer.send(&records)?;
    for (to, count) in sent {
        *report.sent.entry(to).or_default() += count;
        bar.inc(count);
    }
    Ok(())
}

struct Report<'a> {
    letters: u64,
    before: u64,
    /// Letters that are not to be sent.
    discarded: u64,
    obstacles: &'a BTreeMap<Obstacle, u64>,
    /// Letters by the topic that they were sent to.
    sent: BTreeMap<String, u64>,
    /// What there was to send.
    left: u64,
    complete: bool,
    dry_run: bool,
}

impl Report<'_> {
    fn total(&self) -> u64 {
        self.sent.values().sum()
    }

    fn print(&self, json: bool) {
        if json {
            let obstacles = self.obstacles.iter();
            let obstacles: BTreeMap<_, _> = obstacles.map(|(o, n)| (o.as_str(), n)).collect();
            println!(
                "{}",
                json!({
                    "letters": self.letters, "replayed": self.total(), "to": self.sent, "replayed_before": self.before, "discarded": self.discarded,
                    "cannot_be_replayed": obstacles, "complete": self.complete, "dry_run": self.dry_run,
                })
            );
            return;
        }
        let done = if self.dry_run {
            "would be replayed"
        } else {
            "replayed"
        };
        let discarded = match self.discarded {
            0 => String::new(),
            discarded => format!(", {discarded} discarded"),
        };
        println!(
            "{} letters: {} {done}, {} replayed before, {} cannot be{discarded}",
            self.letters,
            self.total(),
            self.before,
            self.obstacles.values().sum::<u64>()
        );
        for (to, count) in &self.sent {
            println!("{count:>9}  to {to}");
        }
        for (obstacle, count) in self.obstacles {
            let why = match obstacle {
                Obstacle::ValueOmitted => {
                    "were too large for the topic, which has them without value, headers or key"
                }
                Obstacle::NoSourceTopic => {
                    "name no topic that they came from: give one with --to-topic"
                }
                Obstacle::SourceIsDeadLetterTopic => "came from the dead letter topic itself",
            };
            println!("{count:>9}  {why}");
        }
        let unsent = self.left - self.total();
        if !self.complete {
            println!("stopped early: run it again to go on");
        } else if unsent > 0 {
            println!("{unsent:>9}  were deleted by the topic's retention meanwhile");
        }
    }
}
