//! The producer's rdkafka context: reports the delivery of every message to the publisher.

use std::error::Error;

use crossbeam_channel::Sender;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::{DeliveryResult, Headers as _, Message as _};
use rdkafka::producer::{ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;

use super::super::client::last_error::LastError;
use super::super::client::sasl;
use super::super::error::is_topic_missing;
use crate::message::{About, Message};

/// The producer of verdicts and dead letters.
pub(super) type VerdictProducer = ThreadedProducer<SinkContext>;

/// Identifies a sent message. librdkafka returns it with the brokers' answer.
#[derive(Debug, Clone, Copy)]
pub struct Ticket {
    /// The batch to which the message belongs.
    pub sequence: u64,
    /// Whether no other message was in flight. If so, a refusal concerns this message.
    pub alone: bool,
    /// The message's own timestamp, which librdkafka does not return.
    pub timestamp_ms: Option<i64>,
}

/// The result of sending one message.
#[derive(Debug)]
pub struct Delivery {
    pub ticket: Ticket,
    pub result: Result<(), SendError>,
}

/// A message that was not delivered. The error contains the message if it can be sent again, later or in another shape.
#[derive(Debug)]
pub enum SendError {
    /// The local queue is full: wait for deliveries, then send again.
    QueueFull,
    /// The message is larger than the client or the topic accepts.
    TooLarge {
        topic: String,
        message: Box<Message>,
    },
    /// This message, or another one in its batch, violates the topic's settings: its timestamp is out of range, or its
    /// key is missing.
    Invalid {
        topic: String,
        message: Box<Message>,
        problem: String,
    },
    /// The topic does not exist, or may not be written.
    NoTopic {
        topic: String,
        message: Box<Message>,
        problem: String,
    },
    /// librdkafka has given up on the message.
    Failed { topic: String, problem: String },
}

/// Classifies a failure. Calls `message` only if the message can be sent again.
pub(super) fn send_error(
    error: &ClientError,
    topic: &str,
    message: impl FnOnce() -> Message,
) -> SendError {
    use RDKafkaErrorCode as Code;
    let (topic, problem) = (topic.to_owned(), error.to_string());
    let ClientError::MessageProduction(code) = error else {
        return SendError::Failed { topic, problem };
    };
    match code {
        Code::QueueFull => SendError::QueueFull,
        Code::MessageSizeTooLarge => SendError::TooLarge {
            topic,
            message: Box::new(message()),
        },
        Code::InvalidTimestamp | Code::InvalidRecord | Code::InvalidDifferentRecord => {
            SendError::Invalid {
                topic,
                message: Box::new(message()),
                problem,
            }
        }
        code if is_topic_missing(*code) || *code == Code::UnknownPartition => SendError::NoTopic {
            topic,
            message: Box::new(message()),
            problem,
        },
        _ => SendError::Failed { topic, problem },
    }
}

pub(super) struct SinkContext {
    pub last_error: LastError,
    pub deliveries: Sender<Delivery>,
    pub is_transactional: bool,
}

impl ClientContext for SinkContext {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, source: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        sasl::token(source)
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.last_error.log(level, facility, message);
    }

    fn error(&self, error: ClientError, reason: &str) {
        self.last_error.error("producer", &error, reason);
    }
}

impl ProducerContext for SinkContext {
    type DeliveryOpaque = Box<(Ticket, About)>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Self::DeliveryOpaque) {
        let (ticket, about) = *sent;
        let result = match result {
            // The brokers took the message for a duplicate, so it has no offset. In a transaction it is sent again,
            // because the original may belong to an earlier transaction.
            Ok(message) if self.is_transactional && message.offset() < 0 => {
                Err(SendError::Failed {
                    topic: message.topic().to_owned(),
                    problem: "a message was acknowledged without an offset".to_owned(),
                })
            }
            Ok(_) => Ok(()),
            Err((error, message)) => Err(send_error(error, message.topic(), || Message {
                about,
                key: message.key().map(<[u8]>::to_vec),
                headers: message.headers().map_or_else(Vec::new, |headers| {
                    let own = headers.iter();
                    own.map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec)))
                        .collect()
                }),
                payload: message.payload().unwrap_or_default().to_vec(),
                timestamp_ms: ticket.timestamp_ms,
            })),
        };
        // This fails only if the publisher has ended.
        let _ = self.deliveries.send(Delivery { ticket, result });
    }
}
