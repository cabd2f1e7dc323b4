//! The producer: idempotent, every delivery reported back.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::{DeliveryResult, Headers as _, Message as _};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;

use super::watch::is_missing;
use super::{
    KafkaError, LastComplaint, Limits, await_topic, client, client_config, owned_headers, reach,
    sasl, transaction,
};
use crate::config::{Guarantee, Kafka};
use crate::message::{About, Message};
use crate::shutdown::Shutdown;

/// How long the brokers may take to say whether a topic is there.
const ASK_WITHIN: Duration = Duration::from_secs(1);
/// After a question about limits the next one waits so long.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What goes with a message to the brokers and comes back with their answer.
#[derive(Debug, Clone, Copy)]
pub struct Ticket {
    /// The batch it belongs to.
    pub sequence: u64,
    /// No other message was on its way, so that a refusal is about this one.
    pub alone: bool,
    /// The message's own timestamp, which librdkafka does not give back.
    pub timestamp_ms: Option<i64>,
}

/// How one message of a batch fared.
#[derive(Debug)]
pub struct Delivery {
    pub ticket: Ticket,
    pub result: Result<(), SendError>,
}

/// A message that did not get through, given back where something can still be done.
#[derive(Debug)]
pub enum SendError {
    /// The local queue is full: wait for deliveries, then send again.
    QueueFull,
    /// Larger than the client or the topic takes.
    TooLarge {
        topic: String,
        message: Box<Message>,
    },
    /// Something of it, or of another message in the same batch, is against the topic's settings: its timestamp, or that it
    /// has no key.
    Invalid {
        topic: String,
        message: Box<Message>,
        problem: String,
    },
    /// The topic is not there, or may not be written.
    NoTopic {
        topic: String,
        message: Box<Message>,
        problem: String,
    },
    /// librdkafka gave up for good.
    Failed { topic: String, problem: String },
}

pub struct Sink {
    /// Shared with calls that may not come back, see [`transaction`].
    pub(super) producer: Arc<ThreadedProducer<Context>>,
    /// Only with exactly-once.
    pub(super) transactional_id: Option<String>,
    deliveries: Receiver<Delivery>,
    config: ClientConfig,
    limits: Limits,
    limits_asked: Option<Instant>,
    /// The topic by which it is found out whether brokers can be reached.
    kept_by: Option<String>,
}

pub(super) fn config(kafka: &Kafka) -> ClientConfig {
    let mut config = client_config(kafka, &kafka.producer);
    config.set("enable.idempotence", "true").set("acks", "all");
    if kafka.guarantee != Guarantee::AtLeastOnce {
        transaction::configure(&mut config, kafka);
    }
    config
}

/// What a batch may come to, by librdkafka's default if nothing else is set.
fn batch_size(config: &ClientConfig) -> usize {
    let size = config.get("batch.size").and_then(|size| size.parse().ok());
    size.unwrap_or(1_000_000)
}

impl Sink {
    /// Connects and makes sure that every topic exists.
    ///
    /// # Errors
    /// [`KafkaError`] when a setting is refused, no broker answers in time, a topic is absent, or a stop comes first.
    pub fn connect(kafka: &Kafka, topics: &[&str], stop: &Shutdown) -> Result<Sink, KafkaError> {
        let complaint = LastComplaint::default();
        let mut config = config(kafka);
        let mut sink = Sink::open(config.clone(), &complaint)?;
        for topic in topics {
            await_topic(
                sink.producer.client(),
                kafka,
                topic,
                &complaint,
                stop,
                || {},
            )?;
        }
        let limits = Limits::ask(&config, topics);
        for line in limits.lines() {
            tracing::info!("{line}");
        }
        // A topic refuses a batch that is too large, whatever is in it.
        let least = limits.least().filter(|least| *least < batch_size(&config));
        if let Some(least) = least {
            config.set("batch.size", least.to_string());
            sink = Sink::open(config, &complaint)?;
        }
        sink.limits = limits;
        sink.kept_by = topics.first().map(|topic| (*topic).to_owned());
        sink.keep();
        if sink.transactional_id.is_some() {
            sink.init_transactions(kafka.connect_timeout, &complaint, stop)?;
        }
        Ok(sink)
    }

    fn open(config: ClientConfig, complaint: &LastComplaint) -> Result<Sink, KafkaError> {
        let (sender, deliveries) = unbounded();
        let transactional_id = config.get("transactional.id").map(str::to_owned);
        let context = Context {
            complaint: complaint.clone(),
            deliveries: sender,
            transactional: transactional_id.is_some(),
        };
        Ok(Sink {
            producer: Arc::new(client(&config, context)?),
            transactional_id,
            deliveries,
            limits: Limits::of_client(&config),
            limits_asked: None,
            kept_by: None,
            config,
        })
    }

    fn keep(&self) {
        if let Some(topic) = &self.kept_by {
            reach::keep(&self.producer, topic, self.brokers());
        }
    }

    /// Another producer in place of one whose transaction is stuck; it shuts the old one out and aborts that.
    ///
    /// # Errors
    /// [`KafkaError`] when the brokers do not let it.
    pub fn replace(&mut self, patience: Duration, stop: &Shutdown) -> Result<(), KafkaError> {
        let complaint = LastComplaint::default();
        let mut sink = Sink::open(self.config.clone(), &complaint)?;
        sink.limits = self.limits.clone();
        sink.kept_by.clone_from(&self.kept_by);
        sink.keep();
        sink.init_transactions(patience, &complaint, stop)?;
        let stuck = std::mem::replace(self, sink);
        // Ending it could wait for the stuck call.
        std::thread::spawn(move || drop(stuck));
        Ok(())
    }

    /// Asks again for the limits of the topics, if that was not done just now: somebody may have changed them.
    pub fn ask_limits(&mut self) {
        let recently = |asked: Instant| asked.elapsed() < ASK_EVERY;
        if self.limits_asked.is_some_and(recently) {
            return;
        }
        self.limits_asked = Some(Instant::now());
        self.limits = Limits::ask(&self.config, &self.limits.topics());
    }

    /// Another producer in place of one whose batches are too large for a topic.
    ///
    /// # Errors
    /// [`KafkaError`] when the brokers do not let it.
    pub fn shrink_batches(
        &mut self,
        patience: Duration,
        stop: &Shutdown,
    ) -> Result<(), KafkaError> {
        self.ask_limits();
        // Where a limit is not known, each message goes by itself.
        let bytes = self.limits.least().filter(|_| self.limits.are_known());
        self.config
            .set("batch.size", bytes.unwrap_or(1).to_string());
        self.replace(patience, stop)
    }

    /// Hands a message over; its [`Delivery`] comes later, unless this fails at once.
    ///
    /// # Errors
    /// [`SendError`], with the message where sending it in another shape or later makes sense.
    pub fn send(&self, ticket: Ticket, topic: &str, message: &Message) -> Result<(), SendError> {
        let sent = Box::new((ticket, message.about.clone()));
        let mut record = BaseRecord::with_opaque_to(topic, sent)
            .payload(&message.payload)
            .headers(owned_headers(&message.headers));
        if let Some(key) = &message.key {
            record = record.key(key);
        }
        if let Some(timestamp) = message.timestamp_ms {
            record = record.timestamp(timestamp);
        }
        self.producer
            .send(record)
            .map_err(|(error, _)| send_error(&error, topic, || message.clone()))
    }

    /// Whether a topic is there and may be written; `None` if the brokers do not say.
    pub fn has_topic(&self, topic: &str) -> Option<bool> {
        let client = self.producer.client();
        let metadata = client.fetch_metadata(Some(topic), ASK_WITHIN).ok()?;
        let found = metadata.topics().iter().find(|t| t.name() == topic)?;
        match found.error().map(RDKafkaErrorCode::from) {
            None => Some(!found.partitions().is_empty()),
            Some(code) => is_missing(code).then_some(false),
        }
    }

    /// The topics that were named at the start.
    pub fn topics(&self) -> Vec<String> {
        self.limits.topics()
    }

    pub(super) fn brokers(&self) -> &str {
        self.config.get("bootstrap.servers").unwrap_or_default()
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Outcomes of what was sent, in the order in which brokers answer.
    pub fn deliveries(&self) -> &Receiver<Delivery> {
        &self.deliveries
    }

    /// Throws away what is not delivered: without it, ending the process waits for brokers that may be gone.
    pub fn abandon(&self) {
        self.producer
            .purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
        let _ = self.producer.flush(Duration::from_millis(100));
        self.abort_if_open();
    }
}

/// What a failure means, with the message where that is of use.
fn send_error(error: &ClientError, topic: &str, message: impl FnOnce() -> Message) -> SendError {
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
        code if is_missing(*code) || *code == Code::UnknownPartition => SendError::NoTopic {
            topic,
            message: Box::new(message()),
            problem,
        },
        _ => SendError::Failed { topic, problem },
    }
}

pub(super) struct Context {
    complaint: LastComplaint,
    deliveries: Sender<Delivery>,
    transactional: bool,
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
        self.complaint.error("producer", &error, reason);
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<(Ticket, About)>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Self::DeliveryOpaque) {
        let (ticket, about) = *sent;
        let result = match result {
            // Acknowledged as a repeat, so its place is not known: in a transaction better to send it again than to
            // believe that it is the same one, and in this transaction.
            Ok(message) if self.transactional && message.offset() < 0 => Err(SendError::Failed {
                topic: message.topic().to_owned(),
                problem: "a message was acknowledged without an offset".to_owned(),
            }),
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
        // Nobody listens any more once the publisher has ended.
        let _ = self.deliveries.send(Delivery { ticket, result });
    }
}
