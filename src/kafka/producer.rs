//! The Kafka producer. It is idempotent and reports the delivery of every message.

pub(super) mod context;
pub(super) mod limits;
pub mod replay;
pub(super) mod transaction;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseRecord, Producer};
use rdkafka::types::RDKafkaErrorCode;

use self::context::{Delivery, SendError, SinkContext, Ticket, VerdictProducer, send_error};
use self::limits::Limits;
use self::transaction::{Outcome, Transactions};
use super::client;
use super::client::await_topic::await_topic;
use super::client::last_error::LastError;
use super::client::reconnect;
use super::consumer::membership::Membership;
use super::error::{KafkaError, is_topic_missing};
use super::messages::owned_headers;
use crate::batch::TopicPartition;
use crate::config::{Guarantee, KafkaSettings};
use crate::message::Message;
use crate::shutdown::Shutdown;

/// How long the brokers may take to answer whether a topic exists.
const ASK_WITHIN: Duration = Duration::from_secs(1);
/// The shortest time between two requests for the limits of the output topics.
const ASK_EVERY: Duration = Duration::from_secs(1);

pub struct Sink {
    producer: Arc<VerdictProducer>,
    transactions: Transactions,
    deliveries: Receiver<Delivery>,
    config: ClientConfig,
    limits: Limits,
    limits_asked: Option<Instant>,
    /// The topic used in requests that check whether a broker answers.
    probe_topic: Option<String>,
}

pub(super) fn config(kafka: &KafkaSettings) -> ClientConfig {
    let mut config = client::config(kafka, &kafka.producer);
    config.set("enable.idempotence", "true").set("acks", "all");
    if kafka.guarantee != Guarantee::AtLeastOnce {
        transaction::configure(&mut config, kafka);
    }
    config
}

/// The largest batch in bytes. librdkafka's default is 1,000,000.
fn batch_size(config: &ClientConfig) -> usize {
    let size = config.get("batch.size").and_then(|size| size.parse().ok());
    size.unwrap_or(1_000_000)
}

impl Sink {
    /// Connects and checks that every topic exists.
    ///
    /// # Errors
    /// [`KafkaError`] when a setting is refused, no broker answers in time, a topic is absent, or a stop comes first.
    pub fn connect(
        kafka: &KafkaSettings,
        topics: &[&str],
        stop: &Shutdown,
    ) -> Result<Sink, KafkaError> {
        let last_error = LastError::default();
        let mut config = config(kafka);
        let mut sink = Sink::open(config.clone(), &last_error)?;
        for topic in topics {
            await_topic(
                sink.producer.client(),
                kafka,
                topic,
                &last_error,
                stop,
                || {},
            )?;
        }
        let limits = Limits::ask(&config, topics);
        for line in limits.lines() {
            tracing::info!("{line}");
        }
        // A topic refuses a batch larger than its message limit, however small the messages in the batch are.
        let least = limits.least().filter(|least| *least < batch_size(&config));
        if let Some(least) = least {
            config.set("batch.size", least.to_string());
            sink = Sink::open(config, &last_error)?;
        }
        sink.limits = limits;
        sink.probe_topic = topics.first().map(|topic| (*topic).to_owned());
        sink.keep_connected();
        if sink.transactions.id.is_some() {
            sink.init_transactions(kafka.connect_timeout, &last_error, stop)?;
        }
        Ok(sink)
    }

    fn open(config: ClientConfig, last_error: &LastError) -> Result<Sink, KafkaError> {
        let (sender, deliveries) = unbounded();
        let context = SinkContext {
            last_error: last_error.clone(),
            deliveries: sender,
            is_transactional: config.get("transactional.id").is_some(),
        };
        let producer: Arc<VerdictProducer> = Arc::new(client::create(&config, context)?);
        Ok(Sink {
            transactions: Transactions::new(&producer, &config),
            producer,
            deliveries,
            limits: Limits::of_client(&config),
            limits_asked: None,
            probe_topic: None,
            config,
        })
    }

    fn init_transactions(
        &self,
        patience: Duration,
        last_error: &LastError,
        stop: &Shutdown,
    ) -> Result<(), KafkaError> {
        let brokers = self.config.get("bootstrap.servers").unwrap_or_default();
        self.transactions.init(brokers, patience, last_error, stop)
    }

    fn keep_connected(&self) {
        if let Some(topic) = &self.probe_topic {
            let servers = self.config.get("bootstrap.servers").unwrap_or_default();
            reconnect::keep(&self.producer, topic, servers);
        }
    }

    /// Replaces the producer. The new one fences the old one and aborts its open transaction, if any.
    ///
    /// # Errors
    /// [`KafkaError`] when the brokers refuse.
    pub fn replace(&mut self, patience: Duration, stop: &Shutdown) -> Result<(), KafkaError> {
        let last_error = LastError::default();
        let mut sink = Sink::open(self.config.clone(), &last_error)?;
        sink.limits = self.limits.clone();
        sink.probe_topic.clone_from(&self.probe_topic);
        sink.transactions.succeed(&self.transactions);
        sink.keep_connected();
        sink.init_transactions(patience, &last_error, stop)?;
        let stuck = std::mem::replace(self, sink);
        // Dropping the stuck producer may wait for its stuck call.
        std::thread::spawn(move || drop(stuck));
        Ok(())
    }

    /// Requests the limits of the topics again, because they may have been changed. Does nothing if the last request
    /// was recent.
    pub fn ask_limits(&mut self) {
        let recently = |asked: Instant| asked.elapsed() < ASK_EVERY;
        if self.limits_asked.is_some_and(recently) {
            return;
        }
        self.limits_asked = Some(Instant::now());
        self.limits = Limits::ask(&self.config, &self.limits.topics());
    }

    /// Replaces the producer by one with smaller batches, because its batches are too large for a topic.
    ///
    /// # Errors
    /// [`KafkaError`] when the brokers refuse.
    pub fn shrink_batches(
        &mut self,
        patience: Duration,
        stop: &Shutdown,
    ) -> Result<(), KafkaError> {
        self.ask_limits();
        // If the limit of a topic is unknown, each message is sent in its own batch.
        let bytes = self.limits.least().filter(|_| self.limits.are_known());
        self.config
            .set("batch.size", bytes.unwrap_or(1).to_string());
        self.replace(patience, stop)
    }

    /// Hands a message to librdkafka. Its [`Delivery`] follows later, unless this call fails.
    ///
    /// # Errors
    /// [`SendError`]. It contains the message if that can be sent again, later or in another shape.
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

    /// Returns whether a topic exists and may be written, or `None` if the brokers do not answer.
    pub fn has_topic(&self, topic: &str) -> Option<bool> {
        let client = self.producer.client();
        let metadata = client.fetch_metadata(Some(topic), ASK_WITHIN).ok()?;
        let found = metadata.topics().iter().find(|t| t.name() == topic)?;
        match found.error().map(RDKafkaErrorCode::from) {
            None => Some(!found.partitions().is_empty()),
            Some(code) => is_topic_missing(code).then_some(false),
        }
    }

    /// Returns the topics that were named when connecting.
    pub fn topics(&self) -> Vec<String> {
        self.limits.topics()
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Returns the channel of deliveries, in the order of the brokers' answers.
    pub fn deliveries(&self) -> &Receiver<Delivery> {
        &self.deliveries
    }

    /// Discards undelivered messages. Otherwise the process would wait at exit for brokers that may be gone.
    pub fn abandon(&self) {
        self.producer
            .purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
        let _ = self.producer.flush(Duration::from_millis(100));
        self.transactions.abort_if_open();
    }

    /// Returns whether [`Sink::replace`] must be called before the next transaction, because the brokers may still hold
    /// a request of an earlier one.
    pub fn must_be_replaced(&self) -> bool {
        self.transactions.must_change_producer()
    }

    /// Opens a transaction for everything sent from now on.
    ///
    /// # Errors
    /// When this producer is fenced.
    pub fn begin(&self) -> Result<(), KafkaError> {
        self.transactions.begin()
    }

    /// Commits the open transaction together with `offsets`, the offsets to read next, in the consumer's name.
    /// `sequence` is the sequence of the first batch in the transaction. Waits for the brokers until `give_up` is
    /// requested.
    ///
    /// # Errors
    /// When this producer is fenced or cannot make transactions any more, or the brokers do not confirm whether the
    /// transaction is committed.
    pub fn commit(
        &self,
        membership: &Membership,
        sequence: u64,
        offsets: &[(TopicPartition, i64)],
        give_up: &Shutdown,
    ) -> Result<Outcome, KafkaError> {
        self.transactions
            .commit(membership, sequence, offsets, give_up)
    }

    /// Aborts the open transaction because of `problem`.
    ///
    /// # Errors
    /// When this producer is fenced or cannot make transactions any more.
    pub fn abort(&self, problem: String, give_up: &Shutdown) -> Result<Outcome, KafkaError> {
        self.transactions.abort(problem, give_up)
    }
}
