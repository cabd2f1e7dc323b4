//! `[kafka]`: brokers, topics, the delivery guarantee, and settings for librdkafka.

use std::time::Duration;

use super::settings::{ClientSettings, Settings};
use super::topics;

/// Time after which the brokers abort the transaction of a process that has ended. Its successor waits as long, unless it has the
/// same transactional.id.
pub const TRANSACTION_TIMEOUT_MS: u64 = 10_000;

/// Settings of librdkafka that residuald sets itself, because delivery depends on them.
const RESERVED: [&str; 8] = [
    "bootstrap.servers",
    "group.id",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.partition.eof",
    "enable.idempotence",
    "acks",
    "request.required.acks",
];

#[derive(Debug, Clone)]
pub struct KafkaSettings {
    pub brokers: String,
    pub topics: Vec<String>,
    pub group_id: String,
    pub guarantee: Guarantee,
    pub connect_timeout: Duration,
    pub drain_timeout: Duration,
    pub client: ClientSettings,
    pub consumer: ClientSettings,
    pub producer: ClientSettings,
}

/// The delivery guarantee.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guarantee {
    AtLeastOnce,
    ExactlyOnce {
        /// Maximum time that verdicts wait for their transaction.
        window: Duration,
    },
}

impl Guarantee {
    /// Returns the maximum time that verdicts wait for their transaction. `None` without transactions.
    pub fn window(self) -> Option<Duration> {
        match self {
            Guarantee::AtLeastOnce => None,
            Guarantee::ExactlyOnce { window } => Some(window),
        }
    }
}

impl KafkaSettings {
    pub(super) fn parse(s: &mut Settings) -> KafkaSettings {
        let window = s.duration("kafka.transaction_window");
        let kafka = KafkaSettings {
            brokers: s.text("kafka.brokers"),
            topics: s.texts(
                "kafka.topics",
                "set it to the topics to read, for instance topics = [\"payments\"]",
            ),
            group_id: s.text("kafka.group_id"),
            guarantee: s
                .choice(
                    "kafka.delivery",
                    &[
                        ("at-least-once", Guarantee::AtLeastOnce),
                        ("exactly-once", Guarantee::ExactlyOnce { window }),
                    ],
                )
                .unwrap_or(Guarantee::AtLeastOnce),
            connect_timeout: s.duration("kafka.connect_timeout"),
            drain_timeout: s.duration("kafka.drain_timeout"),
            client: s.client_settings("kafka.client", &RESERVED),
            consumer: s.client_settings("kafka.consumer", &RESERVED),
            producer: s.client_settings("kafka.producer", &RESERVED),
        };
        check_delivery(&kafka, s);
        topics::check(&kafka.topics, s);
        kafka
    }
}

/// Checks the settings for librdkafka against the delivery guarantee.
fn check_delivery(kafka: &KafkaSettings, s: &mut Settings) {
    let find = |name| {
        let clients = [&kafka.producer, &kafka.consumer, &kafka.client];
        clients.into_iter().find_map(|settings| settings.get(name))
    };
    let id = find("transactional.id");
    let Some(window) = kafka.guarantee.window() else {
        if id.is_some() {
            s.problem("transactional.id requires kafka.delivery = \"exactly-once\": set that, or remove transactional.id".into());
        }
        return;
    };
    if find("isolation.level").is_some_and(|level| level != "read_committed") {
        s.problem(
            "isolation.level must be read_committed with kafka.delivery = \"exactly-once\": a new owner of a partition must wait for the transaction of the previous owner".into(),
        );
    }
    let timeout = find("transaction.timeout.ms").and_then(|ms| ms.parse().ok());
    let timeout = Duration::from_millis(timeout.unwrap_or(TRANSACTION_TIMEOUT_MS));
    if window.is_zero() || 2 * window > timeout {
        s.problem(format!(
            "kafka.transaction_window must be above 0 and at most half of transaction.timeout.ms, which is {timeout:?}"
        ));
    }
}
