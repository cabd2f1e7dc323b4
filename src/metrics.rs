//! All metrics of the daemon, in one list. The list is a value that is passed to the stages, never a global.

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::decode::{Reason, Skip};
use crate::imputation::FIELD;
use crate::verdict::Severity;

/// The reasons to skip a record. The first ones are those of [`Skip`]: the record has nothing to score. Records of a lost partition are judged by its new
/// owner. An undeliverable record is one whose topic does not accept even the smallest message about it. For a
/// compressed batch that is too large to read, one dead letter stands for all of its records.
pub const SKIP_LOST: &str = "lost_partition";
pub const SKIP_UNDELIVERABLE: &str = "undeliverable";
pub const SKIP_OVERSIZED: &str = "oversized_batch";
const SKIPS: [&str; 8] = [
    Skip::Tombstone.as_str(),
    Skip::Delete.as_str(),
    Skip::Truncate.as_str(),
    Skip::LogMessage.as_str(),
    Skip::EmptyList.as_str(),
    SKIP_LOST,
    SKIP_UNDELIVERABLE,
    SKIP_OVERSIZED,
];

/// The reasons why a partition is not read from the group's offset.
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

/// The screen's answers about a record: clearly normal, or not.
pub const CLEARED: &str = "cleared";
pub const PASSED: &str = "passed";
pub const SCREENS: [&str; 2] = [PASSED, CLEARED];
/// The values of the label that shows whether a record was audited, that is, scored whatever the screen answered.
pub const AUDITED_LABELS: [&str; 2] = ["false", "true"];

/// Outcomes of a transaction.
pub const COMMITTED: &str = "committed";
pub const ABORTED: &str = "aborted";

/// The outcomes of a restored record, apart from [`SKIP_UNDELIVERABLE`].
pub const UNCHANGED: &str = "unchanged";
pub const FILLED: &str = "filled";
pub const DENOISED: &str = "denoised";
pub const FAILED: &str = "failed";
/// The other outcome of a value: most draws lack it as well.
pub const LEFT_MISSING: &str = "left_missing";

/// The outcomes of a reload.
pub const RELOADED: &str = "ok";
pub const NOT_RELOADED: &str = "failed";

/// The reasons why the server closed a client's connection: another client needed its place, or the client did not read
/// its response.
pub const CLOSED_FOR_ROOM: &str = "no_room";
pub const CLOSED_SLOW: &str = "slow";

/// Bucket bounds in seconds, from one small batch on a CPU to a stuck broker.
const STAGE_SECONDS: [f64; 14] = [
    1e-6, 2.5e-6, 1e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 5e-2, 0.25, 1.0,
];
const END_TO_END_SECONDS: [f64; 14] = [
    1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0,
];
const BATCH_RECORDS: [f64; 10] = [
    1.0, 4.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0,
];
/// Bucket bounds of the score, as multiples of the threshold.
const SCORE_GRADES: [f64; 12] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 4.0, 10.0];

#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    pub records_consumed: IntCounter,
    pub records_scored: IntCounter,
    pub records_skipped: IntCounterVec,
    pub dead_letters: IntCounterVec,
    pub omitted_parts: IntCounterVec,
    pub restored_records: IntCounterVec,
    pub restored_values: IntCounterVec,
    pub restoration_seconds: Histogram,
    pub translation_seconds: Histogram,
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
    /// Registers all metrics. `threshold` sets the bucket bounds of the score histogram.
    /// The function is long because it is one flat list.
    pub fn new(threshold: f32) -> Metrics {
        let registry = Registry::new();
        let r = &registry;
        let score_buckets = SCORE_GRADES.map(|grade| grade * f64::from(threshold));
        let metrics = Metrics {
            records_consumed: counter(r, "records_consumed_total", "Records read from Kafka."),
            records_scored: counter(
                r,
                "records_scored_total",
                "Records scored whose verdict is delivered, including records that are not anomalies.",
            ),
            records_skipped: counters(
                r,
                "records_skipped_total",
                "Records for which this process publishes neither a verdict nor a dead letter of their own. tombstone: there is nothing to score. delete, truncate and log_message: with input.envelope, a change without a state to score. empty_list: with input.unwrap, a message without records. lost_partition: the new owner of the partition judges the record. undeliverable: the topic refuses even the smallest message about the record; the log names topic, partition and offset. oversized_batch: a compressed batch is larger than its share of memory, and one dead letter stands for all of its records.",
                "reason",
            ),
            dead_letters: counters(
                r,
                "dead_letters_total",
                "Records that could not be scored and were sent to the dead letter topic. The header __connect.errors.exception.message of each dead letter explains why.",
                "reason",
            ),
            omitted_parts: counters(
                r,
                "omitted_parts_total",
                "Parts of records and verdicts left out of published messages, because the message would be too large for its topic or the record is nested too deeply. imputed: a restored record came with a field of this name, which was replaced. colour, depth and transparency: a restored image had them, and the model does not. The header residuald.omitted of a message names the parts.",
                "part",
            ),
            restored_records: counters(
                r,
                "restored_records_total",
                "Records delivered to output.restored_topic. unchanged: nothing that can be filled in was missing, or the image has no measurable noise. filled: missing values are filled in. denoised: the image is denoised. failed: nothing could be filled in, or the image could not be denoised; the header residuald.omitted of the message says why. undeliverable: the topic refuses the record even without its value, so these records are also among the others.",
                "outcome",
            ),
            restored_values: register(
                r,
                IntCounterVec::new(
                    opts(
                        "restored_values_total",
                        "Missing values in records of output.restored_topic, for each of the first 100 features and for all others together. filled: a value was filled in. left_missing: most draws lack the value as well.",
                    ),
                    &["feature", "outcome"],
                ),
            ),
            restoration_seconds: histogram(
                r,
                "restoration_seconds",
                "Time to fill in the records of a batch that lack something, or to denoise an image.",
                &END_TO_END_SECONDS,
            ),
            translation_seconds: histogram(
                r,
                "translation_seconds",
                "Time to translate an image with the model of translate.bundle before it is scored, also if the image could not be translated and became a dead letter.",
                &END_TO_END_SECONDS,
            ),
            records_unaccounted: gauge(
                r,
                "records_unaccounted",
                "Records finished without a verdict, a dead letter or a counted skip. A value other than 0 is a bug; please report it.",
            ),
            records_in_flight: gauge(
                r,
                "records_in_flight",
                "Records read from Kafka whose outcome is not delivered yet.",
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
                        "Records that the screen has cleared as clearly normal or passed to the scorer. Audited records are scored whatever the screen answers.",
                    ),
                    &["screen", "audited"],
                ),
            ),
            screen_audited_anomalies: counters(
                r,
                "screen_audited_anomalies_total",
                "Anomalies among the audited records, by the screen's answer. The screen misses those labelled cleared; compare their share with screen.missed_share.",
                "screen",
            ),
            score: histogram(
                r,
                "score",
                "Anomaly scores. With screen.mode = \"on\", only scores of audited records. The bucket bounds are multiples of the threshold at the start of the daemon.",
                &score_buckets,
            ),
            threshold: number(
                r,
                "threshold",
                "Score above which a record is an anomaly. In a bundle calibrated by segment, this threshold applies to records whose segment has no threshold of its own.",
            ),
            expected_anomaly_ratio: number(
                r,
                "expected_anomaly_ratio",
                "Share of normal records that the threshold flags, according to the bundle's calibration. If far more records are flagged, there is an attack, or the data has changed.",
            ),
            score_drift_ratio: number(
                r,
                "score_drift_ratio",
                "Share of about the last 10,000 records that score above the calibration's 90 % quantile, divided by 0.1. The value 1 means as calibrated. If it stays well above 1, the data has changed: calibrate or train again.",
            ),
            batch_size: histogram(
                r,
                "batch_size",
                "Number of records scored together in one batch.",
                &BATCH_RECORDS,
            ),
            decode_seconds: histogram(
                r,
                "decode_seconds",
                "Time to decode a record, measured for a sample of records.",
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
                "Time from a record's timestamp to the delivery of its verdict.",
                &END_TO_END_SECONDS,
            ),
            consumer_lag: register(
                r,
                IntGaugeVec::new(
                    opts(
                        "consumer_lag",
                        "Records in a partition that are not finished yet. If the lag grows, add workers or replicas.",
                    ),
                    &["topic", "partition"],
                ),
            ),
            partition_last_finished: register(
                r,
                IntGaugeVec::new(
                    opts(
                        "partition_last_finished_timestamp_seconds",
                        "When a record of the partition was last finished, or when no record was last left to read. Initially, the time of the assignment. If this time is long ago and there is a lag, the partition is stuck; /status shows what it waits for.",
                    ),
                    &["topic", "partition"],
                ),
            ),
            rebalances: counter(
                r,
                "rebalances_total",
                "Rebalances: assignments and revocations of partitions.",
            ),
            brokers_silent: gauge(
                r,
                "brokers_silent",
                "1 while no broker answers, otherwise 0. Meanwhile, the lags are unknown.",
            ),
            topic_missing: register(
                r,
                IntGaugeVec::new(
                    opts(
                        "topic_missing",
                        "1 if a topic of kafka.topics cannot be read, if no topic matches a pattern of kafka.topics, or if an output topic cannot be written, otherwise 0. The other input topics are still read. Verdicts wait for a missing output topic.",
                    ),
                    &["topic"],
                ),
            ),
            partition_resets: counters(
                r,
                "partition_resets_total",
                "Partitions that could not be read from the group's offset. recreated: the topic was deleted and recreated. records_deleted: retention deleted records before they were read. truncated: the brokers lost records. offset_deleted: the offset itself was deleted. The log names the partitions.",
                "reason",
            ),
            records_unread: counter(
                r,
                "records_unread_total",
                "Records that will never be judged, because retention deleted them before they were read, or because auto.offset.reset = \"latest\" skipped them after the group's offset was deleted.",
            ),
            records_read_again: counter(
                r,
                "records_read_again_total",
                "Records that may be judged again, because the brokers lost records or the group's offset.",
            ),
            transactions: counters(
                r,
                "transactions_total",
                "Transactions of exactly-once delivery. If many are aborted, look for rebalances and slow brokers in the log.",
                "outcome",
            ),
            paused_partitions: gauge(
                r,
                "paused_partitions",
                "Paused partitions. Their next record waits for its schema, or scoring or delivery is behind; /status shows which.",
            ),
            media_dir_blocked: gauge(
                r,
                "media_dir_blocked",
                "1 while publishing waits because maps cannot be written to output.media_dir, for example because the disk is full, otherwise 0.",
            ),
            memory_budget_bytes: register(
                r,
                IntGaugeVec::new(
                    opts(
                        "memory_budget_bytes",
                        "Memory budget in bytes: the limit of the process, and the share of each part. The part base is the process with its model and room for a reload.",
                    ),
                    &["share"],
                ),
            ),
            memory_in_flight_bytes: gauge(
                r,
                "memory_in_flight_bytes",
                "Bytes of the records that are in flight. Three quarters of the share in_flight are reserved for the messages about these records.",
            ),
            memory_decoding_bytes: gauge(
                r,
                "memory_decoding_bytes",
                "Bytes reserved for images being decoded and scored, measured when the last image was begun.",
            ),
            memory_decompressed_bytes: gauge(
                r,
                "memory_decompressed_bytes",
                "Bytes of decompressed record batches held by the Kafka client, measured every second.",
            ),
            schema_registry_errors: counter(
                r,
                "schema_registry_errors_total",
                "Failed requests to the schema registry. While requests fail, records with new schemas wait.",
            ),
            trace_spans_lost: counter(
                r,
                "trace_spans_lost_total",
                "Trace spans that were lost, because the collector refused them or the queue was full. See the log, or lower telemetry.trace_sample_ratio.",
            ),
            model_info: register(
                r,
                GaugeVec::new(
                    opts("model_info", "The current model; always 1."),
                    &["name", "version", "sha256", "provider"],
                ),
            ),
            model_reloads: counters(
                r,
                "model_reloads_total",
                "Reloads of settings and bundle (SIGHUP). After a failed reload, the old settings and model stay in use; the log shows the reason.",
                "status",
            ),
            provider_fallback: gauge(
                r,
                "provider_fallback",
                "1 if the model does not run on the configured execution provider (inference.fallback), otherwise 0.",
            ),
            http_connections_closed: counters(
                r,
                "http_connections_closed_total",
                "HTTP connections closed by the server. no_room: the least active connection was closed because another client needed its place. slow: the client did not read its response in time.",
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

    /// Creates every series with the value 0, because `increase()` misses the first event of a series that appears with
    /// it.
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
        for outcome in [UNCHANGED, FILLED, DENOISED, FAILED, SKIP_UNDELIVERABLE] {
            self.restored_records.with_label_values(&[outcome]);
        }
        let lost = ["colour", "depth", "transparency"];
        for part in ["record", "value", "headers", "key", FIELD]
            .iter()
            .chain(&lost)
        {
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

    /// Returns the upper bounds of the score histogram's buckets, and the number of scores in each bucket and in the
    /// overflow bucket.
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

    /// Returns all metrics in Prometheus' text exposition format.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("metrics always encode into memory");
        String::from_utf8(text).expect("the text format is UTF-8")
    }

    /// Sets the progress of a partition. Its lag may be unknown.
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

    /// Returns the missing topics, and the patterns that match no topic.
    pub fn missing_topics(&self) -> Vec<String> {
        let families = self.topic_missing.collect();
        let series = families.iter().flat_map(|family| family.get_metric());
        let missing = series.filter(|series| series.get_gauge().get_value() > 0.0);
        let topic =
            missing.filter_map(|series| Some(series.get_label().first()?.value().to_owned()));
        topic.collect()
    }

    /// Removes the series of a partition that this process no longer owns.
    pub fn forget_partition(&self, topic: &str, partition: i32) {
        let partition = partition.to_string();
        for of in [&self.consumer_lag, &self.partition_last_finished] {
            // The series may not exist, which is fine.
            let _ = of.remove_label_values(&[topic, &partition]);
        }
    }

    /// Returns the number of delivered verdicts, and of those that came later than `bound` seconds after their records. `bound` must be a
    /// bound of the histogram.
    pub fn end_to_end_above(&self, bound: f64) -> (u64, u64) {
        let families = self.end_to_end_seconds.collect();
        let histogram = families[0].get_metric()[0].get_histogram();
        let all = histogram.get_sample_count();
        let buckets = histogram.get_bucket();
        let within = buckets.iter().find(|bucket| bucket.upper_bound() >= bound);
        (
            all,
            all - within.map_or(all, |bucket| bucket.cumulative_count()),
        )
    }

    /// Returns the number of records with a delivered outcome.
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

    /// Returns all metrics as a Markdown table.
    fn reference() -> String {
        let metrics = Metrics::new(1.0);
        // A metric with labels appears only once it has a value.
        metrics.model_info.with_label_values(&["", "", "", ""]);
        metrics.topic_missing.with_label_values(&[""]);
        metrics.partition_moved("", 0, Some(0), 0);
        metrics.restored_values.with_label_values(&["", ""]);
        let mut text = "# Metrics\n\nThe metrics of `/metrics`, in the Prometheus text format. The `process_*` metrics are the same as in every Prometheus client. \
            `RESIDUALD_WRITE_REFERENCE=1 cargo test --lib metrics` writes this page. Without the variable, the test fails if the page is outdated.\n\n\
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
            "deploy/metrics.md is outdated; write it with RESIDUALD_WRITE_REFERENCE=1 cargo test --lib metrics"
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
