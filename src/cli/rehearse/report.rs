//! What the rehearsal has shown: alerts, recall, latency, alert rules, and everything that is wrong.

use serde::Serialize;

use super::rules::{self, Evaluated, Snapshot};
use super::sample::FeatureShift;
use super::stream::{About, Part, Stream};
use super::verdicts::{Found, Outcome, at};
use crate::cli::shared::refusals::Refusals;
use crate::config::default_rate;
use crate::evaluation::share::Share;
use crate::message::ModelId;
use crate::synthetic::anomalies::Kind;
use crate::verdict::{Judge, ThresholdRule};

const SECONDS_PER_DAY: f64 = 86_400.0;
/// A strength is found if at least this share of its anomalies is flagged.
const HALF: f64 = 0.5;
/// Share of anomalies for which the precision in production is told.
const RARE: f64 = 0.001;
/// Share of refused records above which a part is at fault, as in the alert rule ResidualdDeadLetters.
const REFUSED: f64 = 0.01;
/// An alert rate that is this many times the expected one is at fault, as in the alert rule ResidualdAnomalyRateAboveItsBudget.
const TIMES_EXPECTED: f64 = 5.0;
/// A recall below this is hardly any.
const HARDLY_ANY: f64 = 0.02;
/// Anomalies of at least this strength are plain to see.
const PLAIN: f32 = 1.0;

/// False alarms that are allowed a day, at a number of records a day.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Budget {
    pub alerts_per_day: f64,
    pub records_per_day: f64,
}

/// What the report is made of.
pub struct Input<'a> {
    pub stream: &'a Stream,
    pub found: &'a Found,
    pub snapshots: &'a [Snapshot],
    /// `None` for a daemon that runs elsewhere.
    pub evaluates_rules: bool,
    pub judge: &'a Judge,
    pub rule: ThresholdRule,
    pub default_threshold: f32,
    pub default_rate: f64,
    pub budget: Budget,
    pub sent: u64,
    pub rate: f64,
    pub seed: u64,
    pub model: ModelId,
    pub shifts: Vec<FeatureShift>,
    pub notes: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether every record was sent and has an outcome.
    pub complete: bool,
    /// Whether it is complete and nothing is wrong.
    pub passed: bool,
    pub findings: Vec<Finding>,
    pub notes: Vec<String>,
    pub model: ModelId,
    pub seed: u64,
    pub records: Records,
    pub threshold: f32,
    pub alerts: Alerts,
    pub recall: Share,
    pub precision: Share,
    /// Precision if one record in a thousand is an anomaly. `None` if nothing would be flagged.
    pub precision_at_one_in_1000: Option<f64>,
    pub kinds: Vec<KindReport>,
    pub latency: Option<Latency>,
    /// `None` if the daemon runs elsewhere.
    pub rules: Option<Vec<Evaluated>>,
    pub rules_not_evaluated: Vec<&'static str>,
    pub sample: Option<SampleReport>,
}

/// Something that is wrong.
#[derive(Debug, Serialize)]
pub struct Finding {
    pub kind: &'static str,
    pub message: String,
}

#[derive(Debug, Serialize)]
pub struct Records {
    pub planned: u64,
    pub sent: u64,
    pub scored: u64,
    pub refused: u64,
    /// Sent records of which nothing was published.
    pub unanswered: u64,
    pub normal: u64,
    pub anomalies: u64,
    pub sample: u64,
    pub per_second: f64,
}

#[derive(Debug, Serialize)]
pub struct Alerts {
    /// False alarms: the normal records that the bundle keeps and that were flagged.
    pub rate: Share,
    /// The same of drawn normal records, which are a little more ordinary than real ones.
    pub drawn_rate: Share,
    /// The share that the calibration expects.
    pub expected_rate: f64,
    pub per_day: f64,
    /// Ends of the 95 % interval.
    pub per_day_low: f64,
    pub per_day_high: f64,
    pub budget: Budget,
    pub missed: bool,
}

impl Alerts {
    /// Describes whether the budget is kept.
    pub fn outcome(&self) -> &'static str {
        match self.missed {
            true => "missed",
            false if self.per_day_high <= self.budget.alerts_per_day => "kept",
            false => "not missed as far as so few records can tell",
        }
    }
}

#[derive(Debug, Serialize)]
pub struct KindReport {
    pub kind: &'static str,
    pub recall: Share,
    /// If it were the only kind in the stream.
    pub precision: Share,
    /// The lowest strength of which at least half is found, as of all greater ones.
    pub lowest_found: Option<f32>,
    pub strengths: Vec<StrengthReport>,
}

#[derive(Debug, Serialize)]
pub struct StrengthReport {
    /// `None` if the kind has none.
    pub strength: Option<f32>,
    pub recall: Share,
}

/// Time from sending a record to reading its verdict.
#[derive(Debug, Serialize)]
pub struct Latency {
    pub p50_seconds: f32,
    pub p99_seconds: f32,
}

#[derive(Debug, Serialize)]
pub struct SampleReport {
    pub alerts: Share,
    pub refused: Share,
    pub reasons: String,
    /// The features with the greatest distance first.
    pub features: Vec<FeatureShift>,
}

/// One record with its outcome.
struct Judged {
    about: About,
    score: f32,
    flagged: bool,
}

pub fn report(input: Input<'_>) -> Report {
    let pairs = || input.stream.about.iter().zip(&input.found.outcomes);
    let judged: Vec<Judged> = pairs()
        .filter_map(|(about, outcome)| match *outcome {
            Outcome::Scored { score, flagged, .. } => Some(Judged {
                about: *about,
                score,
                flagged,
            }),
            _ => None,
        })
        .collect();
    let refused = |part: Part| {
        let refused = at(&input.found.refusals, part).count();
        let scored = judged.iter().filter(|j| j.about.part == part).count() as u64;
        Share::new(refused, refused + scored)
    };
    let scored = judged.len() as u64;
    let all_refused = input
        .found
        .refusals
        .iter()
        .map(Refusals::count)
        .sum::<u64>();
    let of = |wanted: fn(&About) -> bool| {
        let planned = input.stream.about.iter().filter(|about| wanted(about));
        planned.count() as u64
    };
    let records = Records {
        planned: input.stream.about.len() as u64,
        sent: input.sent,
        scored,
        refused: all_refused,
        unanswered: input.sent.saturating_sub(scored + all_refused),
        normal: of(|about| about.part != Part::Sample && about.anomaly.is_none()),
        anomalies: of(|about| about.anomaly.is_some()),
        sample: of(|about| about.part == Part::Sample),
        per_second: input.rate,
    };
    let alerts = alerts(&judged, input.judge.expected_anomaly_ratio(), input.budget);
    // As many false alarms as real normal records would give.
    let normal = alerts.drawn_rate.of as f64;
    let false_alarms = (alerts.rate.share.unwrap_or_default() * normal).round() as u64;
    let anomalies: Vec<&Judged> = judged
        .iter()
        .filter(|j| j.about.anomaly.is_some())
        .collect();
    let recall = flagged(&anomalies);
    let precision = Share::new(recall.count, recall.count + false_alarms);
    let sample = (records.sample > 0).then(|| {
        let judged = judged.iter().filter(|j| j.about.part == Part::Sample);
        SampleReport {
            alerts: flagged(&judged.collect::<Vec<_>>()),
            refused: refused(Part::Sample),
            reasons: at(&input.found.refusals, Part::Sample).to_string(),
            features: input.shifts.clone(),
        }
    });
    let mut findings = Vec::new();
    findings.extend(unanswered(&records));
    findings.extend(budget_missed(&alerts));
    findings.extend(blind(&anomalies, &input));
    findings.extend(refused_finding(refused(Part::Calm), &input));
    findings.extend(sample.iter().flat_map(|sample| of_sample(sample, &alerts)));
    findings.extend(other_model(&input));
    let part = |seconds: f64| {
        let record = (seconds * input.budget.records_per_day / SECONDS_PER_DAY) as usize;
        let about = &input.stream.about;
        Some(about.get(record.min(about.len() - 1))?.part.as_str())
    };
    let rules = input
        .evaluates_rules
        .then(|| rules::evaluate(input.snapshots, alerts.expected_rate, part));
    let complete = records.sent == records.planned && records.unanswered == 0;
    Report {
        complete,
        passed: complete && findings.is_empty(),
        notes: input.notes,
        model: input.model,
        seed: input.seed,
        threshold: input.judge.threshold,
        precision_at_one_in_1000: rare_precision(recall, alerts.rate),
        kinds: kinds(&anomalies, false_alarms),
        latency: latency(&input.found.outcomes),
        rules,
        rules_not_evaluated: rules::not_evaluated(),
        findings,
        records,
        alerts,
        recall,
        precision,
        sample,
    }
}

fn flagged(judged: &[&Judged]) -> Share {
    let flagged = judged.iter().filter(|j| j.flagged).count();
    Share::new(flagged as u64, judged.len() as u64)
}

fn alerts(judged: &[Judged], expected_rate: f64, budget: Budget) -> Alerts {
    let normal = |part: Part| {
        let is_normal = |j: &&Judged| j.about.part == part && j.about.anomaly.is_none();
        flagged(&judged.iter().filter(is_normal).collect::<Vec<_>>())
    };
    let rate = normal(Part::Calm);
    let per_day = |rate: f64| rate * budget.records_per_day;
    Alerts {
        rate,
        drawn_rate: normal(Part::Incident),
        expected_rate,
        per_day: per_day(rate.share.unwrap_or_default()),
        per_day_low: per_day(rate.low),
        per_day_high: per_day(rate.high),
        budget,
        missed: rate.share.is_some() && per_day(rate.low) > budget.alerts_per_day,
    }
}

fn kinds(anomalies: &[&Judged], false_alarms: u64) -> Vec<KindReport> {
    let mut kinds: Vec<Kind> = anomalies
        .iter()
        .filter_map(|j| Some(j.about.anomaly?.kind))
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    let of_kind = |kind: Kind| {
        let own = anomalies.iter().copied();
        let own = own.filter(|j| j.about.anomaly.is_some_and(|a| a.kind == kind));
        let own: Vec<&Judged> = own.collect();
        let recall = flagged(&own);
        let strength = |j: &Judged| j.about.anomaly.and_then(|a| a.strength);
        let mut strengths: Vec<Option<f32>> = own.iter().map(|j| strength(j)).collect();
        strengths.sort_by(|a, b| a.unwrap_or_default().total_cmp(&b.unwrap_or_default()));
        strengths.dedup();
        let strengths: Vec<StrengthReport> = strengths
            .into_iter()
            .map(|wanted| {
                let own = own.iter().copied().filter(|j| strength(j) == wanted);
                StrengthReport {
                    strength: wanted,
                    recall: flagged(&own.collect::<Vec<_>>()),
                }
            })
            .collect();
        let is_found = |s: &&StrengthReport| s.recall.share.is_some_and(|share| share >= HALF);
        let found = strengths.iter().rev().take_while(is_found).last();
        KindReport {
            kind: kind.as_str(),
            recall,
            precision: Share::new(recall.count, recall.count + false_alarms),
            lowest_found: found.and_then(|s| s.strength),
            strengths,
        }
    };
    kinds.into_iter().map(of_kind).collect()
}

fn rare_precision(recall: Share, false_alarms: Share) -> Option<f64> {
    let right = recall.share? * RARE;
    let wrong = false_alarms.share? * (1.0 - RARE);
    (right + wrong > 0.0).then(|| right / (right + wrong))
}

fn latency(outcomes: &[Outcome]) -> Option<Latency> {
    let latencies = outcomes.iter().filter_map(|outcome| match outcome {
        Outcome::Scored { latency, .. } => Some(*latency),
        _ => None,
    });
    let mut sorted: Vec<f32> = latencies.collect();
    sorted.sort_unstable_by(f32::total_cmp);
    // Nearest rank.
    let at = |level: f64| {
        let rank = (level * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.max(1) - 1).copied()
    };
    Some(Latency {
        p50_seconds: at(0.5)?,
        p99_seconds: at(0.99)?,
    })
}

fn finding(kind: &'static str, message: String) -> Option<Finding> {
    Some(Finding { kind, message })
}

fn unanswered(records: &Records) -> Option<Finding> {
    if records.unanswered == 0 || records.sent < records.planned {
        return None;
    }
    finding(
        "unanswered",
        format!(
            "of {} of {} records, neither a verdict nor a dead letter arrived: read the daemon's log",
            records.unanswered, records.sent
        ),
    )
}

fn budget_missed(alerts: &Alerts) -> Option<Finding> {
    if !alerts.missed {
        return None;
    }
    finding(
        "budget_missed",
        format!(
            "{:.1} false alarms a day (95 % interval {:.1} to {:.1}) exceed the budget of {:.1}: raise the threshold (a lower threshold.false_alarm_rate), or calibrate with recent records",
            alerts.per_day, alerts.per_day_low, alerts.per_day_high, alerts.budget.alerts_per_day
        ),
    )
}

/// The threshold misses most of what the calibration's own threshold finds, or nothing is found at all.
fn blind(anomalies: &[&Judged], input: &Input<'_>) -> Option<Finding> {
    let is_plain = |j: &&&Judged| {
        let anomaly = j.about.anomaly;
        anomaly.is_some_and(|a| a.strength.is_none_or(|strength| strength >= PLAIN))
    };
    let plain: Vec<&Judged> = anomalies.iter().filter(is_plain).copied().collect();
    let recall = flagged(&plain);
    // The scores are the same, so the records that both thresholds find can be counted in pairs.
    let could = plain.iter().filter(|j| j.score > input.default_threshold);
    let could: Vec<&Judged> = could.copied().collect();
    let kept = flagged(&could);
    if kept.of > 0 && kept.high < HALF {
        return finding(
            "blind",
            format!(
                "the threshold {:.4} is blind: it finds {} of the {} plain anomalies that {:.4}, the threshold for a false-alarm rate of {}, would find: {}",
                input.judge.threshold,
                kept.count,
                kept.of,
                input.default_threshold,
                input.default_rate,
                match input.rule {
                    ThresholdRule::Score(_) =>
                        "lower threshold.score, or set threshold.false_alarm_rate in its place",
                    _ => "raise threshold.false_alarm_rate",
                }
            ),
        );
    }
    if recall.of > 0 && recall.high < HARDLY_ANY {
        return finding(
            "blind",
            format!(
                "the model is blind: {} of {} plain anomalies are found: train with more records or another recipe",
                recall.count, recall.of
            ),
        );
    }
    None
}

fn refused_finding(refused: Share, input: &Input<'_>) -> Option<Finding> {
    if refused.of == 0 || refused.low <= REFUSED {
        return None;
    }
    finding(
        "refused",
        format!(
            "{} of {} records of the bundle itself were refused: {}",
            refused.count,
            refused.of,
            at(&input.found.refusals, Part::Calm)
        ),
    )
}

fn of_sample(sample: &SampleReport, alerts: &Alerts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if sample.refused.of > 0 && sample.refused.low > REFUSED {
        findings.extend(finding(
            "sample_refused",
            format!(
                "{} of {} real records were refused: {}",
                sample.refused.count, sample.refused.of, sample.reasons
            ),
        ));
    }
    let usual = alerts.expected_rate;
    if sample.alerts.of > 0 && sample.alerts.low > TIMES_EXPECTED * usual {
        let residual = sample.features.iter().max_by(|a, b| {
            let above = |f: &FeatureShift| f.residual - f.usual_residual;
            above(a).total_cmp(&above(b))
        });
        let first = residual.map_or(String::new(), |f| {
            format!(
                "; the feature `{}` makes up {:.0} % of their residual, usually {:.0} %",
                f.feature,
                100.0 * f.residual,
                100.0 * f.usual_residual
            )
        });
        findings.extend(finding(
            "sample_flagged",
            format!(
                "{:.2} % of the real records are flagged, where {:.2} % are expected{first}",
                100.0 * sample.alerts.share.unwrap_or_default(),
                100.0 * usual
            ),
        ));
    }
    for feature in &sample.features {
        let problem = feature.problem.as_ref();
        findings.extend(problem.and_then(|problem| {
            finding(
                "feature",
                format!(
                    "the feature `{}` {problem}: look at its path and its unit",
                    feature.feature
                ),
            )
        }));
    }
    findings
}

fn other_model(input: &Input<'_>) -> Option<Finding> {
    let judged_by = input.found.sha256.as_ref()?;
    if *judged_by == input.model.sha256 {
        return None;
    }
    finding(
        "other_model",
        format!(
            "the daemon judges with another bundle (sha256 {judged_by}) than the records are drawn from ({}): reload it, or name its bundle in model.bundle",
            input.model.sha256
        ),
    )
}

/// Returns the budget: the number of alerts a day that is given, or what the settings allow.
pub fn budget(
    given: Option<f64>,
    records_per_day: Option<f64>,
    rate: f64,
    judge: &Judge,
    rule: ThresholdRule,
) -> Budget {
    let of_rule = match rule {
        ThresholdRule::AlertsPerDay {
            records_per_day, ..
        } => Some(records_per_day),
        _ => None,
    };
    let records_per_day = records_per_day
        .or(of_rule)
        .unwrap_or(rate * SECONDS_PER_DAY);
    let share = match rule {
        ThresholdRule::FalseAlarmRate(rate) => rate,
        ThresholdRule::AlertsPerDay {
            alerts,
            records_per_day,
        } => alerts / records_per_day,
        ThresholdRule::Quantile(level) => 1.0 - level,
        ThresholdRule::Score(_) => judge.expected_anomaly_ratio(),
    };
    Budget {
        alerts_per_day: given.unwrap_or(share * records_per_day),
        records_per_day,
    }
}

/// Returns the rate and the threshold that apply if nothing is configured.
pub fn usual_threshold(calibration: &crate::bundle::Calibration) -> (f64, f32) {
    let rate = default_rate(calibration);
    let threshold = calibration.all.threshold_at(rate);
    (
        rate,
        threshold.unwrap_or_else(|_| calibration.all.largest()),
    )
}
