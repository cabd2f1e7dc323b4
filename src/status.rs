//! The state that the daemon reports: its readiness and facts about it. The stages write this state, and the HTTP
//! server reads it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::bundle::SegmentBy;
use crate::image::ImageReader;
use crate::memory::Room;
use crate::message::ModelId;
use crate::metrics::Metrics;

/// The progress of a partition. An offset is that of the next record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionStatus {
    /// The number of records in the partition that are not finished yet. `None`, shown as -1, if unknown.
    pub lag: Option<i64>,
    /// Every record below this offset is finished. -1 if unknown.
    pub finished_offset: i64,
    /// The end of the partition.
    pub end_offset: Option<i64>,
    /// The reason why the partition makes no progress, if it waits.
    pub waiting: Option<Waiting>,
}

/// The reason why a partition waits, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub what: String,
    pub since: Timestamp,
}

pub type Partitions = BTreeMap<(String, i32), PartitionStatus>;

/// The current model, as shown to clients.
#[derive(Clone, Debug)]
pub struct InForce {
    pub model: ModelId,
    pub provider: &'static str,
    /// The threshold for all records without a segment threshold.
    pub threshold: f32,
    /// What defines the segments with their own thresholds, and the number of these segments.
    pub segments: Option<(SegmentBy, usize)>,
    /// The expected share of normal records per bucket of the score histogram. The last entry is for the overflow
    /// bucket.
    pub normal: Vec<f64>,
    /// For a model of images: the image decoder, and the memory for decoding.
    pub reader: Option<(ImageReader, Room)>,
}

/// The state of the daemon, shared by all stages.
#[derive(Clone, Debug)]
pub struct Status(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: Instant,
    in_force: Mutex<InForce>,
    latches: Latches,
    partitions: Mutex<Partitions>,
    needs_restart: Mutex<Vec<String>>,
    brokers_silent_since: Mutex<Option<Timestamp>>,
}

#[derive(Debug, Default)]
struct Latches {
    model: AtomicBool,
    partitions: AtomicBool,
    producer: AtomicBool,
    draining: AtomicBool,
}

impl Status {
    pub fn new(in_force: InForce, started: Instant) -> Status {
        Status(Arc::new(Inner {
            started,
            in_force: Mutex::new(in_force),
            latches: Latches::default(),
            partitions: Mutex::default(),
            needs_restart: Mutex::default(),
            brokers_silent_since: Mutex::default(),
        }))
    }

    /// Sets the current model. Called when another model takes over.
    pub fn serves(&self, in_force: InForce) {
        *lock(&self.0.in_force) = in_force;
    }

    pub fn in_force(&self) -> InForce {
        lock(&self.0.in_force).clone()
    }

    /// Called once the model is loaded, proved by its golden records, and warmed up.
    pub fn model_is_warm(&self) {
        self.0.latches.model.store(true, Ordering::Release);
    }

    /// Called when the group has assigned partitions. There may be none: with more replicas than partitions, some
    /// replicas stay idle.
    pub fn partitions_are_assigned(&self, assigned: bool) {
        self.0.latches.partitions.store(assigned, Ordering::Release);
    }

    pub fn producer_is_connected(&self) {
        self.0.latches.producer.store(true, Ordering::Release);
    }

    pub fn is_draining(&self) {
        self.0.latches.draining.store(true, Ordering::Release);
    }

    pub fn set_partitions(&self, partitions: Partitions) {
        *lock(&self.0.partitions) = partitions;
    }

    /// Sets the changed settings that take effect only after a restart.
    pub fn needs_restart(&self, keys: Vec<String>) {
        *lock(&self.0.needs_restart) = keys;
    }

    /// Sets the time since which no broker answers, or `None` if one answers. Returns `true` if this has changed.
    pub fn brokers_are_silent(&self, since: Option<Timestamp>) -> bool {
        let mut silent = lock(&self.0.brokers_silent_since);
        std::mem::replace(&mut *silent, since).is_some() != since.is_some()
    }

    /// Describes that no broker answers, and since when. Returns `None` if the brokers answer.
    pub fn silent_brokers(&self) -> Option<String> {
        let since = (*lock(&self.0.brokers_silent_since))?;
        Some(format!(
            "the brokers have not answered since {}",
            seconds(since)
        ))
    }

    /// Returns what the daemon waits for before it is ready. Empty if it is ready.
    pub fn waiting_for(&self) -> Vec<&'static str> {
        let latches = &self.0.latches;
        let mut waiting = Vec::new();
        for (latch, what) in [
            (&latches.model, "model to warm up"),
            (&latches.partitions, "partitions to be assigned"),
            (&latches.producer, "producer to connect"),
        ] {
            if !latch.load(Ordering::Acquire) {
                waiting.push(what);
            }
        }
        if latches.draining.load(Ordering::Acquire) {
            waiting.push("the drain to end: this process is stopping");
        }
        waiting
    }

    /// Returns one line per waiting partition, with what it waits for and since when.
    pub fn waiting_partitions(&self) -> Vec<String> {
        let partitions = lock(&self.0.partitions);
        let lines = partitions
            .iter()
            .filter_map(|((topic, partition), status)| {
                let Waiting { what, since } = status.waiting.as_ref()?;
                let since = seconds(*since);
                Some(format!(
                    "{topic}-{partition} waits for {what}, since {since}"
                ))
            });
        lines.collect()
    }

    /// Returns the body of `/status`.
    pub fn render(&self, metrics: &Metrics) -> serde_json::Value {
        let partitions: Vec<_> = lock(&self.0.partitions)
            .iter()
            .map(|((topic, partition), status)| status.render(topic, *partition))
            .collect();
        let waiting_for = self.waiting_for();
        let in_force = self.in_force();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.0.started.elapsed().as_secs_f64(),
            "ready": waiting_for.is_empty(),
            "waiting_for": waiting_for,
            "missing_topics": metrics.missing_topics(),
            "brokers_silent_since": lock(&self.0.brokers_silent_since).map(|since| seconds(since).to_string()),
            "model": in_force.model,
            "provider": in_force.provider,
            "threshold": in_force.threshold,
            "needs_restart": *lock(&self.0.needs_restart),
            "segments": in_force.segments.map(|(by, calibrated)| json!({"by": by, "calibrated": calibrated})),
            "records": {
                "consumed": metrics.records_consumed.get(),
                "scored": metrics.records_scored.get(),
                "dead_letters": metrics.dead_letters_total(),
                "skipped": metrics.skipped_total(),
                "in_flight": metrics.records_in_flight.get(),
                "unaccounted": metrics.records_unaccounted.get(),
                "anomalies": metrics.anomalies_total(),
            },
            "partitions": partitions,
        })
    }
}

impl PartitionStatus {
    fn render(&self, topic: &str, partition: i32) -> Value {
        let mut rendered = json!({
            "topic": topic,
            "partition": partition,
            "lag": self.lag.unwrap_or(-1),
            "finished_offset": self.finished_offset,
            "end_offset": self.end_offset,
        });
        if let Some(Waiting { what, since }) = &self.waiting {
            rendered["waiting_for"] = what.as_str().into();
            rendered["waiting_since"] = seconds(*since).to_string().into();
        }
        rendered
    }
}

/// Returns the time, rounded down to seconds.
fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Locks a mutex and ignores poisoning, because a panic cannot leave this plain data half written.
fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
