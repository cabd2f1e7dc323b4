//! `residuald dead-letters discard`: marks letters so that no replay sends them.

use std::io::{BufRead, IsTerminal, Write};

use serde_json::json;

use crate::dead_letter::{PartitionOffsets, discarded};
use crate::kafka::history::Ended;
use crate::kafka::replay::Replay;
use crate::shutdown::Shutdown;

use super::{Selection, Survey};
use crate::cli::shared::progress::stop_on_ctrl_c;
use crate::failure::Failure;

/// Mark dead letters as done, so that no replay sends them
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald dead-letters discard --config residuald.toml --reason malformed --dry-run
  residuald dead-letters discard --brokers kafka:9092 --reason malformed --to -7d --yes

No letter is deleted: they stay until the topic's retention removes them, and `list` shows them as discarded. A marker \
is written to the dead letter topic, which must not be compacted. It applies to every target of a replay and cannot be \
undone. Letters that were already replayed are not changed. A running replay is stopped.")]
pub struct Arguments {
    #[command(flatten)]
    selection: Selection,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
    /// Only report what would be discarded
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (connection, topic) = arguments.selection.load()?;
    if !arguments.yes && !arguments.dry_run && !std::io::stdin().is_terminal() {
        return Err(Failure::usage(
            "cannot ask for confirmation without a terminal: pass --yes to discard, or --dry-run to see what would be discarded",
        ));
    }
    let stop = Shutdown::default();
    stop_on_ctrl_c(&stop)?;
    // The producer connects before the markers are read. This fences other writers, so that no marker is missed.
    let producer = match arguments.dry_run {
        true => None,
        false => Some(Replay::connect(&connection.kafka, &topic, &stop)?),
    };
    let selection = &arguments.selection;
    let survey = selection.survey(&connection.kafka, &topic, None, arguments.json, &stop)?;
    let left = match survey.ended {
        Ended::Complete => left(&survey),
        Ended::Early => PartitionOffsets::default(),
    };
    let mut done = 0;
    if let Some(producer) = producer
        && left.count() > 0
        && (arguments.yes || confirmed(&topic, left.count())?)
    {
        for (partition, offsets) in left.iter() {
            producer.send(&discarded(&topic, partition, offsets))?;
            done += offsets.count();
        }
    }
    report(arguments, &survey, left.count(), done);
    Ok(())
}

/// Returns the matching letters that are neither replayed nor discarded.
fn left(survey: &Survey) -> PartitionOffsets {
    let offsets = survey.matching.without(&survey.replayed.offsets());
    offsets.without(&survey.discarded)
}

fn confirmed(topic: &str, letters: u64) -> Result<bool, Failure> {
    let mut out = std::io::stderr();
    write!(
        out,
        "Discard {letters} letters of topic `{topic}`? Every later replay will skip them. [y/N] "
    )
    .and_then(|()| out.flush())
    .map_err(Failure::internal)?;
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.map_err(Failure::internal)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn report(arguments: &Arguments, survey: &Survey, left: u64, done: u64) {
    let letters = survey.matching.count();
    let complete = survey.ended == Ended::Complete;
    let before = letters - left;
    if arguments.json {
        let line = json!({
            "letters": letters, "discarded": done, "left": left - done, "done_before": before,
            "complete": complete, "dry_run": arguments.dry_run,
        });
        println!("{line}");
        return;
    }
    let what = match arguments.dry_run {
        true => format!("{left} would be discarded"),
        false => format!("{done} discarded"),
    };
    println!("{letters} letters: {what}, {before} replayed or discarded before");
    if !complete {
        println!("stopped early: run it again to continue");
    }
}
