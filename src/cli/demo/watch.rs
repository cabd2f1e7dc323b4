//! Reads the anomalies topic like any client, and compares the verdicts with the labels of their records.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::Value;

use crate::kafka::KafkaError;
use crate::kafka::embedded::FETCH_WAIT;

/// Maximum number of anomalies shown per refresh. The rest are only counted.
const SHOWN: usize = 5;
/// Maximum time to wait for the last verdicts.
const PATIENCE: Duration = Duration::from_secs(10);

/// Number of records flagged so far.
#[derive(Clone, Copy, Default)]
pub struct Found {
    pub flagged: u64,
    /// Number of flagged records that are labelled as anomalies.
    pub right: u64,
}

impl Found {
    pub fn precision(self) -> Option<f64> {
        (self.flagged > 0).then(|| self.right as f64 / self.flagged as f64)
    }
}

#[derive(Default)]
struct Findings {
    found: Found,
    latest: VecDeque<String>,
}

/// Follows a topic of verdicts.
pub struct Watcher(Arc<Mutex<Findings>>);

impl Watcher {
    /// Follows partition 0 of `topic` on its own thread until the process ends.
    pub fn start(brokers: &str, topic: &str) -> Result<Watcher, KafkaError> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", "residuald-demo-watcher")
            .set(FETCH_WAIT.0, FETCH_WAIT.1)
            .create()?;
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_offset(topic, 0, Offset::Beginning)?;
        consumer.assign(&partitions)?;
        let findings = Arc::new(Mutex::new(Findings::default()));
        let writer = Watcher(findings.clone());
        std::thread::spawn(move || {
            while let Some(message) = consumer.poll(None) {
                let payload = message.as_ref().ok().and_then(Message::payload);
                if let Some(verdict) = payload.and_then(|p| serde_json::from_slice(p).ok()) {
                    writer.note(&verdict);
                }
            }
        });
        Ok(Watcher(findings))
    }

    fn lock(&self) -> MutexGuard<'_, Findings> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, verdict: &Value) {
        let record = &verdict["record"];
        let is_anomaly = record["label"].as_f64().is_some_and(|label| label != 0.0);
        let mut findings = self.lock();
        findings.found.flagged += 1;
        findings.found.right += u64::from(is_anomaly);
        let truth = match (is_anomaly, record["scenario"].as_str()) {
            (true, Some(scenario)) => scenario,
            (true, None) => "anomaly",
            (false, _) => "false alarm",
        };
        let line = format!(
            "{:>8} grade {:>5.2}  {truth:<18} {}",
            verdict["severity"].as_str().unwrap_or_default(),
            verdict["anomaly_grade"].as_f64().unwrap_or_default(),
            reasons(verdict)
        );
        findings.latest.push_back(line);
        if findings.latest.len() > SHOWN {
            findings.latest.pop_front();
        }
    }

    pub fn found(&self) -> Found {
        self.lock().found
    }

    /// Returns the latest anomalies since the last call, at most [`SHOWN`].
    pub fn latest(&self) -> Vec<String> {
        self.lock().latest.drain(..).collect()
    }

    /// Waits until `flagged` verdicts have arrived, or gives up after [`PATIENCE`].
    pub fn wait_for(&self, flagged: u64) {
        let started = Instant::now();
        while self.found().flagged < flagged && started.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn reasons(verdict: &Value) -> String {
    let attributions = verdict["relevant_attribution"].as_array();
    let shown = attributions.into_iter().flatten().take(2).map(|a| {
        format!(
            "{} {} (expected {})",
            a["feature"].as_str().unwrap_or_default(),
            short(&a["observed"]),
            short(&a["expected"])
        )
    });
    let regions = verdict["regions"].as_array();
    let boxes = regions.into_iter().flatten().take(2).map(|r| {
        format!(
            "{} x {} at {}, {} ({:.0}% of the heat)",
            r["width"],
            r["height"],
            r["x"],
            r["y"],
            r["share"].as_f64().unwrap_or_default() * 100.0
        )
    });
    shown.chain(boxes).collect::<Vec<_>>().join(", ")
}

fn short(value: &Value) -> String {
    match (value.as_f64(), value.as_str()) {
        (Some(number), _) => format!("{number:.1}"),
        (_, Some(text)) => text.to_owned(),
        _ => value.to_string(),
    }
}
