//! Prints the report of a rehearsal as text.

use super::report::{KindReport, Report, SampleReport};
use super::rules::{Evaluated, State};
use crate::evaluation::share::Share;

/// Maximum number of features that the text shows.
const FEATURES: usize = 5;

pub fn print(report: &Report) {
    let records = &report.records;
    println!(
        "{} version {} ({}), flags a score above {:.4}, seed {}",
        report.model.name,
        report.model.version,
        &report.model.sha256[..8.min(report.model.sha256.len())],
        report.threshold,
        report.seed
    );
    println!(
        "{} records at {} per second: {} scored, {} refused, {} without an outcome; {} normal, {} anomalies, {} of --sample",
        records.sent,
        records.per_second,
        records.scored,
        records.refused,
        records.unanswered,
        records.normal,
        records.anomalies,
        records.sample
    );
    println!();
    alerts(report);
    println!();
    println!(
        "recall {}, precision {}{}",
        share(&report.recall),
        share(&report.precision),
        report
            .precision_at_one_in_1000
            .map_or(String::new(), |p| format!(
                "; {:.1} % if one record in 1,000 is an anomaly",
                100.0 * p
            ))
    );
    report.kinds.iter().for_each(kind);
    if let Some(latency) = &report.latency {
        println!();
        println!(
            "latency from sending a record to reading its verdict: p50 {:.1} ms, p99 {:.1} ms",
            1000.0 * latency.p50_seconds,
            1000.0 * latency.p99_seconds
        );
    }
    println!();
    rules(report);
    if let Some(sample) = &report.sample {
        println!();
        of_sample(sample);
    }
    for note in &report.notes {
        println!("note: {note}");
    }
    println!();
    match report.findings.is_empty() {
        true if !report.complete => println!("not complete: nothing is wrong so far"),
        true => println!("nothing is wrong as far as this rehearsal can tell"),
        false => println!("wrong:"),
    }
    for finding in &report.findings {
        println!("  {}: {}", finding.kind, finding.message);
    }
}

fn alerts(report: &Report) {
    let alerts = &report.alerts;
    println!(
        "alerts: {:.1} false alarms a day at {} records a day (95 % interval {:.1} to {:.1}), the budget is {:.1}: {}",
        alerts.per_day,
        alerts.budget.records_per_day,
        alerts.per_day_low,
        alerts.per_day_high,
        alerts.budget.alerts_per_day,
        alerts.outcome()
    );
    println!(
        "  flagged of the bundle's own normal records {}, the calibration expects {:.3} %; of drawn ones {}",
        share(&alerts.rate),
        100.0 * alerts.expected_rate,
        share(&alerts.drawn_rate)
    );
}

fn kind(kind: &KindReport) {
    let lowest = match kind.strengths.first().and_then(|s| s.strength) {
        None => String::new(),
        Some(_) => match kind.lowest_found {
            Some(strength) => format!(", found from strength {strength}"),
            None => ", not found at any of the strengths".to_owned(),
        },
    };
    println!(
        "  {:<9} recall {}, precision {}{lowest}",
        kind.kind,
        share(&kind.recall),
        share(&kind.precision)
    );
    for strength in &kind.strengths {
        if let Some(value) = strength.strength {
            println!("    strength {value:<5} {}", share(&strength.recall));
        }
    }
}

fn rules(report: &Report) {
    match &report.rules {
        None => println!("alert rules: not evaluated, because the daemon runs elsewhere"),
        Some(rules) => {
            println!(
                "alert rules, in the time of the real stream, with the share that the calibration expects as the usual one:"
            );
            for rule in rules {
                println!("  {:<36} {:<6} {}", rule.alert, rule.severity, state(rule));
            }
            println!(
                "  not evaluated, because they need Prometheus, replicas or your brokers: {}",
                report.rules_not_evaluated.join(", ")
            );
        }
    }
}

/// Describes whether and when a rule fires.
pub fn state(rule: &Evaluated) -> String {
    let at = rule.at.unwrap_or_default();
    match rule.state {
        State::Silent => "silent".to_owned(),
        State::Firing => format!(
            "fires after {}, in the part {}",
            time(at),
            rule.part.unwrap_or_default()
        ),
        State::Pending => format!("would fire after {} if it went on like this", time(at)),
    }
}

fn time(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{hours}:{minutes:02}:{seconds:02} h")
}

fn of_sample(sample: &SampleReport) {
    let reasons = match sample.refused.count {
        0 => String::new(),
        _ => format!(": {}", sample.reasons),
    };
    println!(
        "real records: flagged {}, refused {}{reasons}",
        share(&sample.alerts),
        share(&sample.refused)
    );
    println!(
        "  the features that differ most from training (distance from 0 to 1, share of the residual, usual share):"
    );
    for feature in sample.features.iter().take(FEATURES) {
        println!(
            "    {:<28} {:.2} {:>5.1} % {:>5.1} %{}",
            feature.feature,
            feature.distance,
            100.0 * feature.residual,
            100.0 * feature.usual_residual,
            feature
                .problem
                .as_ref()
                .map_or(String::new(), |problem| format!("  {problem}"))
        );
    }
}

/// Formats a share with its interval.
pub fn share(share: &Share) -> String {
    match share.share {
        None => "- (no records)".to_owned(),
        Some(value) => format!(
            "{:.2} % ({} of {}, {:.2} to {:.2})",
            100.0 * value,
            share.count,
            share.of,
            100.0 * share.low,
            100.0 * share.high
        ),
    }
}
