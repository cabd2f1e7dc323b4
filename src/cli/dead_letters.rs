//! `residuald dead-letters`: lists the records that could not be scored, replays or discards them.

mod discard;
mod list;
mod replay;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use clap::Subcommand;
use jiff::Timestamp;

use crate::clip::clip;
use crate::config;
use crate::dead_letter::{Entry, FailureHeaders, Filter, Ledger, Obstacle, PartitionOffsets};
use crate::decode::Reason;
use crate::kafka::history::{Bound, Ended, History, Range};
use crate::record::Record;
use crate::shutdown::Shutdown;

use crate::cli::shared::connection::{Connection, ConnectionArguments, RangeArguments};
use crate::cli::shared::progress;
use crate::failure::Failure;
use crate::text::escaped;

/// List the records that could not be scored, send them back, or discard them
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald dead-letters list --from -24h
  residuald dead-letters replay --reason missing --dry-run
  residuald dead-letters discard --reason malformed --to -7d")]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    List(list::Arguments),
    Replay(replay::Arguments),
    Discard(discard::Arguments),
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.verb {
        Verb::List(arguments) => list::run(arguments),
        Verb::Replay(arguments) => replay::run(arguments),
        Verb::Discard(arguments) => discard::run(arguments),
    }
}

/// Which letters to work on.
#[derive(clap::Args)]
struct Selection {
    /// The dead letter topic [default: that of --config, else dead-letters]
    #[arg(long)]
    topic: Option<String>,
    /// Only letters with one of these reasons, for example missing,malformed
    #[arg(long, value_name = "REASON", value_delimiter = ',')]
    reason: Vec<String>,
    #[command(flatten)]
    range: RangeArguments,
    #[command(flatten)]
    connection: ConnectionArguments,
}

/// The selected letters of a topic, and what was done with them so far.
struct Survey {
    kafka: config::KafkaSettings,
    topic: String,
    filter: Filter,
    /// The letters that match.
    places: PartitionOffsets,
    /// Their number by reason and source topic.
    kinds: BTreeMap<(String, String), u64>,
    /// Letters that can be replayed, by target.
    wanted: Ledger,
    /// Why the others cannot be replayed.
    obstacles: BTreeMap<Obstacle, u64>,
    /// All letters by reason, whether or not they match.
    reasons: BTreeMap<String, u64>,
    /// Letters that markers name as replayed, for any target.
    replayed: Ledger,
    /// Letters that markers name as discarded.
    discarded: PartitionOffsets,
    notes: Vec<String>,
    ended: Ended,
}

const UNKNOWN: &str = "(unknown)";
const OTHERS: &str = "(others)";
/// Most pairs of reason and topic that are counted separately.
const MOST_KINDS: usize = 1000;
/// Most reasons named in a message.
const MOST_SHOWN: usize = 20;

impl Selection {
    fn load(&self) -> Result<(Connection, String), Failure> {
        let connection = self.connection.load()?;
        let configured = connection.config.as_ref();
        let configured = configured.map(|c| c.output.dead_letter_topic.clone());
        let topic = self.topic.clone().or(configured);
        Ok((connection, topic.unwrap_or_else(|| "dead-letters".into())))
    }

    /// Reads the letters and everything after them, because the markers of a letter come after it. Shows a progress bar
    /// unless `quiet`, and prints notes about the range.
    fn survey(
        &self,
        kafka: &config::KafkaSettings,
        topic: &str,
        to_topic: Option<String>,
        quiet: bool,
        stop: &Shutdown,
    ) -> Result<Survey, Failure> {
        let bar = progress::of_range("reading", quiet);
        let letters = History::open(kafka, topic, &self.range.range(), stop)?;
        let spans = letters.spans().clone();
        let starts = spans.iter().map(|(&p, span)| (p, span.start));
        let range = Range {
            from: Bound::Offsets(starts.collect()),
            to: Bound::End,
            now: Timestamp::now(),
            all_committed: true,
        };
        let mut survey = Survey {
            kafka: kafka.clone(),
            topic: topic.to_owned(),
            filter: Filter {
                reasons: self.reason.clone(),
                to_topic,
            },
            places: PartitionOffsets::default(),
            kinds: BTreeMap::new(),
            wanted: Ledger::default(),
            obstacles: BTreeMap::new(),
            reasons: BTreeMap::new(),
            replayed: Ledger::default(),
            discarded: PartitionOffsets::default(),
            notes: letters.notes,
            ended: Ended::Complete,
        };
        let history = History::open(kafka, topic, &range, stop)?;
        bar.set_length(history.total());
        survey.ended = history.read::<Failure>(stop, |record, progress| {
            bar.set_position(progress.done);
            match Entry::of(record)? {
                Entry::Marker(marker) => survey.replayed.mark(record.partition, &marker),
                Entry::Discarded(offsets) => survey.discarded.add_all(record.partition, &offsets),
                Entry::Letter(letter) if record.offset < spans[&record.partition].end => {
                    survey.take(record, &letter);
                }
                Entry::Letter(_) => {}
            }
            Ok(ControlFlow::Continue(()))
        })?;
        bar.finish_and_clear();
        for note in &survey.notes {
            eprintln!("{topic}: {note}");
        }
        survey.has_the_reasons()?;
        Ok(survey)
    }
}

/// Adds one to a count. Names come from outside, so their number is limited.
fn count<K: Ord>(counts: &mut BTreeMap<K, u64>, name: K, others: K) {
    let name = match counts.len() < MOST_KINDS || counts.contains_key(&name) {
        true => name,
        false => others,
    };
    *counts.entry(name).or_default() += 1;
}

impl Survey {
    /// # Errors
    /// A requested reason is neither one of this program's nor one that any letter has: probably a typo.
    fn has_the_reasons(&self) -> Result<(), Failure> {
        let known = |asked: &str| {
            let ours = Reason::ALL.iter().any(|reason| reason.as_str() == asked);
            ours || self.reasons.contains_key(asked) || self.reasons.contains_key(OTHERS)
        };
        let asked = &self.filter.reasons;
        let problem = match asked.iter().find(|asked| !known(asked)) {
            Some(slip) if self.ended == Ended::Complete => {
                return Err(Failure::usage(format!(
                    "--reason {}: no letter of topic `{}` has this reason; {}",
                    escaped(slip),
                    self.topic,
                    self.said_reasons()
                )));
            }
            _ => asked.join(", "),
        };
        if !asked.is_empty() && self.places.count() == 0 && self.ended == Ended::Complete {
            let (topic, reasons) = (&self.topic, self.said_reasons());
            eprintln!("{topic}: no letter has the reason {problem}; {reasons}");
        }
        Ok(())
    }

    fn said_reasons(&self) -> String {
        if self.reasons.is_empty() {
            let ours: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
            return format!("there are no letters; reasons are {}", ours.join(", "));
        }
        let reasons = self.reasons.iter().take(MOST_SHOWN);
        let reasons = reasons.map(|(reason, letters)| format!("{} ({letters})", escaped(reason)));
        let more = match self.reasons.len() > MOST_SHOWN {
            true => ", and more",
            false => "",
        };
        let reasons: Vec<String> = reasons.collect();
        format!("there are {}{more}", reasons.join(", "))
    }

    fn take(&mut self, record: &Record<'_>, letter: &FailureHeaders<'_>) {
        let name =
            |name: &Option<Cow<'_, str>>| clip(name.as_deref().unwrap_or(UNKNOWN)).into_owned();
        let reason = name(&letter.reason);
        count(&mut self.reasons, reason.clone(), OTHERS.to_owned());
        if !self.filter.matches(letter) {
            return;
        }
        let others = (OTHERS.to_owned(), OTHERS.to_owned());
        count(&mut self.kinds, (reason, name(&letter.topic)), others);
        self.places.add(record.partition, record.offset);
        match self.filter.target(letter, &self.topic) {
            Ok(to) => self.wanted.add(to, record.partition, record.offset),
            Err(obstacle) => *self.obstacles.entry(obstacle).or_default() += 1,
        }
    }

    /// Reads the letters at `places` again.
    fn reread(
        &self,
        places: &PartitionOffsets,
        stop: &Shutdown,
        mut each: impl FnMut(&Record<'_>, &FailureHeaders<'_>) -> Result<ControlFlow<()>, Failure>,
    ) -> Result<Ended, Failure> {
        let ends = places.ends();
        if ends.is_empty() {
            return Ok(Ended::Complete);
        }
        let range = Range {
            from: Bound::Offsets(ends.iter().map(|(&p, ends)| (p, ends.0)).collect()),
            to: Bound::Offsets(ends.iter().map(|(&p, ends)| (p, ends.1)).collect()),
            now: Timestamp::now(),
            all_committed: false,
        };
        let history = History::open(&self.kafka, &self.topic, &range, stop)?;
        history.read(stop, |record, _| match Entry::of(record)? {
            Entry::Letter(letter) if places.contains(record.partition, record.offset) => {
                each(record, &letter)
            }
            _ => Ok(ControlFlow::Continue(())),
        })
    }
}

/// Formats milliseconds since the epoch.
fn time(timestamp_ms: Option<i64>) -> String {
    let time = timestamp_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
    time.map_or_else(|| "-".to_owned(), |time| format!("{time:.3}"))
}
