//! Prints the report of a backtest, as text for people or JSON for scripts.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kafka::history::Ended;

use super::tally::{Bin, Covers, High};
use super::{Run, Side};
use crate::cli::shared::threshold::segments;

/// Maximum number of features that the text report shows.
const FEATURES: usize = 5;
/// Maximum number of days that the text report shows. The JSON report has all.
const DAYS: usize = 31;
/// Length of the histogram's longest bar, in characters.
const BAR: usize = 40;
/// The shortest range for which alerts per day are reported, in days: one hour.
const SHORTEST: f64 = 1.0 / 24.0;

pub fn print(run: &Run, ended: Ended, notes: &[String], took: Duration, as_json: bool) {
    if as_json {
        println!("{}", to_json(run, ended, notes, took));
        return;
    }
    let covered = &run.covered;
    let early = if ended == Ended::Early {
        ", stopped early"
    } else {
        ""
    };
    let nothing = match covered.nothing {
        0 => String::new(),
        nothing => format!(", {nothing} deletions and empty lists skipped"),
    };
    println!(
        "{}: {} records in {:.1} s, {} tombstones skipped{nothing}{early}",
        run.topic,
        covered.records,
        took.as_secs_f64(),
        covered.tombstones
    );
    if let Some(covers) = run.covers {
        let Covers {
            first,
            last,
            strays,
        } = covers;
        let days = covers.days().unwrap_or_default();
        println!("from {} to {}: {}", time(first), time(last), span(days));
        if strays > 0 {
            println!(
                "  {strays} records have timestamps far outside this range and are not used to compute alerts per day"
            );
        }
    }
    side(run, &run.first);
    if let Some(second) = &run.second {
        side(run, second);
        comparison(run, second);
    }
}

fn side(run: &Run, side: &Side) {
    let tally = &side.tally;
    let rejected = tally.rejected.count();
    println!();
    println!(
        "{}: {} version {} ({}), flags a score above {:.4}{}",
        side.dir.display(),
        side.model.name,
        side.model.version,
        &side.model.sha256[..8],
        side.judge.threshold,
        segments(&side.judge)
    );
    let reasons = if rejected > 0 {
        format!(": {}", tally.rejected)
    } else {
        String::new()
    };
    println!(
        "  {} scored, {rejected} could not be scored{reasons}",
        tally.scores.len()
    );
    if tally.scores.is_empty() {
        return;
    }
    let per_day = alerts_per_day(run, side);
    println!(
        "  {} alerts, {}, {:.3}% of the scored records",
        tally.alerts,
        per_day.map_or(
            "the range is too short for a daily rate".into(),
            |n| format!("{n:.1} per day")
        ),
        100.0 * tally.alerts as f64 / tally.scores.len() as f64
    );
    let quantiles = tally.quantiles();
    let quantiles = quantiles.iter().map(|q| {
        let level = format!("{:.2}", q.level * 100.0);
        let level = level.trim_end_matches('0').trim_end_matches('.');
        format!("{level}% {:.2}", q.grade)
    });
    println!(
        "  quantiles of score / threshold: {}",
        quantiles.collect::<Vec<_>>().join(", ")
    );
    histogram(&tally.histogram());
    if tally.alerts > 0 {
        println!(
            "  why records are flagged: how often each feature was the first reason, and its mean share of the residual"
        );
        for feature in tally.features(FEATURES) {
            println!(
                "    {:<24} {:>7} {:>5.1}%",
                feature.feature,
                feature.first,
                100.0 * feature.share
            );
        }
    }
    if tally.days.len() > 1 {
        let left_out = tally.days.len().saturating_sub(DAYS);
        println!("  day           records   alerts");
        for (day, (records, alerts)) in tally.days.iter().skip(left_out) {
            println!("  {day}  {records:>9} {alerts:>8}");
        }
        if left_out > 0 {
            println!("  and {left_out} earlier days");
        }
    }
    for (grade, High { record, why, .. }) in tally.highest.iter() {
        println!("  {grade:>6.2}  {record}  {why}");
    }
}

/// Prints a histogram with logarithmic bars, so that the few flagged records stay visible.
fn histogram(bins: &[Bin]) {
    let length = |records: u64| (records as f64 + 1.0).log2();
    let longest = bins
        .iter()
        .map(|bin| length(bin.records))
        .fold(1.0, f64::max);
    for (i, bin) in bins.iter().enumerate() {
        let to = bins
            .get(i + 1)
            .map_or("up".into(), |next| format!("{:.2}", next.from));
        let bar = (length(bin.records) / longest * BAR as f64).ceil() as usize;
        let mark = if bin.from >= 1.0 { "!" } else { "=" };
        let line = format!(
            "    {:>4.2} to {to:>4} {:>9} {}",
            bin.from,
            bin.records,
            mark.repeat(bar)
        );
        println!("{}", line.trim_end());
    }
}

fn comparison(run: &Run, second: &Side) {
    let compared = run.comparison.compared();
    let (a, b) = (run.first.dir.display(), second.dir.display());
    println!();
    println!(
        "{} records judged by both, {} by one only",
        compared.records, compared.scored_by_one_only
    );
    println!("  {:>9} flagged by both", compared.flagged_by_both);
    println!("  {:>9} only by {a}", compared.only_by_bundle);
    println!("  {:>9} only by {b}", compared.only_by_against);
    println!("  {:>9} by neither", compared.by_neither);
    if let Some(spearman) = compared.spearman {
        println!("  rank correlation of the scores (Spearman): {spearman:.4}");
    }
    if !compared.most_different.is_empty() {
        println!("  largest differences: score / threshold by {a} and by {b}");
    }
    for pair in compared.most_different {
        let [first, second] = pair.grades;
        println!("  {first:>6.2} {second:>6.2}  {}-{}", run.topic, pair.place);
    }
}

fn to_json(run: &Run, ended: Ended, notes: &[String], took: Duration) -> Value {
    let covered = &run.covered;
    json!({
        "topic": run.topic,
        "complete": ended == Ended::Complete,
        "notes": notes,
        "records": covered.records,
        "skipped_tombstones": covered.tombstones,
        "skipped_without_data": covered.nothing,
        "oldest": run.covers.map(|covers| time(covers.first)),
        "youngest": run.covers.map(|covers| time(covers.last)),
        "days": run.covers.and_then(|covers| covers.days()),
        "records_of_other_times": run.covers.map_or(0, |covers| covers.strays),
        "seconds": took.as_secs_f64(),
        "bundle": side_to_json(run, &run.first),
        "against": run.second.as_ref().map(|second| side_to_json(run, second)),
        "comparison": run.second.as_ref().map(|_| run.comparison.compared()),
    })
}

fn side_to_json(run: &Run, side: &Side) -> Value {
    let tally = &side.tally;
    let days = tally.days.iter();
    let days: Vec<Value> = days
        .map(|(day, (records, alerts))| json!({"day": day.to_string(), "records": records, "alerts": alerts}))
        .collect();
    let highest = tally.highest.iter();
    let highest: Vec<Value> = highest
        .map(|(grade, High { record, score, why })| {
            json!({"record": record, "anomaly_score": score, "anomaly_grade": grade, "why": why})
        })
        .collect();
    json!({
        "dir": side.dir,
        "model": side.model,
        "threshold": side.judge.threshold,
        "scored": tally.scores.len(),
        "cannot_be_scored": tally.rejected.by_reason(),
        "reasons": tally.rejected.all(),
        "alerts": tally.alerts,
        "alerts_per_day": alerts_per_day(run, side),
        "alert_rate": tally.alerts as f64 / tally.scores.len().max(1) as f64,
        "quantiles": tally.quantiles(),
        "histogram": tally.histogram(),
        "features": tally.features(usize::MAX),
        "by_day": days,
        "highest": highest,
    })
}

fn alerts_per_day(run: &Run, side: &Side) -> Option<f64> {
    let days = run.covers?.days().filter(|days| *days >= SHORTEST)?;
    Some(side.tally.alerts as f64 / days)
}

fn span(days: f64) -> String {
    match days {
        days if days >= 2.0 => format!("{days:.1} days"),
        days if days >= 2.0 / 24.0 => format!("{:.1} hours", days * 24.0),
        days if days >= 2.0 / 24.0 / 60.0 => format!("{:.1} minutes", days * 24.0 * 60.0),
        days => format!("{:.1} seconds", days * 24.0 * 3600.0),
    }
}

/// Formats milliseconds since the epoch as RFC 3339.
fn time(timestamp_ms: i64) -> String {
    let time = Timestamp::from_millisecond(timestamp_ms);
    time.map_or_else(
        |_| format!("{timestamp_ms} ms"),
        |time| format!("{time:.0}"),
    )
}
