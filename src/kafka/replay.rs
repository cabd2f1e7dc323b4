//! The producer of replayed letters: a transaction for each chunk, and one replay of a dead letter topic at a time.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;

use super::{
    KafkaError, LastComplaint, await_topic, client, client_config, is_fenced, owned_headers, sasl,
};
use crate::config::Kafka;
use crate::dead_letter::Revived;
use crate::shutdown::Shutdown;

/// How long a chunk may take before the brokers abort it, and how long its end is waited for.
const TRANSACTION: Duration = Duration::from_secs(60);
/// Less than a transaction's, which librdkafka insists on.
const DELIVERY: Duration = Duration::from_secs(45);
const QUEUE_FULL_WAIT: Duration = Duration::from_millis(10);

#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error("another replay of topic `{topic}` has begun and has taken over: this one stops")]
    Fenced { topic: String },
    #[error("{problem}: nothing of this chunk is replayed")]
    Refused { problem: String },
}

/// Holds the right to replay a dead letter topic, until somebody else takes it.
pub struct Replay {
    producer: ThreadedProducer<Context>,
    kafka: Kafka,
    topic: String,
    complaint: LastComplaint,
    refused: Refused,
}

/// The first message that was refused since it was last taken, and why.
#[derive(Clone, Default)]
struct Refused(Arc<Mutex<Option<String>>>);

impl Refused {
    fn set(&self, problem: String) {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(problem);
    }

    fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn config(kafka: &Kafka, topic: &str) -> ClientConfig {
    let mut config = client_config(kafka, &kafka.producer);
    // The same setting by another name; ours must win.
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
    /// Connects, and takes over from any other replay of the dead letter topic `topic`: what that had not committed is
    /// aborted, and it can commit nothing more.
    ///
    /// # Errors
    /// [`ReplayError`] when no broker answers in time, a topic is absent, or a stop comes first.
    pub fn connect(kafka: &Kafka, topic: &str, stop: &Shutdown) -> Result<Replay, ReplayError> {
        let complaint = LastComplaint::default();
        let refused = Refused::default();
        let context = Context {
            complaint: complaint.clone(),
            refused: refused.clone(),
        };
        let producer = client(&config(kafka, topic), context)?;
        let replay = Replay {
            producer,
            kafka: kafka.clone(),
            topic: topic.to_owned(),
            complaint,
            refused,
        };
        replay.partitions(topic, stop)?;
        replay.until_done(|p, left| p.init_transactions(left))?;
        Ok(replay)
    }

    /// The number of partitions of a topic that must exist.
    ///
    /// # Errors
    /// [`KafkaError::TopicAbsent`], or that no broker answers.
    pub fn partitions(&self, topic: &str, stop: &Shutdown) -> Result<usize, ReplayError> {
        let client = self.producer.client();
        let count = await_topic(client, &self.kafka, topic, &self.complaint, stop, || {})?;
        Ok(count)
    }

    /// Sends all of `records` or, if it fails, none.
    ///
    /// # Errors
    /// [`ReplayError`]. Unless the brokers went away at the very end of the transaction, nothing was sent; and then, too,
    /// what is in Kafka is all or nothing.
    pub fn send(&self, records: &[Revived]) -> Result<(), ReplayError> {
        self.producer
            .begin_transaction()
            .map_err(|e| self.explain(e))?;
        let sent = records.iter().try_for_each(|record| self.produce(record));
        let committed = sent.and_then(|()| self.until_done(|p, left| p.commit_transaction(left)));
        committed.map_err(|error| {
            // Hopeless where others hold the transaction; the brokers end it without us in time.
            let _ = self.producer.abort_transaction(Duration::from_secs(5));
            match (error, self.refused.take()) {
                (ReplayError::Refused { .. }, Some(problem)) => ReplayError::Refused { problem },
                (error, _) => error,
            }
        })
    }

    fn produce(&self, revived: &Revived) -> Result<(), ReplayError> {
        let headers = owned_headers(&revived.headers);
        let mut record: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to(&revived.topic).headers(headers);
        record.partition = revived.partition;
        record.key = revived.key.as_deref();
        record.payload = revived.payload.as_deref();
        record.timestamp = revived.timestamp_ms;
        let deadline = Instant::now() + TRANSACTION;
        while let Err((error, unsent)) = self.producer.send(record) {
            let full = ClientError::MessageProduction(RDKafkaErrorCode::QueueFull);
            if error != full || Instant::now() >= deadline {
                if let ClientError::MessageProduction(code) = error {
                    self.refused
                        .set(refusal(&revived.topic, code, unsent.payload));
                }
                return Err(self.explain(error));
            }
            record = unsent;
            std::thread::sleep(QUEUE_FULL_WAIT);
        }
        Ok(())
    }

    /// Repeats what librdkafka says may be repeated.
    fn until_done(
        &self,
        attempt: impl Fn(&ThreadedProducer<Context>, Duration) -> Result<(), ClientError>,
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
                            reason: self.complaint.get().unwrap_or_else(|| e.to_string()),
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

/// Why a message was refused, with what to do where that is known.
fn refusal(topic: &str, code: RDKafkaErrorCode, payload: Option<&[u8]>) -> String {
    let size = payload.map_or(0, <[u8]>::len);
    match code {
        RDKafkaErrorCode::MessageSizeTooLarge => format!(
            "a letter of {size} bytes is too large for topic `{topic}`: raise message.max.bytes here and max.message.bytes there"
        ),
        RDKafkaErrorCode::InvalidRecord => format!(
            "topic `{topic}` refuses a record ({code}): is it compacted? A compacted topic takes no record without a key"
        ),
        code => format!("topic `{topic}`: {code}"),
    }
}

struct Context {
    complaint: LastComplaint,
    refused: Refused,
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, source: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        sasl::token(source)
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.complaint.log(level, facility, message);
    }

    fn error(&self, error: ClientError, reason: &str) {
        self.complaint.error("replay", &error, reason);
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        use RDKafkaErrorCode as Code;
        match result {
            // Thrown away because of another one, which is the reason.
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
