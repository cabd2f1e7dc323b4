//! `residuald dead-letters replay`: sends dead letters back to their topics.
//!
//! All state of a replay is in Kafka: one transaction contains a chunk of records and the markers for them. However a replay
//! ends, the next one continues where it stopped.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use indicatif::ProgressBar;
use serde_json::json;

use crate::dead_letter::{FailureHeaders, Intervals, Ledger, Marker, Obstacle, ReplayRecord};
use crate::kafka::history::Ended;
use crate::kafka::replay::Replay;
use crate::record::Record;
use crate::shutdown::Shutdown;

use super::{Selection, Survey};
use crate::cli::shared::progress;
use crate::cli::shared::progress::stop_on_ctrl_c;
use crate::failure::Failure;

/// Maximum number of letters in one transaction.
const CHUNK_LETTERS: usize = 1000;
/// Size at which a transaction is committed, in bytes.
const CHUNK_BYTES: usize = 8 << 20;

/// Send dead letters back to the topics they came from, each only once
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald dead-letters replay --config residuald.toml --dry-run
  residuald dead-letters replay --brokers kafka:9092 --reason missing --from -24h
  residuald dead-letters replay --to-topic payments-repaired

Key, value, headers and timestamp are restored. A record without a key goes to its old partition. Otherwise the key \
determines the partition, by librdkafka's default partitioner (set another one with -X partitioner=murmur2_random).

A replay can be repeated, and it can be killed at any time: each letter is sent to a given topic only once. Each transaction also \
writes a marker of the letters it sent to the dead letter topic, so that topic must not be compacted. Consumers of the target must \
read committed records only (isolation.level=read_committed, as residuald does). Only one replay of a dead letter topic \
runs at a time: a new one stops the old one. ACLs must allow the transactional id residuald-replay-TOPIC.

Records keep their old timestamps, which determine retention: a target whose retention is shorter than a letter's age \
soon deletes it. The daemon judges a replayed record as a new one, so its verdict has the new offset and a new id.")]
pub struct Arguments {
    #[command(flatten)]
    selection: Selection,
    /// Send all letters to this topic [default: each to the topic it came from]
    #[arg(long, value_name = "TOPIC")]
    to_topic: Option<String>,
    /// Only report what would be sent
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (connection, topic) = arguments.selection.load()?;
    if arguments.to_topic.as_ref() == Some(&topic) {
        return Err(Failure::usage(format!(
            "--to-topic {topic} is the dead letter topic itself: give another topic"
        )));
    }
    let stop = Shutdown::default();
    stop_on_ctrl_c(&stop)?;
    // The producer connects before the markers are read. This fences other writers, so that no marker is missed.
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
            left.without_offsets(&survey.discarded)
        }
        // The reading was stopped before all markers were read, so it is unknown which letters are left to send.
        Ended::Early => Ledger::default(),
    };
    let mut report = Report {
        letters: survey.matching.count(),
        before: survey.wanted.count() - survey.wanted.without(&survey.replayed).count(),
        discarded: survey.matching.count() - survey.matching.without(&survey.discarded).count(),
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

/// Sends the letters that are left in chunks, and counts the committed ones.
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
    let ended = survey.reread(&left.offsets(), stop, |record, letter| {
        let to = survey.filter.target(letter, &survey.topic);
        let to = to.expect("only letters with a target are left");
        chunk.add(record, letter, to, partitions[to]);
        if chunk.is_full() {
            commit(producer, survey, &mut chunk, report, &bar)?;
        }
        Ok(ControlFlow::Continue(()))
    });
    // Records that were read are sent even after a stop.
    if ended.is_ok() {
        commit(producer, survey, &mut chunk, report, &bar)?;
    }
    bar.finish_and_clear();
    report.complete = ended? == Ended::Complete;
    Ok(())
}

#[derive(Default)]
struct Chunk {
    records: Vec<ReplayRecord>,
    bytes: usize,
    /// Offsets of the chunk's letters in the dead letter topic, by target topic and partition.
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
        let restored = ReplayRecord::of(record, letter, to, partitions);
        self.bytes += restored.bytes();
        self.records.push(restored);
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
        records.push(marker.replay_record(&survey.topic, partition));
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
    /// Number of letters that earlier replays sent.
    before: u64,
    /// Number of letters that were discarded.
    discarded: u64,
    obstacles: &'a BTreeMap<Obstacle, u64>,
    /// Number of letters sent, by target topic.
    sent: BTreeMap<String, u64>,
    /// Number of letters that were left to send at the start.
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
            "{} letters: {} {done}, {} replayed before, {} cannot be replayed{discarded}",
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
                    "lack their value, headers or key, because they were too large for the dead letter topic"
                }
                Obstacle::NoSourceTopic => {
                    "have no source topic in their headers: give a target with --to-topic"
                }
                Obstacle::SourceIsDeadLetterTopic => "came from the dead letter topic itself",
            };
            println!("{count:>9}  {why}");
        }
        let unsent = self.left - self.total();
        if !self.complete {
            println!("stopped early: run it again to continue");
        } else if unsent > 0 {
            println!("{unsent:>9}  were deleted by the topic's retention in the meantime");
        }
    }
}
