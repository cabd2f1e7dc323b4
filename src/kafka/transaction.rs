//! Exactly-once: messages and the offsets of the records behind them become visible together or not at all (KIP-98,
//! KIP-447).

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{RecvTimeoutError, bounded};
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError as ClientError;
use rdkafka::producer::{Producer, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;

use super::sink::Context;
use super::{KafkaError, LastComplaint, Membership, Sink, is_fenced};
use crate::batch::TopicPartition;
use crate::config::{Kafka, TRANSACTION_TIMEOUT_MS};
use crate::shutdown::Shutdown;

/// One attempt at a call that may wait for brokers, so that a stop is noticed soon.
const ATTEMPT: Duration = Duration::from_secs(1);
/// What an abort gets when nobody waits for it any more.
const LAST_ATTEMPT: Duration = Duration::from_millis(500);
/// Sending offsets is not tried twice with one producer: librdkafka keeps what timed out and may send it later, in whatever
/// transaction is open then.
const OFFSETS_WITHIN: Duration = Duration::from_secs(5);
const LOOK_UP: Duration = Duration::from_millis(100);
/// A call that has not come back at so many looks will not: librdkafka 2.12 forgets its timeout when the group coordinator
/// moves at the wrong moment (confluentinc/librdkafka#5456). Looks and not time, because this process may be frozen.
const STUCK: u32 = 60;

/// How a transaction ended.
#[derive(Debug)]
pub enum Outcome {
    Committed,
    /// Nothing of it is visible; what it held may be sent again in another.
    Aborted(String),
    /// librdkafka does not come back, and nothing is committed. Another producer with the same transactional.id aborts it
    /// for good.
    Stuck,
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
        patience: Duration,
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
            if !matches!(&error, ClientError::Transaction(e) if e.is_retriable()) {
                return Err(self.fatal(&error));
            }
            if started.elapsed() >= patience {
                return Err(KafkaError::Unreachable {
                    brokers: self.brokers().to_owned(),
                    waited: patience,
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
            return self.abort("the partitions are lost".to_owned(), give_up);
        };
        let offsets = membership.offsets(offsets);
        let sent = self.once(give_up, move |producer| {
            producer.send_offsets_to_transaction(&offsets, &metadata, OFFSETS_WITHIN)
        });
        match sent {
            Ok(()) => {}
            Err(Trouble::Abort(problem)) => return self.abort(problem, give_up),
            Err(Trouble::TimedOut(_) | Trouble::Stuck) => return Ok(Outcome::Stuck),
            Err(Trouble::Fatal(error)) => return Err(error),
        }
        match self.patiently(give_up, |producer| producer.commit_transaction(ATTEMPT)) {
            Ok(()) => Ok(Outcome::Committed),
            Err(Trouble::Abort(problem) | Trouble::TimedOut(problem)) => {
                self.abort(problem, give_up)
            }
            // It may be committed or not: only the group's offsets tell, which a new start asks for.
            Err(Trouble::Stuck) => Err(KafkaError::Transaction(
                "the brokers do not say whether it is committed".into(),
            )),
            Err(Trouble::Fatal(error)) => Err(error),
        }
    }

    /// Makes nothing of the open transaction visible, because of `problem`.
    ///
    /// # Errors
    /// When this producer is shut out or can do no more transactions.
    pub fn abort(&self, problem: String, give_up: &Shutdown) -> Result<Outcome, KafkaError> {
        match self.patiently(give_up, |producer| producer.abort_transaction(ATTEMPT)) {
            // Given up: the brokers abort it when its time is over.
            Ok(()) | Err(Trouble::Abort(_) | Trouble::TimedOut(_)) => Ok(Outcome::Aborted(problem)),
            Err(Trouble::Stuck) => Ok(Outcome::Stuck),
            // librdkafka gives itself up when the brokers know of no transaction that it could abort: they could not open it
            // for a topic that is gone. Another producer can start anew.
            Err(Trouble::Fatal(KafkaError::Transaction(error))) => {
                tracing::warn!("a transaction cannot be aborted: {error}");
                Ok(Outcome::Stuck)
            }
            Err(Trouble::Fatal(error)) => Err(error),
        }
    }

    /// Tries to spare readers the wait for `transaction.timeout.ms`.
    pub(super) fn abort_if_open(&self) {
        if self.transactional_id.is_some() {
            let abort = |producer: &ThreadedProducer<Context>| {
                let _ = producer.abort_transaction(LAST_ATTEMPT);
            };
            apart(&self.producer, abort, &|looks| {
                looks * LOOK_UP >= 2 * LAST_ATTEMPT
            });
        }
    }

    /// Repeats a call that timed out, which librdkafka takes up where it was, until `give_up`.
    fn patiently(
        &self,
        give_up: &Shutdown,
        call: impl Fn(&ThreadedProducer<Context>) -> Result<(), ClientError> + Copy + Send + 'static,
    ) -> Result<(), Trouble> {
        loop {
            match self.once(give_up, call) {
                Err(Trouble::TimedOut(problem)) if !give_up.is_requested() => {
                    tracing::debug!("transaction: {problem}; trying again");
                }
                ended => return ended,
            }
        }
    }

    fn once(
        &self,
        give_up: &Shutdown,
        call: impl FnOnce(&ThreadedProducer<Context>) -> Result<(), ClientError> + Send + 'static,
    ) -> Result<(), Trouble> {
        let over =
            |looks| looks >= STUCK || give_up.is_requested() && looks * LOOK_UP >= 2 * ATTEMPT;
        let error = match apart(&self.producer, call, &over) {
            Some(Ok(())) => return Ok(()),
            Some(Err(error)) => error,
            None => return Err(Trouble::Stuck),
        };
        let timed_out = match &error {
            ClientError::Transaction(e) if e.is_fatal() => false,
            ClientError::Transaction(e) if e.txn_requires_abort() => {
                return Err(Trouble::Abort(error.to_string()));
            }
            ClientError::Transaction(e) => e.is_retriable(),
            ClientError::Flush(code) => *code == RDKafkaErrorCode::OperationTimedOut,
            _ => false,
        };
        match timed_out {
            true => Err(Trouble::TimedOut(error.to_string())),
            false => Err(Trouble::Fatal(self.fatal(&error))),
        }
    }

    fn fatal(&self, error: &ClientError) -> KafkaError {
        match (error.rdkafka_error_code(), &self.transactional_id) {
            (Some(code), Some(id)) if is_fenced(code) => KafkaError::Fenced(id.clone()),
            _ => KafkaError::Transaction(error.to_string()),
        }
    }
}

/// Why a call did not do what it should.
enum Trouble {
    /// Another transaction may.
    Abort(String),
    /// The same call again may.
    TimedOut(String),
    /// Another producer may.
    Stuck,
    Fatal(KafkaError),
}

/// Makes a call on a thread of its own and looks for its answer until `over`; `None` leaves it behind.
fn apart<T: Send + 'static>(
    producer: &Arc<ThreadedProducer<Context>>,
    call: impl FnOnce(&ThreadedProducer<Context>) -> T + Send + 'static,
    over: &dyn Fn(u32) -> bool,
) -> Option<T> {
    let (answer, answered) = bounded(1);
    let producer = Arc::clone(producer);
    std::thread::spawn(move || answer.send(call(&producer)));
    let mut looks = 0;
    loop {
        match answered.recv_timeout(LOOK_UP) {
            Ok(answer) => return Some(answer),
            Err(RecvTimeoutError::Timeout) if !over(looks) => looks += 1,
            Err(_) => return None,
        }
    }
}
