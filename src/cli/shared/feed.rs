//! Sends records to a topic at a given rate, for `produce`, `demo` and `bench`.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::config;
use crate::dataset::{self, Example};
use crate::kafka::embedded::SPREAD;
use crate::kafka::{SendError, Sink, Ticket};
use crate::message::record_message;
use crate::shutdown::Shutdown;

use crate::failure::Failure;

/// Pause between attempts: short enough for an even flow, long enough to use little CPU.
const PAUSE: Duration = Duration::from_millis(1);

/// Returns connection settings without topics and consumer group.
pub fn kafka_settings(brokers: &str, client: config::ClientSettings) -> config::KafkaSettings {
    config::KafkaSettings {
        brokers: brokers.to_owned(),
        topics: Vec::new(),
        group_id: String::new(),
        guarantee: config::Guarantee::AtLeastOnce,
        connect_timeout: Duration::from_secs(10),
        drain_timeout: Duration::from_secs(10),
        client,
        consumer: config::ClientSettings::default(),
        producer: config::ClientSettings::default(),
    }
}

/// Returns the connection without the daemon's transactional.id, because the verb would otherwise fence the daemon.
pub fn without_transactions(kafka: config::KafkaSettings) -> config::KafkaSettings {
    let mut producer = config::ClientSettings::default();
    let others = kafka.producer.iter();
    for (name, value) in others.filter(|(name, _)| *name != "transactional.id") {
        producer.set(name, value);
    }
    config::KafkaSettings {
        guarantee: config::Guarantee::AtLeastOnce,
        producer,
        ..kafka
    }
}

/// Connects a producer to the embedded broker.
pub fn embedded_sink(brokers: &str, topic: &str, stop: &Shutdown) -> Result<Sink, Failure> {
    let mut kafka = kafka_settings(brokers, config::ClientSettings::default());
    kafka.producer.set(SPREAD.0, SPREAD.1);
    Ok(Sink::connect(&kafka, &[topic], stop)?)
}

/// Reads a whole file of records. It must have at least one.
pub fn read_sample(file: &Path, options: &dataset::Options) -> Result<Vec<Example>, Failure> {
    let sample: Vec<Example> = dataset::open(file, options)?.collect::<Result<_, _>>()?;
    if sample.is_empty() {
        return Err(Failure::data(format!(
            "{} contains no records",
            file.display()
        )));
    }
    Ok(sample)
}

/// Returns the mean payload size in bytes.
pub fn average_payload(sample: &[Example]) -> u64 {
    let total: usize = sample.iter().map(|e| e.payload.len()).sum();
    (total / sample.len()) as u64
}

/// Sends records and ensures that each is delivered.
pub struct Feed<'a> {
    pub sink: &'a Sink,
    pub topic: &'a str,
    /// Records per second. If `None`, records are sent as fast as the broker accepts them.
    pub rate: Option<f64>,
    pub stop: &'a Shutdown,
}

impl Feed<'_> {
    /// Sends until the records end or a stop is requested, and waits for all deliveries. Returns the number of delivered records.
    /// Before each record, it waits until `may_send(sent)` is true.
    ///
    /// # Errors
    /// The first error of the input or of a delivery.
    pub fn run(
        &self,
        examples: impl Iterator<Item = Result<Example, Failure>>,
        mut may_send: impl FnMut(u64) -> bool,
    ) -> Result<u64, Failure> {
        let started = Instant::now();
        let (mut sent, mut delivered) = (0, 0);
        for example in examples {
            let example = example?;
            self.pace(started, sent);
            while !may_send(sent) && !self.stop.is_requested() {
                std::thread::sleep(PAUSE);
            }
            if self.stop.is_requested() {
                break;
            }
            let message = record_message(example.key, example.payload);
            let ticket = Ticket {
                sequence: sent,
                alone: false,
                timestamp_ms: message.timestamp_ms,
            };
            while let Err(e) = self.sink.send(ticket, self.topic, &message) {
                match e {
                    SendError::QueueFull => delivered += self.await_deliveries(PAUSE)?,
                    e => return Err(refused(e)),
                }
            }
            sent += 1;
            delivered += self.await_deliveries(Duration::ZERO)?;
        }
        while delivered < sent {
            delivered += self.await_deliveries(PAUSE)?;
        }
        Ok(delivered)
    }

    fn pace(&self, started: Instant, sent: u64) {
        let Some(rate) = self.rate else { return };
        let due = started + Duration::from_secs_f64(sent as f64 / rate);
        while !self.stop.is_requested() {
            let early = due.saturating_duration_since(Instant::now());
            if early.is_zero() {
                return;
            }
            std::thread::sleep(early.min(Duration::from_millis(100)));
        }
    }

    /// Collects finished deliveries, waiting up to `patience` for the first.
    fn await_deliveries(&self, patience: Duration) -> Result<u64, Failure> {
        let deliveries = self.sink.deliveries();
        let first = deliveries.recv_timeout(patience).ok();
        let mut count = 0;
        for delivery in first.into_iter().chain(deliveries.try_iter()) {
            delivery.result.map_err(refused)?;
            count += 1;
        }
        Ok(count)
    }
}

fn refused(error: SendError) -> Failure {
    match error {
        SendError::TooLarge { topic, message } => Failure::data(format!(
            "a record of {} bytes is too large for topic `{topic}`: raise message.max.bytes (-X) and the topic's max.message.bytes",
            message.payload.len()
        )),
        SendError::Failed { topic, problem }
        | SendError::Invalid { topic, problem, .. }
        | SendError::NoTopic { topic, problem, .. } => {
            Failure::data(format!("topic `{topic}`: {problem}"))
        }
        SendError::QueueFull => Failure::internal("the producer's queue is full"),
    }
}
