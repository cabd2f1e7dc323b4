//! Kafka: records in, verdicts out. Blocking, on the stages' own threads.

mod cause;
pub mod decompression;
mod edges;
pub mod embedded;
mod admin;
mod assignment;
mod headers;
mod hold;
mod mark;
mod membership;
#[cfg(feature = "aws-msk-iam")]
mod msk_iam;
pub mod history;
pub mod limits;
mod progress;
pub mod probe;
pub mod queues;
mod reach;
pub mod replay;
mod sasl;
mod presence;
mod question;
mod quiet;
mod rejoin;
mod siblings;
mod sink;
mod source;
mod stale;
mod start;
mod topics;
mod tail;
mod transaction;
mod wanted;
mod watch;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::{Client, ClientContext};
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::{BorrowedMessage, Header, Message as _, OwnedHeaders};
use rdkafka::types::{RDKafkaConfRes, RDKafkaErrorCode};

pub use limits::Limits;
pub use membership::Membership;
pub use sink::{Delivery, SendError, Sink, Ticket};
pub use source::{Event, Rebalance, RebalanceKind, Source};
pub use topics::Topics;
pub use transaction::Outcome;

use crate::config::{ClientSettings, Kafka};
use crate::record::Record;
use crate::shutdown::Shutdown;

/// What went wrong with Kafka, in words for the operator.
#[derive(Debug, thiserror::Error)]
pub enum KafkaError {
    #[error("Kafka setting `{name}` is refused: {problem}")]
    Setting { name: String, problem: String },
    #[error("Kafka is not reachable at {brokers} within {waited:?}: {}", cause::explain(.reason))]
    Unreachable {
        brokers: String,
        waited: Duration,
        reason: String,
    },
    #[error(
        "topic `{topic}` does not exist at {brokers}: create it (kafka-topics.sh --create --topic {topic}) or correct the setting"
    )]
    TopicAbsent { topic: String, brokers: String },
    #[error("topics do not exist at {brokers}: {}; create them, or correct the setting", listed(.topics))]
    TopicsAbsent {
        topics: Vec<String>,
        brokers: String,
    },
    #[error(
        "{partition}: {problem}, and auto.offset.reset is none: set the group's offset (kafka-consumer-groups.sh --reset-offsets), or set kafka.consumer.\"auto.offset.reset\" to earliest or latest"
    )]
    NoOffset { partition: String, problem: String },
    #[error("a verdict or dead letter for topic `{topic}` cannot be delivered: {problem}")]
    Delivery { topic: String, problem: String },
    #[error(
        "the brokers have shut transactional.id `{0}` out: another process uses it too, or its transaction was open for longer than transaction.timeout.ms; this process ends, and nothing is published twice. Replicas need different kafka.producer.\"transactional.id\" or kafka.consumer.\"group.instance.id\""
    )]
    Fenced(String),
    #[error(
        "a transaction cannot go on: {0}; what it held is not published and will be judged again"
    )]
    Transaction(String),
    #[error("stopped before Kafka answered")]
    Stopped,
    #[error("Kafka: {0}")]
    Client(String),
}

impl From<ClientError> for KafkaError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::ClientConfig(why, problem, name, value) => {
                let is_known = why != RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN;
                let problem = cause::wrong_value(&problem, &name, &value, is_known);
                KafkaError::Setting { name, problem }
            }
            ClientError::ClientCreation(problem) => cause::refused(&problem),
            other => KafkaError::Client(other.to_string()),
        }
    }
}

/// The last thing librdkafka complained about: it knows why a broker cannot be reached, its errors do not say.
#[derive(Clone, Debug, Default)]
struct LastComplaint(Arc<Mutex<Option<String>>>);

impl LastComplaint {
    fn set(&self, complaint: &str) {
        // The other side has hung up; why, it may say before or after. And why there was no first token was said before.
        if complaint.contains("Send failed") || complaint.contains(sasl::UNSECURED) {
            return self.set_first(complaint);
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(complaint.to_owned());
    }

    fn set_first(&self, complaint: &str) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.get_or_insert_with(|| complaint.to_owned());
    }

    fn get(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// librdkafka's error callback. That all brokers are down is a consequence: the reason came before it.
    fn error(&self, client: &str, error: &ClientError, reason: &str) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            self.set(reason);
        }
        report(client, error, reason);
    }

    /// Passes librdkafka's log on to ours. It recovers by itself from what it calls an error, so that is a warning.
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Debug => tracing::debug!(facility, "{message}"),
            RDKafkaLogLevel::Info | RDKafkaLogLevel::Notice => {
                // A broker that hangs up at once: no error to librdkafka, but all that is known.
                if facility == "FAIL" {
                    self.set_first(message);
                }
                tracing::info!(facility, "{message}");
            }
            _ => {
                self.set(message);
                tracing::warn!(facility, "{message}");
            }
        }
    }
}

/// Passes librdkafka's errors on. That brokers are gone it also logs, once an attempt to connect; here it would repeat
/// many times a second.
fn report(client: &str, error: &ClientError, reason: &str) {
    use RDKafkaErrorCode as Code;
    match error.rdkafka_error_code() {
        Some(Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve) => {
            tracing::debug!("{client}: {error}: {reason}");
        }
        _ => tracing::warn!("{client}: {error}: {reason}"),
    }
}

/// Settings for both clients, then for this one; what delivery depends on is added by the caller.
fn client_config(kafka: &Kafka, own: &ClientSettings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &kafka.brokers);
    config.set("client.id", "residuald");
    for (name, value) in kafka.client.iter().chain(own.iter()) {
        config.set(name, value);
    }
    // As Java's client calls it.
    if config.get("auto.offset.reset") == Some("none") {
        config.set("auto.offset.reset", "error");
    }
    config
}

/// A client, unless it could not sign in whatever the brokers say.
fn client<C, T>(config: &ClientConfig, context: C) -> Result<T, KafkaError>
where
    C: ClientContext,
    T: FromClientConfigAndContext<C>,
{
    sasl::check(config)?;
    Ok(config.create_with_context(context)?)
}

fn listed(topics: &[String]) -> String {
    let quoted: Vec<String> = topics.iter().map(|topic| format!("`{topic}`")).collect();
    quoted.join(", ")
}

/// A message as a record; nothing is copied.
fn record<'m>(message: &'m BorrowedMessage<'_>) -> Record<'m> {
    Record {
        topic: message.topic(),
        partition: message.partition(),
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis(),
        key: message.key(),
        headers: headers::headers(message),
        payload: message.payload(),
    }
}

fn owned_headers(headers: &[(String, Option<Vec<u8>>)]) -> OwnedHeaders {
    let mut owned = OwnedHeaders::new_with_capacity(headers.len());
    for (key, value) in headers {
        let value = value.as_deref();
        owned = owned.insert(Header { key, value });
    }
    owned
}

/// Whether another producer with the same transactional.id has taken over, or the brokers let this one go.
fn is_fenced(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch
    )
}

/// Has librdkafka parse every setting without connecting.
///
/// # Errors
/// [`KafkaError::Setting`] for the first that it does not know or accept.
pub fn check_settings(kafka: &Kafka) -> Result<(), KafkaError> {
    for config in [source::config(kafka), sink::config(kafka)] {
        config.create_native_config()?;
        sasl::check(&config)?;
    }
    Ok(())
}

/// Waits until `topic` can be used and returns the number of its partitions. `serve` lets the client say what is wrong:
/// a consumer reports only when it is polled.
fn await_topic<C: ClientContext>(
    client: &Client<C>,
    kafka: &Kafka,
    topic: &str,
    complaint: &LastComplaint,
    stop: &Shutdown,
    serve: impl Fn(),
) -> Result<usize, KafkaError> {
    const RETRY: Duration = Duration::from_millis(200);
    /// One attempt, so that a stop is noticed soon.
    const ATTEMPT: Duration = Duration::from_secs(1);
    /// A topic that is being created automatically is unknown for a moment.
    const GRACE: Duration = Duration::from_secs(2);
    let started = Instant::now();
    let mut reason = String::from("no answer");
    let mut answered = None;
    loop {
        if stop.is_requested() {
            return Err(KafkaError::Stopped);
        }
        // Tokens are asked for here as well, and without one nothing connects.
        serve();
        let left = kafka.connect_timeout.saturating_sub(started.elapsed());
        match client.fetch_metadata(Some(topic), left.clamp(RETRY, ATTEMPT)) {
            Ok(metadata) => {
                let found = metadata.topics().iter().find(|t| t.name() == topic);
                let error = found.and_then(|t| t.error()).map(RDKafkaErrorCode::from);
                match (found, error) {
                    (Some(found), None) if !found.partitions().is_empty() => {
                        return Ok(found.partitions().len());
                    }
                    (
                        _,
                        Some(
                            code @ (RDKafkaErrorCode::TopicAuthorizationFailed
                            | RDKafkaErrorCode::InvalidTopic),
                        ),
                    ) => {
                        return Err(KafkaError::Client(format!("topic `{topic}`: {code}")));
                    }
                    _ => {}
                }
                if answered.get_or_insert_with(Instant::now).elapsed() >= GRACE {
                    return Err(KafkaError::TopicAbsent {
                        topic: topic.to_owned(),
                        brokers: kafka.brokers.clone(),
                    });
                }
            }
            Err(e) => {
                serve();
                reason = complaint.get().unwrap_or_else(|| e.to_string());
            }
        }
        if started.elapsed() >= kafka.connect_timeout && answered.is_none() {
            return Err(KafkaError::Unreachable {
                brokers: kafka.brokers.clone(),
                waited: kafka.connect_timeout,
                reason,
            });
        }
        std::thread::sleep(RETRY);
    }
}
