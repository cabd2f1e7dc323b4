//! The shipped alert rules, evaluated on the counters of the daemon during the rehearsal.
//!
//! Time is that of the real stream: a record stands for a day divided by the number of records per day.

use serde::Serialize;

use crate::metrics::{CLEARED, Metrics, SCREENS, SKIP_UNDELIVERABLE};

const SHIPPED: &str = include_str!("../../../deploy/prometheus/residuald.rules.yaml");
const MINUTE: f64 = 60.0;
const HOUR: f64 = 3600.0;
const DAY: f64 = 86_400.0;
/// Seconds above which a verdict is late.
const LATE: f64 = 30.0;

/// The counters at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Seconds of the real stream since the start.
    pub at: f64,
    consumed: f64,
    scored: f64,
    anomalies: f64,
    dead_letters: f64,
    undeliverable: f64,
    unaccounted: f64,
    drift: f64,
    audited: f64,
    audited_cleared: f64,
    delivered: f64,
    late: f64,
}

impl Snapshot {
    pub fn of(metrics: &Metrics, records_per_day: f64) -> Snapshot {
        let audited = |screen| {
            let counter = metrics
                .screen_audited_anomalies
                .with_label_values(&[screen]);
            counter.get() as f64
        };
        let (delivered, late) = metrics.end_to_end_above(LATE);
        let skipped = &metrics.records_skipped;
        Snapshot {
            at: metrics.finished() as f64 * DAY / records_per_day,
            consumed: metrics.records_consumed.get() as f64,
            scored: metrics.records_scored.get() as f64,
            anomalies: metrics.anomalies_total() as f64,
            dead_letters: metrics.dead_letters_total() as f64,
            undeliverable: skipped.with_label_values(&[SKIP_UNDELIVERABLE]).get() as f64,
            unaccounted: metrics.records_unaccounted.get() as f64,
            drift: metrics.score_drift_ratio.get(),
            audited: SCREENS.map(audited).iter().sum(),
            audited_cleared: audited(CLEARED),
            delivered: delivered as f64,
            late: late as f64,
        }
    }
}

/// The snapshots up to one moment.
struct Past<'s>(&'s [Snapshot]);

impl Past<'_> {
    fn now(&self) -> &Snapshot {
        &self.0[self.0.len() - 1]
    }

    /// Returns by how much a counter has grown within `window` seconds, or since the start if that is shorter.
    fn increase(&self, window: f64, counter: impl Fn(&Snapshot) -> f64) -> f64 {
        let from = self.now().at - window;
        let first = self.0.partition_point(|snapshot| snapshot.at < from);
        counter(self.now()) - self.0.get(first).map_or(0.0, counter)
    }

    fn ratio(
        &self,
        window: f64,
        part: impl Fn(&Snapshot) -> f64,
        whole: impl Fn(&Snapshot) -> f64,
    ) -> f64 {
        let whole = self.increase(window, whole);
        if whole > 0.0 {
            self.increase(window, part) / whole
        } else {
            0.0
        }
    }

    fn flagged(&self, window: f64) -> f64 {
        self.ratio(window, |s| s.anomalies, |s| s.scored)
    }

    fn dead(&self) -> f64 {
        self.ratio(15.0 * MINUTE, |s| s.dead_letters, |s| s.consumed)
    }
}

/// A rule that can be evaluated.
struct Rule {
    alert: &'static str,
    severity: &'static str,
    /// How long the condition must hold, in seconds.
    wait: f64,
    /// Gets the past and the usual share of flagged records.
    holds: fn(&Past<'_>, f64) -> bool,
    /// Parts of the shipped expression, for a test that both agree.
    #[cfg(test)]
    expression: &'static [&'static str],
}

macro_rules! rule {
    ($alert:literal, $severity:literal, $wait:expr, $holds:expr, $expression:expr) => {
        Rule {
            alert: $alert,
            severity: $severity,
            wait: $wait,
            holds: $holds,
            #[cfg(test)]
            expression: &$expression,
        }
    };
}

const RULES: [Rule; 9] = [
    rule!(
        "ResidualdAnomalyRateAboveItsBudget",
        "page",
        0.0,
        |past, usual| past.flagged(HOUR) > 5.0 * usual
            && past.flagged(5.0 * MINUTE) > 5.0 * usual
            && past.increase(HOUR, |s| s.anomalies) >= 20.0,
        [
            "ratio1h / residuald_anomalies:usual > 5",
            "ratio5m / residuald_anomalies:usual > 5",
            "[1h])) >= 20"
        ]
    ),
    rule!(
        "ResidualdAnomalyRateAboveItsBudget",
        "ticket",
        0.0,
        |past, usual| past.flagged(DAY) > 2.5 * usual
            && past.flagged(2.0 * HOUR) > 2.5 * usual
            && past.increase(DAY, |s| s.anomalies) >= 20.0,
        [
            "ratio1d / residuald_anomalies:usual > 2.5",
            "ratio2h / residuald_anomalies:usual > 2.5",
            "[1d])) >= 20"
        ]
    ),
    rule!(
        "ResidualdScoreDrift",
        "ticket",
        30.0 * MINUTE,
        |past, _| past.now().drift > 2.0,
        ["residuald_score_drift_ratio) > 2"]
    ),
    rule!(
        "ResidualdScreenMissesAnomalies",
        "ticket",
        0.0,
        |past, _| past.increase(DAY, |s| s.audited_cleared) > 2.0
            && past.ratio(DAY, |s| s.audited_cleared, |s| s.audited) > 0.01,
        ["[1d])) > 2", "[1d])) > 0.01"]
    ),
    rule!(
        "ResidualdRecordsUnaccounted",
        "page",
        MINUTE,
        |past, _| past.now().unaccounted != 0.0,
        ["residuald_records_unaccounted != 0"]
    ),
    rule!(
        "ResidualdOutcomesUndeliverable",
        "ticket",
        0.0,
        |past, _| past.increase(HOUR, |s| s.undeliverable) > 0.0,
        ["[1h])) > 0"]
    ),
    rule!(
        "ResidualdDeadLetters",
        "page",
        5.0 * MINUTE,
        |past, _| past.dead() > 0.25 && past.increase(15.0 * MINUTE, |s| s.dead_letters) >= 10.0,
        ["ratio15m > 0.25", "[15m])) >= 10"]
    ),
    rule!(
        "ResidualdDeadLetters",
        "ticket",
        15.0 * MINUTE,
        |past, _| past.dead() > 0.01 && past.increase(15.0 * MINUTE, |s| s.dead_letters) >= 10.0,
        ["ratio15m > 0.01", "[15m])) >= 10"]
    ),
    rule!(
        "ResidualdLatencyHigh",
        "ticket",
        15.0 * MINUTE,
        |past, _| past.ratio(15.0 * MINUTE, |s| s.late, |s| s.delivered) > 0.01,
        ["histogram_quantile(0.99", "[15m]))) > 30"]
    ),
];

/// Whether and when a rule would have fired.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluated {
    pub alert: &'static str,
    pub severity: &'static str,
    pub state: State,
    /// Seconds of the real stream until it fires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<f64>,
    /// The part of the stream in which it fires: `calm`, `sample` or `incident`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Silent,
    /// The condition held at the end, but not yet for long enough: it fires if the stream goes on like this.
    Pending,
    Firing,
}

/// Evaluates the rules. `usual`: the share of flagged records that the calibration expects, which stands for the usual share of a stream
/// with a past. `part`: the part of the stream at a time in seconds.
pub fn evaluate(
    snapshots: &[Snapshot],
    usual: f64,
    part: impl Fn(f64) -> Option<&'static str>,
) -> Vec<Evaluated> {
    let evaluated = |rule: &Rule| {
        let (state, at) = state_of(rule, snapshots, usual);
        let firing = at.filter(|_| state == State::Firing);
        Evaluated {
            alert: rule.alert,
            severity: rule.severity,
            state,
            at,
            part: firing.and_then(&part),
        }
    };
    RULES.iter().map(evaluated).collect()
}

fn state_of(rule: &Rule, snapshots: &[Snapshot], usual: f64) -> (State, Option<f64>) {
    let mut since = None;
    for end in 1..=snapshots.len() {
        let past = Past(&snapshots[..end]);
        if !(rule.holds)(&past, usual) {
            since = None;
            continue;
        }
        let at = past.now().at;
        let fires = *since.get_or_insert(at) + rule.wait;
        if fires <= at {
            return (State::Firing, Some(fires));
        }
    }
    match since {
        Some(since) => (State::Pending, Some(since + rule.wait)),
        None => (State::Silent, None),
    }
}

/// Returns the names of the shipped alerts that are not evaluated, in their order.
pub fn not_evaluated() -> Vec<&'static str> {
    let names = SHIPPED
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let mut left: Vec<&str> = names
        .filter(|name| !RULES.iter().any(|rule| rule.alert == *name))
        .collect();
    left.dedup();
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str) -> f64 {
        let minutes: f64 = text.strip_suffix('m').unwrap().parse().unwrap();
        minutes * MINUTE
    }

    #[test]
    fn the_rules_are_those_that_are_shipped() {
        let blocks: Vec<&str> = SHIPPED.split("- alert: ").skip(1).collect();
        for rule in &RULES {
            let of_rule = |block: &&&str| {
                block.lines().next() == Some(rule.alert)
                    && block.contains(&format!("severity: {}", rule.severity))
            };
            let block = blocks.iter().find(of_rule).expect(rule.alert);
            for part in rule.expression {
                assert!(block.contains(part), "{}: {part}", rule.alert);
            }
            let wait = block.lines().find_map(|l| l.trim().strip_prefix("for: "));
            assert_eq!(wait.map_or(0.0, seconds), rule.wait, "{}", rule.alert);
        }
        let alerts: std::collections::BTreeSet<&str> =
            blocks.iter().filter_map(|b| b.lines().next()).collect();
        let evaluated: std::collections::BTreeSet<&str> = RULES.iter().map(|r| r.alert).collect();
        assert_eq!(not_evaluated().len() + evaluated.len(), alerts.len());
        assert!(not_evaluated().contains(&"ResidualdDown"));
    }

    /// One snapshot a minute of a stream of 1000 records a minute.
    fn stream(anomalies_a_minute: &[f64]) -> Vec<Snapshot> {
        let mut now = Snapshot::default();
        let mut all = vec![now.clone()];
        for anomalies in anomalies_a_minute {
            now.at += MINUTE;
            now.scored += 1000.0;
            now.consumed += 1000.0;
            now.anomalies += anomalies;
            all.push(now.clone());
        }
        all
    }

    fn page(snapshots: &[Snapshot]) -> (State, Option<f64>) {
        state_of(&RULES[0], snapshots, 0.001)
    }

    #[test]
    fn the_page_needs_five_times_the_usual_and_twenty_anomalies() {
        assert_eq!(page(&stream(&[1.0; 60])), (State::Silent, None));
        assert_eq!(page(&stream(&[6.0, 6.0, 6.0])), (State::Silent, None));
        let outbreak = [&[1.0; 10][..], &[50.0; 5]].concat();
        assert_eq!(
            page(&stream(&outbreak)),
            (State::Firing, Some(11.0 * MINUTE))
        );
    }

    #[test]
    fn a_condition_that_has_not_held_for_long_enough_is_pending() {
        let mut snapshots = stream(&[0.0; 10]);
        snapshots[4].drift = 3.0;
        assert_eq!(state_of(&RULES[2], &snapshots, 0.1), (State::Silent, None));
        for snapshot in &mut snapshots[6..] {
            snapshot.drift = 3.0;
        }
        let fires = Some(36.0 * MINUTE);
        assert_eq!(
            state_of(&RULES[2], &snapshots, 0.1),
            (State::Pending, fires)
        );
    }
}
