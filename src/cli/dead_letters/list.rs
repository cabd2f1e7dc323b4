//! `residuald dead-letters list`: shows the letters, and whether they were replayed or discarded.

use std::io::Write;
use std::ops::ControlFlow;

use serde_json::json;

use crate::dead_letter::FailureHeaders;
use crate::kafka::history::Ended;
use crate::record::Record;
use crate::shutdown::Shutdown;

use super::{Selection, Survey, time};
use crate::cli::shared::output::stdout;
use crate::cli::shared::progress::stop_on_ctrl_c;
use crate::failure::Failure;
use crate::text::escaped;

/// List dead letters with position, source, time, reason, and whether they were replayed or discarded
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald dead-letters list --config residuald.toml
  residuald dead-letters list --brokers kafka:9092 --reason malformed --from -24h --limit 5 --payload
  residuald dead-letters list --json | jq -r .message

A letter is identified by its partition and offset in the dead letter topic; --from and --to take both. Nothing is changed, and no \
offsets are committed. Open transactions in the topic are waited for, because they may contain the marker of a replayed letter.")]
pub struct Arguments {
    #[command(flatten)]
    selection: Selection,
    /// Show at most this many letters; the counts include all
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Also show the values
    #[arg(long)]
    payload: bool,
    /// Print one JSON object per letter, one per line, and a last one with the counts
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (connection, topic) = arguments.selection.load()?;
    let stop = Shutdown::default();
    stop_on_ctrl_c(&stop)?;
    let selection = &arguments.selection;
    let survey = selection.survey(&connection.kafka, &topic, None, arguments.json, &stop)?;
    print(arguments, &survey, &stop)
}

fn print(arguments: &Arguments, survey: &Survey, stop: &Shutdown) -> Result<(), Failure> {
    let mut out = stdout();
    let mut left = arguments.limit.unwrap_or(u64::MAX);
    let mut ended = survey.ended;
    if left > 0 && ended == Ended::Complete {
        ended = survey.reread(&survey.matching, stop, |record, letter| {
            line(arguments, survey, record, letter, &mut out).map_err(Failure::output)?;
            left -= 1;
            Ok(match left {
                0 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            })
        })?;
    }
    summary(
        arguments,
        survey,
        ended == Ended::Early && left > 0,
        &mut out,
    )
    .map_err(Failure::output)
}

fn line(
    arguments: &Arguments,
    survey: &Survey,
    record: &Record<'_>,
    letter: &FailureHeaders<'_>,
    out: &mut impl Write,
) -> std::io::Result<()> {
    let replayed = survey.replayed.topics_of(record.partition, record.offset);
    let discarded = survey.discarded.contains(record.partition, record.offset);
    if arguments.json {
        return json_line(arguments.payload, &replayed, discarded, record, letter, out);
    }
    let position = format!("{}:{}", record.partition, record.offset);
    let number = |number: Option<i64>| number.map_or("?".to_owned(), |n| n.to_string());
    let from = match &letter.topic {
        Some(topic) => format!(
            "{} {}:{}",
            escaped(topic),
            number(letter.partition.map(i64::from)),
            number(letter.offset)
        ),
        None => "(source unknown)".to_owned(),
    };
    write!(
        out,
        "{position:<12} {}  {:<12} {from}  {}",
        time(record.timestamp_ms),
        escaped(letter.reason.as_deref().unwrap_or("-")),
        escaped(letter.message.as_deref().unwrap_or("-")),
    )?;
    if letter.omitted {
        write!(out, "  (incomplete: too large)")?;
    }
    if discarded {
        write!(out, "  (discarded)")?;
    }
    if !replayed.is_empty() {
        write!(out, "  (replayed to {})", replayed.join(", "))?;
    }
    writeln!(out)?;
    if arguments.payload {
        let value = record.payload.map(String::from_utf8_lossy);
        writeln!(
            out,
            "    {}",
            value.map_or("null".into(), |v| escaped(&v).into_owned())
        )?;
    }
    Ok(())
}

fn json_line(
    payload: bool,
    replayed: &[&str],
    discarded: bool,
    record: &Record<'_>,
    letter: &FailureHeaders<'_>,
    out: &mut impl Write,
) -> std::io::Result<()> {
    let mut line = json!({
        "partition": record.partition,
        "offset": record.offset,
        "time": record.timestamp_ms.map(|ms| time(Some(ms))),
        "source": {"topic": letter.topic, "partition": letter.partition, "offset": letter.offset},
        "reason": letter.reason,
        "message": letter.message,
        "value_omitted": letter.omitted,
        "replayed_to": replayed,
        "discarded": discarded,
    });
    if payload {
        match record.payload.map(std::str::from_utf8) {
            None => line["value"] = serde_json::Value::Null,
            Some(Ok(text)) => line["value"] = text.into(),
            Some(Err(_)) => {
                line["value_hex"] = hex::encode(record.payload.unwrap_or_default()).into();
            }
        }
    }
    writeln!(out, "{line}")
}

fn summary(
    arguments: &Arguments,
    survey: &Survey,
    stopped: bool,
    out: &mut impl Write,
) -> std::io::Result<()> {
    let letters = survey.matching.count();
    let replayed = letters - survey.matching.without(&survey.replayed.offsets()).count();
    let discarded = letters - survey.matching.without(&survey.discarded).count();
    if arguments.json {
        let by = survey.kinds.iter();
        let by: Vec<_> = by
            .map(|((reason, topic), count)| json!({"reason": reason, "source_topic": topic, "letters": count}))
            .collect();
        let line = json!({
            "letters": letters, "replayed": replayed, "discarded": discarded, "by": by, "complete": !stopped, "notes": survey.notes,
        });
        return writeln!(out, "{line}");
    }
    let early = if stopped { ", stopped early" } else { "" };
    let dropped = match discarded {
        0 => String::new(),
        discarded => format!(", {discarded} discarded"),
    };
    writeln!(
        out,
        "{letters} letters, {replayed} of them replayed{dropped}{early}"
    )?;
    for ((reason, topic), count) in &survey.kinds {
        writeln!(
            out,
            "{count:>9}  {:<12} from {}",
            escaped(reason),
            escaped(topic)
        )?;
    }
    Ok(())
}
