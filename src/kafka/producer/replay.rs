//! Replays dead letters. Each chunk is one transaction, and only one replay of a dead letter topic runs at a time.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;

use super::super::client::await_topic::await_topic;
use super::super::client::last_error::LastError;
use super::super::client::{self, sasl};
use super::super::error::{KafkaError, is_fenced};
use super::super::messages::owned_headers;
use crate::config::KafkaSettings;
use crate::dead_letter::ReplayRecord;
use crate::shutdown::Shutdown;

/// The transaction timeout of a chunk, which also bounds the wait for the transaction to end.
const TRANSACTION: Duration = Duration::from_secs(60);
/// The delivery timeout. librdkafka requires that it is shorter than the transaction timeout.
const DELIVERY: Duration = Duration::from_secs(45);
const QUEUE_FULL_WAIT: Duration = Duration::from_millis(10);

#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error("another replay of topic `{topic}` has started and taken over: this one stops")]
    Fenced { topic: String },
    #[error("{problem}: no record of this chunk is replayed")]
    Refused { problem: String },
}

/// The exclusive right to replay a dead letter topic, until another replay takes over.
pub struct Replay {
    producer: ThreadedProducer<ReplayContext>,
    kafka: KafkaSettings,
    topic: String,
    last_error: LastError,
    refused: FirstRefusal,
}

/// Why the first message since the last `take` was refused.
#[derive(Clone, Default)]
struct FirstRefusal(Arc<Mutex<Option<String>>>);

impl FirstRefusal {
    fn set(&self, problem: String) {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(problem);
    }

    fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn config(kafka: &KafkaSettings, topic: &str) -> ClientConfig {
    let mut config = client::config(kafka, &kafka.producer);
    // This setting is an alias of message.timeout.ms, which is set below.
    config.remove("delivery.timeout.ms");
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("transactional.id", format!("residuald-replay-{topic}"))
        .set(
            "transaction.timeout.ms",
            TRANSACTION.as_millis().to_string(),
        )
        .set("message.timeout.ms", DELIVERY.as_millis().to_string());
    config
}

impl Replay {
    /// Connects and takes over from any other replay of the dead letter topic `topic`. The brokers abort the open
    /// transaction of that replay, and refuse its further commits.
    ///
    /// # Errors
    /// [`ReplayError`] when no broker answers in time, a topic is absent, or a stop comes first.
    pub fn connect(
        kafka: &KafkaSettings,
        topic: &str,
        stop: &Shutdown,
    ) -> Result<Replay, ReplayError> {
        let last_error = LastError::default();
        let refused = FirstRefusal::default();
        let context = ReplayContext {
            last_error: last_error.clone(),
            refused: refused.clone(),
        };
        let producer = client::create(&config(kafka, topic), context)?;
        let replay = Replay {
            producer,
            kafka: kafka.clone(),
            topic: topic.to_owned(),
            last_error,
            refused,
        };
        replay.partitions(topic, stop)?;
        replay.until_done(|p, left| p.init_transactions(left))?;
        Ok(replay)
    }

    /// Returns the number of partitions of a topic that must exist.
    ///
    /// # Errors
    /// [`KafkaError`] when the topic is absent or no broker answers.
    pub fn partitions(&self, topic: &str, stop: &Shutdown) -> Result<usize, ReplayError> {
        let client = self.producer.client();
        let count = await_topic(client, &self.kafka, topic, &self.last_error, stop, || {})?;
        Ok(count)
    }

    /// Sends all `records` in one transaction, so all or none become visible.
    ///
    /// # Errors
    /// [`ReplayError`]. No record was sent, unless the connection broke during the commit of the transaction. In that
    /// case, either all or none of the records are in Kafka.
    pub fn send(&self, records: &[ReplayRecord]) -> Result<(), ReplayError> {
        self.producer
            .begin_transaction()
            .map_err(|e| self.explain(e))?;
        let sent = records.iter().try_for_each(|record| self.produce(record));
        let committed = sent.and_then(|()| self.until_done(|p, left| p.commit_transaction(left)));
        committed.map_err(|error| {
            // This fails if another replay took over. In that case, the brokers abort the transaction.
            let _ = self.producer.abort_transaction(Duration::from_secs(5));
            match (error, self.refused.take()) {
                (ReplayError::Refused { .. }, Some(problem)) => ReplayError::Refused { problem },
                (error, _) => error,
            }
        })
    }

    fn produce(&self, replayed: &ReplayRecord) -> Result<(), ReplayError> {
        let headers = owned_headers(&replayed.headers);
        let mut record: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to(&replayed.topic).headers(headers);
        record.partition = replayed.partition;
        record.key = replayed.key.as_deref();
        record.payload = replayed.payload.as_deref();
        record.timestamp = replayed.timestamp_ms;
        let deadline = Instant::now() + TRANSACTION;
        while let Err((error, unsent)) = self.producer.send(record) {
            let full = ClientError::MessageProduction(RDKafkaErrorCode::QueueFull);
            if error != full || Instant::now() >= deadline {
                if let ClientError::MessageProduction(code) = error {
                    self.refused
                        .set(refusal(&replayed.topic, code, unsent.payload));
                }
                return Err(self.explain(error));
            }
            record = unsent;
            std::thread::sleep(QUEUE_FULL_WAIT);
        }
        Ok(())
    }

    /// Repeats a call while librdkafka marks its errors as retriable.
    fn until_done(
        &self,
        attempt: impl Fn(&ThreadedProducer<ReplayContext>, Duration) -> Result<(), ClientError>,
    ) -> Result<(), ReplayError> {
        let started = Instant::now();
        loop {
            let left = TRANSACTION.saturating_sub(started.elapsed());
            match attempt(&self.producer, left.max(Duration::from_millis(100))) {
                Ok(()) => return Ok(()),
                Err(ClientError::Transaction(e)) if e.is_retriable() => {
                    if started.elapsed() >= TRANSACTION {
                        return Err(ReplayError::Kafka(KafkaError::Unreachable {
                            brokers: self.kafka.brokers.clone(),
                            waited: TRANSACTION,
                            reason: self.last_error.get().unwrap_or_else(|| e.to_string()),
                        }));
                    }
                }
                Err(error) => return Err(self.explain(error)),
            }
        }
    }

    fn explain(&self, error: ClientError) -> ReplayError {
        let fatal = self.producer.client().fatal_error();
        let code = match &error {
            ClientError::Transaction(e) => Some(e.code()),
            other => other.rdkafka_error_code(),
        };
        let codes = [code, fatal.as_ref().map(|(code, _)| *code)];
        if codes.into_iter().flatten().any(is_fenced) {
            return ReplayError::Fenced {
                topic: self.topic.clone(),
            };
        }
        let problem = fatal.map_or_else(|| error.to_string(), |(_, problem)| problem);
        ReplayError::Refused { problem }
    }
}

/// Describes why a message was refused, and what to do if that is known.
fn refusal(topic: &str, code: RDKafkaErrorCode, payload: Option<&[u8]>) -> String {
    let size = payload.map_or(0, <[u8]>::len);
    match code {
        RDKafkaErrorCode::MessageSizeTooLarge => format!(
            "a dead letter of {size} bytes is too large for topic `{topic}`: raise message.max.bytes of the client and max.message.bytes of the topic"
        ),
        RDKafkaErrorCode::InvalidRecord => format!(
            "topic `{topic}` refuses a record ({code}): is it compacted? A compacted topic accepts no record without a key"
        ),
        code => format!("topic `{topic}`: {code}"),
    }
}

struct ReplayContext {
    last_error: LastError,
    refused: FirstRefusal,
}

impl ClientContext for ReplayContext {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, source: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        sasl::token(source)
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.last_error.log(level, facility, message);
    }

    fn error(&self, error: ClientError, reason: &str) {
        self.last_error.error("replay", &error, reason);
    }
}

impl ProducerContext for ReplayContext {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        use RDKafkaErrorCode as Code;
        match result {
            // A purged message is not the cause: another message was refused before it.
            Ok(_)
            | Err((ClientError::MessageProduction(Code::PurgeQueue | Code::PurgeInflight), _)) => {}
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
                self.refused
                    .set(refusal(message.topic(), code, message.payload()));
            }
        }
    }
}
