//! `residuald dead-letters`: lists, replays or discards the records that could not be scored.

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

/// List, replay or discard the records that could not be scored
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

/// Arguments that select letters.
#[derive(clap::Args)]
struct Selection {
    /// Dead letter topic [default: output.dead_letter_topic of --config, else dead-letters]
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

/// The selected letters of a topic, and which of them were replayed or discarded.
struct Survey {
    kafka: config::KafkaSettings,
    topic: String,
    filter: Filter,
    /// The letters that match the selection.
    matching: PartitionOffsets,
    /// Number of matching letters by reason and source topic.
    kinds: BTreeMap<(String, String), u64>,
    /// Matching letters that can be replayed, by target.
    wanted: Ledger,
    /// Number of matching letters that cannot be replayed, by obstacle.
    obstacles: BTreeMap<Obstacle, u64>,
    /// Number of all letters by reason, whether or not they match.
    reasons: BTreeMap<String, u64>,
    /// Letters that were replayed according to the markers, for any target.
    replayed: Ledger,
    /// Letters that were discarded according to the markers.
    discarded: PartitionOffsets,
    notes: Vec<String>,
    ended: Ended,
}

const UNKNOWN: &str = "(unknown)";
const OTHERS: &str = "(others)";
/// Maximum number of pairs of reason and topic that are counted separately.
const MOST_KINDS: usize = 1000;
/// Maximum number of reasons that a message lists.
const MOST_LISTED: usize = 20;

impl Selection {
    fn load(&self) -> Result<(Connection, String), Failure> {
        let connection = self.connection.load()?;
        let configured = connection.config.as_ref();
        let configured = configured.map(|c| c.output.dead_letter_topic.clone());
        let topic = self.topic.clone().or(configured);
        Ok((connection, topic.unwrap_or_else(|| "dead-letters".into())))
    }

    /// Reads the letters and everything after them, because the markers of a letter come after it. Prints notes about the range,
    /// and shows a progress bar unless `quiet`.
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
            matching: PartitionOffsets::default(),
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
        survey.check_reasons()?;
        Ok(survey)
    }
}

/// Increments the count of `name`. The number of distinct names is limited, because producers choose them.
fn count<K: Ord>(counts: &mut BTreeMap<K, u64>, name: K, others: K) {
    let name = match counts.len() < MOST_KINDS || counts.contains_key(&name) {
        true => name,
        false => others,
    };
    *counts.entry(name).or_default() += 1;
}

impl Survey {
    /// Checks the requested reasons.
    ///
    /// # Errors
    /// A requested reason is neither defined by this program nor found in any letter, so it is probably a typo.
    fn check_reasons(&self) -> Result<(), Failure> {
        let known = |wanted: &str| {
            let defined = Reason::ALL.iter().any(|reason| reason.as_str() == wanted);
            defined || self.reasons.contains_key(wanted) || self.reasons.contains_key(OTHERS)
        };
        let wanted = &self.filter.reasons;
        let listed = match wanted.iter().find(|wanted| !known(wanted)) {
            Some(typo) if self.ended == Ended::Complete => {
                return Err(Failure::usage(format!(
                    "--reason {}: no letter of topic `{}` has this reason. {}",
                    escaped(typo),
                    self.topic,
                    self.known_reasons()
                )));
            }
            _ => wanted.join(", "),
        };
        if !wanted.is_empty() && self.matching.count() == 0 && self.ended == Ended::Complete {
            let (topic, reasons) = (&self.topic, self.known_reasons());
            eprintln!("{topic}: no letter has the reason {listed}. {reasons}");
        }
        Ok(())
    }

    fn known_reasons(&self) -> String {
        if self.reasons.is_empty() {
            let defined: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
            return format!(
                "The topic has no letters. Possible reasons are {}",
                defined.join(", ")
            );
        }
        let reasons = self.reasons.iter().take(MOST_LISTED);
        let reasons = reasons.map(|(reason, letters)| format!("{} ({letters})", escaped(reason)));
        let more = match self.reasons.len() > MOST_LISTED {
            true => ", and more",
            false => "",
        };
        let reasons: Vec<String> = reasons.collect();
        format!("Its letters have the reasons {}{more}", reasons.join(", "))
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
        self.matching.add(record.partition, record.offset);
        match self.filter.target(letter, &self.topic) {
            Ok(to) => self.wanted.add(to, record.partition, record.offset),
            Err(obstacle) => *self.obstacles.entry(obstacle).or_default() += 1,
        }
    }

    /// Reads the letters at `offsets` again.
    fn reread(
        &self,
        offsets: &PartitionOffsets,
        stop: &Shutdown,
        mut each: impl FnMut(&Record<'_>, &FailureHeaders<'_>) -> Result<ControlFlow<()>, Failure>,
    ) -> Result<Ended, Failure> {
        let ends = offsets.ends();
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
            Entry::Letter(letter) if offsets.contains(record.partition, record.offset) => {
                each(record, &letter)
            }
            _ => Ok(ControlFlow::Continue(())),
        })
    }
}

/// Formats milliseconds since the epoch, or `-` if the time is unknown.
fn time(timestamp_ms: Option<i64>) -> String {
    let time = timestamp_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
    time.map_or_else(|| "-".to_owned(), |time| format!("{time:.3}"))
}
