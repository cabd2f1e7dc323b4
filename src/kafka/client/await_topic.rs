//! Waits at startup until a topic is usable.

use std::time::{Duration, Instant};

use rdkafka::client::{Client, ClientContext};
use rdkafka::types::RDKafkaErrorCode;

use super::super::error::KafkaError;
use super::last_error::LastError;
use crate::config::KafkaSettings;
use crate::shutdown::Shutdown;

const RETRY: Duration = Duration::from_millis(200);
/// The timeout of one attempt. It is short, so that a stop request is noticed quickly.
const ATTEMPT: Duration = Duration::from_secs(1);
/// How long a topic may be unknown, because an automatically created topic takes a moment to appear.
const GRACE: Duration = Duration::from_secs(2);

/// Waits until `topic` is usable, and returns its number of partitions. `serve` runs the client's callbacks, because a
/// consumer reports errors and requests tokens only while it is polled.
pub(in crate::kafka) fn await_topic<C: ClientContext>(
    client: &Client<C>,
    kafka: &KafkaSettings,
    topic: &str,
    last_error: &LastError,
    stop: &Shutdown,
    serve: impl Fn(),
) -> Result<usize, KafkaError> {
    let started = Instant::now();
    let mut reason = String::from("no answer");
    let mut answered = None;
    loop {
        if stop.is_requested() {
            return Err(KafkaError::Stopped);
        }
        // Without a token, no connection succeeds.
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
                reason = last_error.get().unwrap_or_else(|| e.to_string());
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
