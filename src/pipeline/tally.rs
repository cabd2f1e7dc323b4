//! The books of a batch: every record of it has one outcome, counted when that is delivered.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::batch::{Batch, Screened};
use crate::decode::Reason;
use crate::message::{About, Kind};
use crate::metrics::{
    AUDITED, Metrics, SCREENS, SKIP_LOST, SKIP_OVERSIZED, SKIP_TOMBSTONE, SKIP_UNDELIVERABLE,
};
use crate::recent::{Anomaly, Recent};
use crate::verdict::Severity;

/// What became of the records of a batch.
#[derive(Debug, Default)]
pub struct Tally {
    pub scored: usize,
    pub dead: Vec<Reason>,
    pub anomalies: Vec<Severity>,
    /// Of the audited ones how many the screen would have passed, and how many it would have cleared.
    pub audited_anomalies: [u64; 2],
    /// The same, for the triage page.
    pub shown: Vec<Anomaly>,
    /// Verdicts that went out in a trace, by their records' places.
    pub published: Vec<Published>,
    pub tombstones: usize,
    /// What messages lack.
    pub omitted: BTreeMap<&'static str, u64>,
    /// Nothing could be published about them.
    pub undeliverable: usize,
    /// In a batch that was too large to be read; one dead letter stands for it.
    pub oversized: usize,
    /// Not published: the partitions belong to another, who judges these records.
    pub lost: usize,
}

/// A verdict that went out with its trace.
#[derive(Debug)]
pub struct Published {
    /// Its record's place in the batch.
    pub record: usize,
    pub severity: Option<Severity>,
}

/// What could not be published of a batch, known once it is on its way.
#[derive(Debug, Default)]
pub struct Losses {
    pub omitted: BTreeMap<&'static str, u64>,
    undeliverable: Vec<About>,
}

impl Losses {
    /// A record counts once, however many messages there were about it.
    pub fn lose(&mut self, about: &About) {
        if !self.undeliverable.contains(about) {
            self.undeliverable.push(about.clone());
        }
    }
}

impl Tally {
    /// Takes away what was counted and is not published.
    pub fn lose(&mut self, losses: Losses) {
        for (part, messages) in losses.omitted {
            *self.omitted.entry(part).or_default() += messages;
        }
        for about in losses.undeliverable {
            match about.kind {
                Kind::Verdict => self.scored -= 1,
                Kind::DeadLetter(reason) => {
                    let at = self.dead.iter().position(|dead| *dead == reason);
                    self.dead
                        .swap_remove(at.expect("a dead letter is counted when it is made"));
                }
                Kind::Map | Kind::Record => continue,
            }
            self.undeliverable += 1;
        }
    }

    pub fn lost(batch: &Batch) -> Tally {
        Tally {
            lost: batch.consumed(),
            ..Tally::default()
        }
    }

    /// Enters it into the metrics, and with it whatever of the batch has no outcome.
    pub fn count(self, batch: &Batch, metrics: &Metrics, recent: &Recent) {
        metrics.records_in_flight.sub(batch.consumed() as i64);
        metrics.records_scored.inc_by(self.scored as u64);
        for reason in &self.dead {
            let reason = [reason.as_str()];
            metrics.dead_letters.with_label_values(&reason).inc();
        }
        for (part, messages) in &self.omitted {
            let omitted = metrics.omitted_parts.with_label_values(&[*part]);
            omitted.inc_by(*messages);
        }
        for (reason, records) in [
            (SKIP_TOMBSTONE, self.tombstones),
            (SKIP_LOST, self.lost),
            (SKIP_UNDELIVERABLE, self.undeliverable),
            (SKIP_OVERSIZED, self.oversized),
        ] {
            let skipped = metrics.records_skipped.with_label_values(&[reason]);
            skipped.inc_by(records as u64);
        }
        for severity in &self.anomalies {
            let severity = [severity.as_str()];
            metrics.anomalies.with_label_values(&severity).inc();
        }
        for (screen, anomalies) in SCREENS.into_iter().zip(self.audited_anomalies) {
            let audited = metrics
                .screen_audited_anomalies
                .with_label_values(&[screen]);
            audited.inc_by(anomalies);
        }
        let skipped = self.tombstones + self.oversized + self.lost + self.undeliverable;
        let accounted = self.scored + self.dead.len() + skipped;
        let unaccounted = batch.consumed() as i64 - accounted as i64;
        metrics.records_unaccounted.add(unaccounted);
        if self.lost == 0 {
            observe(batch, metrics);
        }
        for anomaly in self.shown {
            recent.add(anomaly);
        }
    }
}

fn observe(batch: &Batch, metrics: &Metrics) {
    let mut looked_at = [[0; AUDITED.len()]; SCREENS.len()];
    for screened in &batch.screened {
        let (cleared, audited) = match *screened {
            Screened::Cleared => (true, false),
            Screened::Passed { .. } => (false, false),
            Screened::Audited { cleared, .. } => (cleared, true),
        };
        looked_at[usize::from(cleared)][usize::from(audited)] += 1;
    }
    for (screen, counts) in SCREENS.into_iter().zip(looked_at) {
        for (audited, records) in AUDITED.into_iter().zip(counts) {
            let screened = metrics.screen_records.with_label_values(&[screen, audited]);
            screened.inc_by(records);
        }
    }
    let scores = metrics.score.local();
    for score in batch.fair_scores() {
        scores.observe(f64::from(score));
    }
    let now_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64);
    let latency = metrics.end_to_end_seconds.local();
    for timestamp in batch.records().filter_map(|record| record.timestamp_ms) {
        latency.observe((now_ms - timestamp).max(0) as f64 / 1e3);
    }
}
