//! Counts the outcomes of the records of a batch. Each record has one outcome, which is counted once it is delivered.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::batch::{Batch, Screened};
use crate::decode::{Reason, Skip};
use crate::message::{About, Kind};
use crate::metrics::{
    AUDITED_LABELS, Metrics, SCREENS, SKIP_LOST, SKIP_OVERSIZED, SKIP_UNDELIVERABLE,
};
use crate::recent::{Anomaly, Recent};
use crate::verdict::Severity;

use super::restored::RestoredTally;

/// The outcomes of the records of a batch.
#[derive(Debug, Default)]
pub struct Tally {
    pub scored: usize,
    pub dead: Vec<Reason>,
    pub anomalies: Vec<Severity>,
    /// The number of audited anomalies that the screen would have passed to the scorer, and the number that it would
    /// have cleared.
    pub audited_anomalies: [u64; 2],
    /// The anomalies to show on the triage page.
    pub shown: Vec<Anomaly>,
    /// The published verdicts of traced records, ordered by record.
    pub published: Vec<Published>,
    /// The numbers of records that have nothing to score, by [`Skip`].
    pub skipped: [usize; Skip::ALL.len()],
    /// The number of times each part was left out of a message, by the part's name.
    pub omitted: BTreeMap<&'static str, u64>,
    /// The number of records about which nothing could be published.
    pub undeliverable: usize,
    /// The number of records in compressed batches that are too large to read. One dead letter stands for each batch.
    pub oversized: usize,
    /// The number of records that were not published because another member owns their partitions and judges them.
    pub lost: usize,
    pub restored: RestoredTally,
}

/// A published verdict of a traced record.
#[derive(Debug)]
pub struct Published {
    /// The index of the record in the batch.
    pub record: usize,
    pub severity: Option<Severity>,
}

/// The parts and records of a batch that could not be published. This is known only after the batch was sent.
#[derive(Debug, Default)]
pub struct Losses {
    pub omitted: BTreeMap<&'static str, u64>,
    undeliverable: Vec<About>,
}

impl Losses {
    /// Counts a record once, however many messages are about it.
    pub fn lose(&mut self, about: &About) {
        if !self.undeliverable.contains(about) {
            self.undeliverable.push(about.clone());
        }
    }
}

impl Tally {
    /// Corrects the counts by the records and parts that could not be published.
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
                // The record has another outcome: it is scored or a dead letter.
                Kind::Restored => {
                    self.restored.undeliverable += 1;
                    continue;
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

    /// Adds the outcomes to the metrics, and counts records without an outcome as unaccounted.
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
        let own = Skip::ALL.map(|skip| (skip.as_str(), self.skipped[skip as usize]));
        for (reason, records) in own.into_iter().chain([
            (SKIP_LOST, self.lost),
            (SKIP_UNDELIVERABLE, self.undeliverable),
            (SKIP_OVERSIZED, self.oversized),
        ]) {
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
        let nothing: usize = self.skipped.iter().sum();
        let skipped = nothing + self.oversized + self.lost + self.undeliverable;
        let accounted = self.scored + self.dead.len() + skipped;
        let unaccounted = batch.consumed() as i64 - accounted as i64;
        metrics.records_unaccounted.add(unaccounted);
        if self.lost == 0 {
            observe(batch, metrics);
        }
        self.restored.count(metrics);
        for anomaly in self.shown {
            recent.add(anomaly);
        }
    }
}

fn observe(batch: &Batch, metrics: &Metrics) {
    let mut looked_at = [[0; AUDITED_LABELS.len()]; SCREENS.len()];
    for screened in &batch.screened {
        let (cleared, audited) = match *screened {
            Screened::Cleared => (true, false),
            Screened::Passed { .. } => (false, false),
            Screened::Audited { cleared, .. } => (cleared, true),
        };
        looked_at[usize::from(cleared)][usize::from(audited)] += 1;
    }
    for (screen, counts) in SCREENS.into_iter().zip(looked_at) {
        for (audited, records) in AUDITED_LABELS.into_iter().zip(counts) {
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
