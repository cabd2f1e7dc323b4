//! The settings of the daemon that a rehearsal starts: those of the user, on an embedded broker and with topics of its own.

use std::net::SocketAddr;

use crate::cli::shared::feed::kafka_settings;
use crate::config::{ClientSettings, Config, Guarantee, InputSettings, ScreenMode};
use crate::kafka::embedded::FETCH_WAIT;

pub const RECORDS: &str = "rehearsal";
pub const ANOMALIES: &str = "rehearsal-anomalies";
pub const SCORES: &str = "rehearsal-scores";
pub const DEAD_LETTERS: &str = "rehearsal-dead-letters";
pub const PARTITIONS: i32 = 4;
/// Maximum time of a drain.
const DRAIN: std::time::Duration = std::time::Duration::from_secs(10);

/// The topics of the embedded broker.
pub const TOPICS: [(&str, i32); 4] = [
    (RECORDS, PARTITIONS),
    (ANOMALIES, 1),
    (SCORES, PARTITIONS),
    (DEAD_LETTERS, PARTITIONS),
];

/// Returns the settings for the embedded broker, and what is not rehearsed because of it. `features`: their number.
pub fn settings(config: &Config, brokers: &str, features: usize) -> (Config, Vec<String>) {
    let mut own = config.clone();
    let mut notes = Vec::new();
    if !matches!(config.input, InputSettings::OfBundle | InputSettings::Json)
        || config.wrapping.is_some()
    {
        notes.push("[input] is not rehearsed: the records are sent as plain JSON, because records are drawn without format and envelope".to_owned());
    }
    if config.kafka.guarantee != Guarantee::AtLeastOnce {
        notes.push(
            "kafka.delivery is not rehearsed: the embedded broker is used with at-least-once"
                .to_owned(),
        );
    }
    own.input = InputSettings::OfBundle;
    own.wrapping = None;
    own.kafka = kafka_settings(brokers, ClientSettings::default());
    own.kafka.topics = vec![RECORDS.to_owned()];
    own.kafka.group_id = "residuald-rehearsal".to_owned();
    own.kafka.drain_timeout = DRAIN;
    own.kafka.consumer.set(FETCH_WAIT.0, FETCH_WAIT.1);
    if own.screen.mode == ScreenMode::On {
        own.screen.mode = ScreenMode::Audit;
        notes.push(
            "screen.mode is audit in the rehearsal, so that every record has a score".to_owned(),
        );
    }
    own.output.anomalies_topic = ANOMALIES.to_owned();
    own.output.scores_topic = Some(SCORES.to_owned());
    if own.output.restored.take().is_some() {
        notes.push(
            "output.restored_topic is not rehearsed: no record is filled in, because verdicts do not depend on it"
                .to_owned(),
        );
    }
    own.output.dead_letter_topic = DEAD_LETTERS.to_owned();
    own.output.media = None;
    own.output.include_record = false;
    own.output.attributions = features.max(1);
    own.http.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    own.http.tls = None;
    own.http.token = None;
    own.traces = None;
    // Hides the errors of the reader, which outlives the broker.
    own.telemetry.log_level = "error,librdkafka=off,rdkafka=off".to_owned();
    (own, notes)
}
