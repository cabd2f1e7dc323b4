//! Exactly-once: messages and the offsets of the records behind them become visible together or not at all (KIP-98,
//! KIP-447).

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError as ClientError;
use rdkafka::producer::Producer;
use rdkafka::types::RDKafkaErrorCode;

use super::{KafkaError, LastComplaint, Membership, Sink};
use crate::batch::TopicPartition;
use crate::config::{Kafka, TRANSACTION_TIMEOUT_MS};
use crate::shutdown::Shutdown;

/// One attempt at a call that may wait for brokers, so that a stop is noticed soon.
const ATTEMPT: Duration = Duration::from_secs(1);
/// What an abort gets when nobody waits for it any more.
const LAST_ATTEMPT: Duration = Duration::from_millis(500);

/// How a transaction ended.
#[derive(Debug)]
pub enum Outcome {
    Committed,
    /// Nothing of it is visible; what it held may be sent again in another.
    Aborted(String),
}

/// What makes a producer transactional. A predecessor with the same id is shut out at once and its open transaction
/// aborted; without one the brokers abort it after `transaction.timeout.ms`.
pub(super) fn configure(config: &mut ClientConfig, kafka: &Kafka) {
    let instance = "group.instance.id";
    let instance = kafka.consumer.get(instance).or(kafka.client.get(instance));
    let own = instance.map_or_else(unique, str::to_owned);
    let defaults = [
        ("transactional.id", format!("{}-{own}", kafka.group_id)),
        ("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS.to_string()),
    ];
    for (name, value) in defaults {
        if config.get(name).is_none() {
            config.set(name, value);
        }
    }
    // librdkafka derives it from the transaction's.
    if config.get("message.timeout.ms") == Some("0") {
        config.remove("message.timeout.ms");
    }
}

/// Different for every start on every machine.
fn unique() -> String {
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy().into_owned();
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanoseconds = since.map_or(0, |since| since.as_nanos());
    format!("{host}-{}-{nanoseconds:x}", std::process::id())
}

impl Sink {
    /// Shuts out every other producer with this transactional.id and finishes what it left open.
    pub(super) fn init_transactions(
        &self,
        kafka: &Kafka,
        complaint: &LastComplaint,
        stop: &Shutdown,
    ) -> Result<(), KafkaError> {
        let started = Instant::now();
        loop {
            let error = match self.producer.init_transactions(ATTEMPT) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if stop.is_requested() {
                return Err(KafkaError::Stopped);
            }
            if !matches!(Trouble::of(&error), Trouble::Passing) {
                return Err(self.fatal(&error));
            }
            if started.elapsed() >= kafka.connect_timeout {
                return Err(KafkaError::Unreachable {
                    brokers: kafka.brokers.clone(),
                    waited: kafka.connect_timeout,
                    reason: complaint.get().unwrap_or_else(|| error.to_string()),
                });
            }
        }
    }

    /// Opens a transaction; everything sent from now on is in it.
    ///
    /// # Errors
    /// When this producer is shut out.
    pub fn begin(&self) -> Result<(), KafkaError> {
        self.producer
            .begin_transaction()
            .map_err(|e| self.fatal(&e))
    }

    /// Commits what was sent together with `offsets`, those to be read next, in the name of the consumer. `sequence`
    /// is that of the first batch in it. Waits for brokers as long as it takes, or until `give_up`.
    ///
    /// # Errors
    /// When this producer is shut out or can do no more transactions.
    pub fn commit(
        &self,
        membership: &Membership,
        sequence: u64,
        offsets: &[(TopicPartition, i64)],
        give_up: &Shutdown,
    ) -> Result<Outcome, KafkaError> {
        let Some(metadata) = membership.metadata(sequence) else {
            let problem = "the partitions are lost, others judge their records".to_owned();
            return self.abort(give_up).map(|()| Outcome::Aborted(problem));
        };
        let offsets = membership.offsets(offsets);
        let producer = &self.producer;
        let send = || producer.send_offsets_to_transaction(&offsets, &metadata, ATTEMPT);
        let ended = patiently(give_up, send)
            .and_then(|()| patiently(give_up, || producer.commit_transaction(ATTEMPT)));
        match ended {
            Ok(()) => Ok(Outcome::Committed),
            Err(error) if matches!(Trouble::of(&error), Trouble::Fatal) => Err(self.fatal(&error)),
            Err(error) => {
                self.abort(give_up)?;
                Ok(Outcome::Aborted(error.to_string()))
            }
        }
    }

    /// Makes nothing of the open transaction visible.
    ///
    /// # Errors
    /// When this producer is shut out or can do no more transactions.
    pub fn abort(&self, give_up: &Shutdown) -> Result<(), KafkaError> {
        match patiently(give_up, || self.producer.abort_transaction(ATTEMPT)) {
            Err(error) if matches!(Trouble::of(&error), Trouble::Fatal) => Err(self.fatal(&error)),
            // Given up: the brokers abort it when its time is over.
            _ => Ok(()),
        }
    }

    /// Tries to spare readers the wait for `transaction.timeout.ms`.
    pub(super) fn abort_if_open(&self) {
        if self.transactional_id.is_some() {
            let _ = self.producer.abort_transaction(LAST_ATTEMPT);
        }
    }

    fn fatal(&self, error: &ClientError) -> KafkaError {
        match (error.rdkafka_error_code(), &self.transactional_id) {
            (
                Some(
                    RDKafkaErrorCode::Fenced
                    | RDKafkaErrorCode::ProducerFenced
                    | RDKafkaErrorCode::InvalidProducerEpoch,
                ),
                Some(id),
            ) => KafkaError::Fenced(id.clone()),
            _ => KafkaError::Transaction(error.to_string()),
        }
    }
}

/// Repeats a call that timed out; librdkafka takes it up where it was.
fn patiently(
    give_up: &Shutdown,
    call: impl Fn() -> Result<(), ClientError>,
) -> Result<(), ClientError> {
    loop {
        match call() {
            Err(error)
                if matches!(Trouble::of(&error), Trouble::Passing) && !give_up.is_requested() =>
            {
                tracing::debug!("transaction: {error}; trying again");
            }
            ended => return ended,
        }
    }
}

/// What an error leaves to do.
enum Trouble {
    /// The same call again.
    Passing,
    /// Another transaction.
    Abort,
    /// Another producer.
    Fatal,
}

impl Trouble {
    fn of(error: &ClientError) -> Trouble {
        match error {
            ClientError::Transaction(e) if e.is_fatal() => Trouble::Fatal,
            ClientError::Transaction(e) if e.txn_requires_abort() => Trouble::Abort,
            ClientError::Transaction(e) if e.is_retriable() => Trouble::Passing,
            ClientError::Flush(RDKafkaErrorCode::OperationTimedOut) => Trouble::Passing,
            _ => Trouble::Fatal,
        }
    }
}
