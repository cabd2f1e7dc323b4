//! Every metric, in one list. A value handed to the stages; never a global.

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::decode::Reason;
use crate::verdict::Severity;

/// Reasons to skip a record: a tombstone has nothing to score, of a lost partition others judge the records, a topic may take not
/// even the smallest message about a record, and of a batch that is too large to be read only the last record has a dead letter, for
/// all of them.
pub const SKIP_TOMBSTONE: &str = "tombstone";
pub const SKIP_LOST: &str = "lost_partition";
pub const SKIP_UNDELIVERABLE: &str = "undeliverable";
pub const SKIP_OVERSIZED: &str = "oversized_batch";
const SKIPS: [&str; 4] = [
    SKIP_TOMBSTONE,
    SKIP_LOST,
    SKIP_UNDELIVERABLE,
    SKIP_OVERSIZED,
];

/// Why a partition is not read on from the group's offset.
pub const RESET_RECREATED: &str = "recreated";
pub const RESET_DELETED: &str = "records_deleted";
pub const RESET_TRUNCATED: &str = "truncated";
pub const RESET_OFFSET_DELETED: &str = "offset_deleted";
const RESETS: [&str; 4] = [
    RESET_RECREATED,
    RESET_DELETED,
    RESET_TRUNCATED,
    RESET_OFFSET_DELETED,
];

/// What the screen says of a record: clearly normal, or not.
pub const CLEARED: &str = "cleared";
pub const PASSED: &str = "passed";
pub const SCREENS: [&str; 2] = [PASSED, CLEARED];
/// Whether the record is scored whatever the screen says.
pub const AUDITED_LABELS: [&str; 2] = ["false", "true"];

/// Outcomes of a transaction.
pub const COMMITTED: &str = "committed";
pub const ABORTED: &str = "aborted";

/// What became of a reload.
pub const RELOADED: &str = "ok";
pub const NOT_RELOADED: &str = "failed";

/// Why a client lost its connection: another one needed the place, or it did not take its answer.
pub const CLOSED_FOR_ROOM: &str = "no_room";
pub const CLOSED_SLOW: &str = "slow";

/// Seconds; from one small batch on a CPU to a stuck broker.
const STAGE_SECONDS: [f64; 14] = [
    1e-6, 2.5e-6, 1e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 5e-2, 0.25, 1.0,
];
const END_TO_END_SECONDS: [f64; 14] = [
    1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0,
];
const BATCH_RECORDS: [f64; 10] = [
    1.0, 4.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0,
];
/// Multiples of the threshold.
const SCORE_GRADES: [f64; 12] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 4.0, 10.0];

#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    pub records_consumed: IntCounter,
    pub records_scored: IntCounter,
    pub records_skipped: IntCounterVec,
    pub dead_letters: IntCounterVec,
    pub omitted_parts: IntCounterVec,
    pub records_unaccounted: IntGauge,
    pub records_in_flight: IntGauge,
    pub anomalies: IntCounterVec,
    pub screen_records: IntCounterVec,
    pub screen_audited_anomalies: IntCounterVec,
    pub score: Histogram,
    pub threshold: Gauge,
    pub expected_anomaly_ratio: Gauge,
    pub score_drift_ratio: Gauge,
    pub batch_size: Histogram,
    pub decode_seconds: Histogram,
    pub queue_seconds: Histogram,
    pub inference_seconds: Histogram,
    pub end_to_end_seconds: Histogram,
    pub consumer_lag: IntGaugeVec,
    pub partition_last_finished: IntGaugeVec,
    pub rebalances: IntCounter,
    pub topic_missing: IntGaugeVec,
    pub brokers_silent: IntGauge,
    pub partition_resets: IntCounterVec,
    pub records_unread: IntCounter,
    pub records_read_again: IntCounter,
    pub transactions: IntCounterVec,
    pub paused_partitions: IntGauge,
    pub media_dir_blocked: IntGauge,
    pub memory_budget_bytes: IntGaugeVec,
    pub memory_in_flight_bytes: IntGauge,
    pub memory_decoding_bytes: IntGauge,
    pub memory_decompressed_bytes: IntGauge,
    pub schema_registry_errors: IntCounter,
    pub trace_spans_lost: IntCounter,
    pub model_info: GaugeVec,
    pub model_reloads: IntCounterVec,
    pub provider_fallback: IntGauge,
    pub http_connections_closed: IntCounterVec,
}

impl Metrics {
    /// `threshold` places the buckets of the score histogram.
    pub fn new(threshold: f32) -> Metrics {
        let registry = Registry::new();
        let r = &registry;
        let score_buckets = SCORE_GRADES.map(|grade| grade * f64::from(threshold));
        let metrics = Metrics {
            records_consumed: counter(r, "records_consumed_total", "Records taken from Kafka."),
            records_scored: counter(
                r,
                "records_scored_total",
                "Records whose verdict is delivered, anomaly or not.",
            ),
            records_skipped: counters(
                r,
                "records_skipped_total",
                "Records without a verdict of ours: tombstones carry nothing to score, records of a lost partition are judged by its new owner, of undeliverable ones the topic takes not even the smallest message (the log has topic, partition and offset), and one dead letter stands for all records of a compressed batch that is larger than its share of memory (oversized_batch).",
                "reason",
            ),
            dead_letters: counters(
                r,
                "dead_letters_total",
                "Records that could not be scored and went to the dead letter topic. Read the header __connect.errors.exception.message there.",
                "reason",
            ),
            omitted_parts: counters(
                r,
                "omitted_parts_total",
                "Parts of records and verdicts left out of published messages, because the topic does not take so much or the record nests too deep. The header residuald.omitted of a message names its parts.",
                "part",
            ),
            records_unaccounted: gauge(
                r,
                "records_unaccounted",
                "Records finished without a verdict, a dead letter or a counted skip. Anything but 0 is a bug: report it.",
            ),
            records_in_flight: gauge(
                r,
                "records_in_flight",
                "Records taken from Kafka whose outcome is not delivered yet.",
            ),
            anomalies: counters(
                r,
                "anomalies_total",
                "Records flagged as anomalies.",
                "severity",
            ),
            screen_records: register(
                r,
                IntCounterVec::new(
                    opts(
                        "screen_records_total",
                        "Records that the screen looked at: cleared as clearly normal, or passed to the scorer. What is audited is scored whatever it says.",
                    ),
                    &["screen", "audited"],
                ),
            ),
            screen_audited_anomalies: counters(
                r,
                "screen_audited_anomalies_total",
                "Anomalies among the audited records, by what the screen would have made of them; cleared is what it misses, next to screen.missed_share.",
                "screen",
            ),
            score: histogram(
                r,
                "score",
                "Anomaly scores, with screen.mode = \"on\" of the audited records; bucket bounds are multiples of the threshold that the daemon started with.",
                &score_buckets,
            ),
            threshold: number(
                r,
                "threshold",
                "Score above which a record is an anomaly; in a bundle calibrated by segment that of the records without a segment of their own.",
            ),
            expected_anomaly_ratio: number(
                r,
                "expected_anomaly_ratio",
                "Share of normal records that the threshold flags, by the bundle's calibration. Far more flagged: an attack, or data that changed.",
            ),
            score_drift_ratio: number(
                r,
                "score_drift_ratio",
                "Share of the last 10,000 records or so above the calibration's 90 % quantile, over 0.1: 1 is as calibrated. Well above 1 for long: the data changed, calibrate or train again.",
            ),
            batch_size: histogram(r, "batch_size", "Records scored together.", &BATCH_RECORDS),
            decode_seconds: histogram(
                r,
                "decode_seconds",
                "Time to decode a record, sampled.",
                &STAGE_SECONDS,
            ),
            queue_seconds: histogram(
                r,
                "queue_seconds",
                "Time from the first record of a batch to the start of its scoring.",
                &STAGE_SECONDS,
            ),
            inference_seconds: histogram(
                r,
                "inference_seconds",
                "Time to score a batch.",
                &STAGE_SECONDS,
            ),
            end_to_end_seconds: histogram(
                r,
                "end_to_end_seconds",
                "From a record's timestamp to its delivered verdict.",
                &END_TO_END_SECONDS,
            ),
            consumer_lag: register(
                r,
                IntGaugeVec::new(
                    opts(
                        "consumer_lag",
                        "Records in a partition that are not finished yet. Growing: add workers or replicas.",
                    ),
                    &["topic", "partition"],
                ),
            ),
            partition_last_finished: register(
                r,
                IntGaugeVec::new(
                    opts(
                        "partition_last_finished_timestamp_seconds",
                        "When a record of the partition was finished last, or none was left; at first, when it was assigned. Long ago with a lag: it is stuck, and /status says what it waits for.",
                    ),
                    &["topic", "partition"],
                ),
            ),
            rebalances: counter(
                r,
                "rebalances_total",
                "Assignments and revocations of partitions.",
            ),
            brokers_silent: gauge(
                r,
                "brokers_silent",
                "1 while no broker answers, else 0. Lags are unknown meanwhile.",
            ),
            topic_missing: register(
                r,
                IntGaugeVec::new(
                    opts(
                        "topic_missing",
                        "1 if a topic of kafka.topics cannot be read, if no topic matches a pattern of it, or if a topic that is written is not there, else 0. The other topics are read on; verdicts wait for theirs.",
                    ),
                    &["topic"],
                ),
            ),
            partition_resets: counters(
                r,
                "partition_resets_total",
                "Partitions that were not read on from the group's offset: the topic was deleted and made again (recreated), retention deleted what was not read (records_deleted), the brokers lost records (truncated), or the offset itself was deleted (offset_deleted). The log says which.",
                "reason",
            ),
            records_unread: counter(
                r,
                "records_unread_total",
                "Records that nobody judges: retention deleted them before they were read, or auto.offset.reset = \"latest\" left them out after the group's offset was deleted.",
            ),
            records_read_again: counter(
                r,
                "records_read_again_total",
                "Records that may be judged once more, because the brokers lost the group's place.",
            ),
            transactions: counters(
                r,
                "transactions_total",
                "Transactions of exactly-once delivery. Many aborted ones: look for rebalances and slow brokers in the log.",
                "outcome",
            ),
            paused_partitions: gauge(
                r,
                "paused_partitions",
                "Partitions that stand still: their next record waits for its schema, or scoring or delivery is behind. /status says which.",
            ),
            media_dir_blocked: gauge(
                r,
                "media_dir_blocked",
                "1 while publishing waits because output.media_dir takes no maps, for instance because the disk is full; else 0.",
            ),
            memory_budget_bytes: register(
                r,
                IntGaugeVec::new(
                    opts(
                        "memory_budget_bytes",
                        "Bytes of memory: the limit of the process, and the share of each part of it; base is the process with its model and room for a reload.",
                    ),
                    &["share"],
                ),
            ),
            memory_in_flight_bytes: gauge(
                r,
                "memory_in_flight_bytes",
                "Bytes of the records that are taken and not finished. Three quarters of the share in_flight are kept for the messages made of them.",
            ),
            memory_decoding_bytes: gauge(
                r,
                "memory_decoding_bytes",
                "Bytes set aside for images that are decoded and scored now, when the last one was begun.",
            ),
            memory_decompressed_bytes: gauge(
                r,
                "memory_decompressed_bytes",
                "Bytes of decompressed batches that Kafka's client holds for us, every second.",
            ),
            schema_registry_errors: counter(
                r,
                "schema_registry_errors_total",
                "Requests to the schema registry that failed. While they do, records with schemas not seen before wait.",
            ),
            trace_spans_lost: counter(
                r,
                "trace_spans_lost_total",
                "Spans that the collector did not take, or that were too many for the queue. See the log, or lower telemetry.trace_sample_ratio.",
            ),
            model_info: register(
                r,
                GaugeVec::new(
                    opts("model_info", "The model in force; always 1."),
                    &["name", "version", "sha256", "provider"],
                ),
            ),
            model_reloads: counters(
                r,
                "model_reloads_total",
                "Settings and bundle read again (SIGHUP). Failed: settings and model in force stay, the log says why.",
                "status",
            ),
            provider_fallback: gauge(
                r,
                "provider_fallback",
                "1 if the model runs on another provider than asked for (inference.fallback), else 0.",
            ),
            http_connections_closed: counters(
                r,
                "http_connections_closed_total",
                "Connections of HTTP clients that were closed: no_room, the least active one when another client needed its place; slow, a client did not take its answer.",
                "reason",
            ),
            registry: registry.clone(),
        };
        let build: GaugeVec = register(
            r,
            GaugeVec::new(
                opts("build_info", "The version of residuald; always 1."),
                &["version"],
            ),
        );
        build
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1.0);
        #[cfg(target_os = "linux")]
        registry
            .register(Box::new(
                prometheus::process_collector::ProcessCollector::for_self(),
            ))
            .expect("registered once");
        metrics.threshold.set(f64::from(threshold));
        metrics.start_at_zero();
        metrics
    }

    /// A series that appears with its first event is a series that `increase()` misses.
    fn start_at_zero(&self) {
        for reason in Reason::ALL {
            self.dead_letters.with_label_values(&[reason.as_str()]);
        }
        for screen in SCREENS {
            for audited in AUDITED_LABELS {
                self.screen_records.with_label_values(&[screen, audited]);
            }
            self.screen_audited_anomalies.with_label_values(&[screen]);
        }
        for outcome in [COMMITTED, ABORTED] {
            self.transactions.with_label_values(&[outcome]);
        }
        for status in [RELOADED, NOT_RELOADED] {
            self.model_reloads.with_label_values(&[status]);
        }
        for part in ["record", "value", "headers", "key"] {
            self.omitted_parts.with_label_values(&[part]);
        }
        for severity in Severity::ALL {
            self.anomalies.with_label_values(&[severity.as_str()]);
        }
        for reason in [CLOSED_FOR_ROOM, CLOSED_SLOW] {
            self.http_connections_closed.with_label_values(&[reason]);
        }
        for reason in RESETS {
            self.partition_resets.with_label_values(&[reason]);
        }
        for reason in SKIPS {
            self.records_skipped.with_label_values(&[reason]);
        }
    }

    /// Of the score's histogram: the upper bounds of the buckets, and how many scores are in each and beyond the last.
    pub fn score_buckets(&self) -> (Vec<f64>, Vec<u64>) {
        let families = self.score.collect();
        let histogram = families[0].get_metric()[0].get_histogram();
        let (mut bounds, mut counts, mut below) = (Vec::new(), Vec::new(), 0);
        for bucket in histogram.get_bucket() {
            bounds.push(bucket.upper_bound());
            counts.push(bucket.cumulative_count() - below);
            below = bucket.cumulative_count();
        }
        counts.push(histogram.get_sample_count() - below);
        (bounds, counts)
    }

    /// The text exposition format.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("metrics always encode into memory");
        String::from_utf8(text).expect("the text format is UTF-8")
    }

    /// Where a partition stands; its lag may not be known yet.
    pub fn partition_moved(&self, topic: &str, partition: i32, lag: Option<i64>, at: i64) {
        let partition = partition.to_string();
        let labels = [topic, &partition];
        match lag {
            Some(lag) => self.consumer_lag.with_label_values(&labels).set(lag),
            // An unknown lag has no series.
            None => drop(self.consumer_lag.remove_label_values(&labels)),
        }
        let last_finished = &self.partition_last_finished;
        last_finished.with_label_values(&labels).set(at);
    }

    pub fn set_topic_missing(&self, topic: &str, missing: bool) {
        let gauge = self.topic_missing.with_label_values(&[topic]);
        gauge.set(i64::from(missing));
    }

    /// Topics, and patterns that match none.
    pub fn missing_topics(&self) -> Vec<String> {
        let families = self.topic_missing.collect();
        let series = families.iter().flat_map(|family| family.get_metric());
        let missing = series.filter(|series| series.get_gauge().get_value() > 0.0);
        let topic =
            missing.filter_map(|series| Some(series.get_label().first()?.value().to_owned()));
        topic.collect()
    }

    /// It belongs to somebody else now.
    pub fn forget_partition(&self, topic: &str, partition: i32) {
        let partition = partition.to_string();
        for of in [&self.consumer_lag, &self.partition_last_finished] {
            // A series that is not there need not be removed.
            let _ = of.remove_label_values(&[topic, &partition]);
        }
    }

    /// Records with a delivered outcome.
    pub fn finished(&self) -> u64 {
        self.records_scored.get() + self.dead_letters_total() + self.skipped_total()
    }

    pub fn dead_letters_total(&self) -> u64 {
        Reason::ALL
            .iter()
            .map(|reason| {
                self.dead_letters
                    .with_label_values(&[reason.as_str()])
                    .get()
            })
            .sum()
    }

    pub fn anomalies_total(&self) -> u64 {
        Severity::ALL
            .iter()
            .map(|severity| self.anomalies.with_label_values(&[severity.as_str()]).get())
            .sum()
    }

    pub fn skipped_total(&self) -> u64 {
        SKIPS
            .iter()
            .map(|reason| self.records_skipped.with_label_values(&[*reason]).get())
            .sum()
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("residuald_{name}"), help)
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("a valid name and help");
    registry
        .register(Box::new(collector.clone()))
        .expect("a name used once");
    collector
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::with_opts(opts(name, help)))
}

fn counters(registry: &Registry, name: &str, help: &str, label: &str) -> IntCounterVec {
    register(registry, IntCounterVec::new(opts(name, help), &[label]))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::with_opts(opts(name, help)))
}

fn number(registry: &Registry, name: &str, help: &str) -> Gauge {
    register(registry, Gauge::with_opts(opts(name, help)))
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
    register(registry, Histogram::with_opts(opts))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFERENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/metrics.md");

    /// All of them as a Markdown table.
    fn reference() -> String {
        let metrics = Metrics::new(1.0);
        // What has labels is there with its first value only.
        metrics.model_info.with_label_values(&["", "", "", ""]);
        metrics.topic_missing.with_label_values(&[""]);
        metrics.partition_moved("", 0, Some(0), 0);
        let mut text = "# Metrics\n\nOf `/metrics`, in the Prometheus text format; `process_*` are those of every Prometheus client. \
            Written by `RESIDUALD_WRITE_REFERENCE=1 cargo test --lib metrics`, which otherwise fails where this page is wrong.\n\n\
            | metric | type | labels | what |\n| --- | --- | --- | --- |\n"
            .to_owned();
        let families = metrics.registry.gather();
        for family in families
            .iter()
            .filter(|f| f.name().starts_with("residuald_"))
        {
            let kind = format!("{:?}", family.get_field_type()).to_lowercase();
            let labels = family.get_metric()[0].get_label();
            let labels: Vec<_> = labels.iter().map(|l| format!("`{}`", l.name())).collect();
            let (name, help) = (family.name(), family.help());
            text += &format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(" "));
        }
        text
    }

    #[test]
    fn the_reference_is_true() {
        if std::env::var_os("RESIDUALD_WRITE_REFERENCE").is_some() {
            std::fs::write(REFERENCE, reference()).unwrap();
        }
        let written = std::fs::read_to_string(REFERENCE).unwrap_or_default();
        assert!(
            written == reference(),
            "deploy/metrics.md is not what the daemon has: RESIDUALD_WRITE_REFERENCE=1 cargo test --lib metrics"
        );
    }

    #[test]
    fn every_series_is_there_before_its_first_event() {
        let text = Metrics::new(2.0).render();
        for series in [
            "residuald_records_consumed_total 0",
            "residuald_dead_letters_total{reason=\"missing\"} 0",
            "residuald_anomalies_total{severity=\"critical\"} 0",
            "residuald_records_skipped_total{reason=\"tombstone\"} 0",
            "residuald_threshold 2",
            "residuald_score_bucket{le=\"2\"} 0",
            "residuald_build_info{version=",
        ] {
            assert!(text.contains(series), "{series}");
        }
    }
}
