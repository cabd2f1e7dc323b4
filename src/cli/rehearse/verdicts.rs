//! Reads what the daemon publishes about the records of the rehearsal.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::stream::{About, Part};
use crate::cli::shared::refusals::Refusals;
use crate::dead_letter::FailureHeaders;
use crate::decode::Reason;
use crate::kafka::follow::Follower;
use crate::record::Record;

const POLL: Duration = Duration::from_millis(50);

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    Unknown,
    Scored {
        score: f32,
        flagged: bool,
        /// Seconds from sending the record to reading its verdict.
        latency: f32,
    },
    Refused,
}

/// The shares of the residual in one part of the stream, over its normal records.
#[derive(Debug, Default, Clone)]
pub struct Residuals {
    records: u64,
    sums: BTreeMap<String, f64>,
}

impl Residuals {
    /// Returns the mean share of the residual that a feature has.
    pub fn mean(&self, feature: &str) -> f64 {
        let sum = self.sums.get(feature).copied().unwrap_or_default();
        sum / self.records.max(1) as f64
    }
}

#[derive(Default)]
pub struct Found {
    pub outcomes: Vec<Outcome>,
    /// By part of the stream; [`at`] finds one.
    pub residuals: [Residuals; 3],
    pub refusals: [Refusals; 3],
    /// The hash of the bundle that judged, from the first verdict.
    pub sha256: Option<String>,
}

/// Collects outcomes.
pub struct Verdicts<'a> {
    follower: Follower,
    /// The keys of records are this text and their number.
    prefix: &'a str,
    about: &'a [About],
    /// Microseconds from `started` to the sending of each record.
    sent: &'a [AtomicU64],
    started: Instant,
    found: Mutex<Found>,
    received: AtomicU64,
}

#[derive(Deserialize)]
struct Verdict {
    anomaly_score: f32,
    severity: Option<String>,
    #[serde(default)]
    relevant_attribution: Vec<Attribution>,
    model: Model,
}

#[derive(Deserialize)]
struct Attribution {
    feature: String,
    share: f64,
}

#[derive(Deserialize)]
struct Model {
    sha256: String,
}

impl<'a> Verdicts<'a> {
    pub fn new(
        follower: Follower,
        prefix: &'a str,
        about: &'a [About],
        sent: &'a [AtomicU64],
        started: Instant,
    ) -> Verdicts<'a> {
        let found = Found {
            outcomes: vec![Outcome::Unknown; about.len()],
            ..Found::default()
        };
        Verdicts {
            follower,
            prefix,
            about,
            sent,
            started,
            found: Mutex::new(found),
            received: AtomicU64::new(0),
        }
    }

    /// Returns the number of records whose outcome is known.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Reads until `done` is set.
    pub fn read(&self, done: &AtomicBool) {
        while !done.load(Ordering::Relaxed) {
            self.follower.poll(POLL, |record| self.note(record));
        }
    }

    pub fn into_found(self) -> Found {
        self.found
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an outcome. Records of others, and a second outcome of the same record, do not count.
    fn note(&self, record: &Record<'_>) {
        let key = record.key.and_then(|key| std::str::from_utf8(key).ok());
        let number = key.and_then(|key| key.strip_prefix(self.prefix)?.parse::<usize>().ok());
        let Some(number) = number.filter(|number| *number < self.about.len()) else {
            return;
        };
        let arrived = self.started.elapsed();
        let about = self.about[number];
        let part = about.part as usize;
        let mut found = self.lock();
        if found.outcomes[number] != Outcome::Unknown {
            return;
        }
        let payload = record.payload.unwrap_or_default();
        let failure = FailureHeaders::of(record);
        if let Some(name) = failure.reason {
            let reason = Reason::ALL.iter().find(|reason| reason.as_str() == name);
            let reason = reason.map_or("other", |reason| reason.as_str());
            found.refusals[part].add(reason, &failure.message.unwrap_or_default());
            found.outcomes[number] = Outcome::Refused;
        } else if let Ok(verdict) = serde_json::from_slice::<Verdict>(payload) {
            let sent = Duration::from_micros(self.sent[number].load(Ordering::Relaxed));
            found.outcomes[number] = Outcome::Scored {
                score: verdict.anomaly_score,
                flagged: verdict.severity.is_some(),
                latency: arrived.saturating_sub(sent).as_secs_f32(),
            };
            found.sha256.get_or_insert(verdict.model.sha256);
            if about.anomaly.is_none() {
                let residuals = &mut found.residuals[part];
                residuals.records += 1;
                for attribution in verdict.relevant_attribution {
                    *residuals.sums.entry(attribution.feature).or_default() += attribution.share;
                }
            }
        } else {
            return;
        }
        self.received.fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns the place of a part in [`Found`].
pub fn at<T>(of_parts: &[T; 3], part: Part) -> &T {
    &of_parts[part as usize]
}
