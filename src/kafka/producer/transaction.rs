//! Exactly-once delivery: messages and the offsets of their records become visible together or not at all (KIP-98,
//! KIP-447).

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{RecvTimeoutError, bounded};
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError as ClientError;
use rdkafka::producer::Producer;
use rdkafka::types::RDKafkaErrorCode;

use super::super::client::last_error::LastError;
use super::super::consumer::membership::Membership;
use super::super::error::{KafkaError, is_fenced};
use super::context::VerdictProducer;
use crate::batch::TopicPartition;
use crate::config::{KafkaSettings, TRANSACTION_TIMEOUT_MS};
use crate::shutdown::Shutdown;

/// The timeout of one attempt at a call that waits for brokers. It is short, so that a stop request is noticed quickly.
const ATTEMPT: Duration = Duration::from_secs(1);
/// The timeout for aborting the transaction when the process ends.
const LAST_ATTEMPT: Duration = Duration::from_millis(500);
/// The timeout for sending offsets. With one producer, offsets are sent only once, because librdkafka keeps a request
/// that timed out and may send it later, in whatever transaction is open then.
const OFFSETS_WITHIN: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);
/// The number of polls after which a call counts as stuck. librdkafka 2.12 forgets the timeout of a call when the group
/// coordinator moves at the wrong moment (confluentinc/librdkafka#5456). Polls are counted instead of time, because
/// time also passes while this process is frozen.
const STUCK_AFTER: u32 = 60;

/// How a transaction ended.
#[derive(Debug)]
pub enum Outcome {
    Committed,
    /// Nothing of the transaction is visible. Its messages may be sent again in another transaction.
    Aborted(String),
    /// The call into librdkafka does not return, and nothing is committed. Another producer with the same
    /// transactional.id aborts the transaction for good.
    Stuck,
}

/// Makes a producer transactional. If a previous producer has the same transactional.id, the brokers fence it at once
/// and abort its transaction. If its id differs, they abort that transaction only after `transaction.timeout.ms`.
pub(super) fn configure(config: &mut ClientConfig, kafka: &KafkaSettings) {
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
    // Without this setting, librdkafka derives the message timeout from the transaction timeout.
    if config.get("message.timeout.ms") == Some("0") {
        config.remove("message.timeout.ms");
    }
}

/// Returns a name that is different for every start and every machine.
fn unique() -> String {
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy().into_owned();
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanoseconds = since.map_or(0, |since| since.as_nanos());
    format!("{host}-{}-{nanoseconds:x}", std::process::id())
}

/// The transactions of one producer.
pub(super) struct Transactions {
    /// Shared with calls that may never return.
    pub producer: Arc<VerdictProducer>,
    /// `None` without exactly-once.
    pub id: Option<String>,
}

impl Transactions {
    /// Fences every other producer with this transactional.id and finishes its open transaction.
    pub fn init(
        &self,
        brokers: &str,
        patience: Duration,
        last_error: &LastError,
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
                    brokers: brokers.to_owned(),
                    waited: patience,
                    reason: last_error.get().unwrap_or_else(|| error.to_string()),
                });
            }
        }
    }

    pub fn begin(&self) -> Result<(), KafkaError> {
        self.producer
            .begin_transaction()
            .map_err(|e| self.fatal(&e))
    }

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
        let sent = self.call(give_up, move |producer| {
            producer.send_offsets_to_transaction(&offsets, &metadata, OFFSETS_WITHIN)
        });
        match sent {
            Ok(()) => {}
            Err(CallError::MustAbort(problem)) => return self.abort(problem, give_up),
            Err(CallError::TimedOut(_) | CallError::Stuck) => return Ok(Outcome::Stuck),
            Err(CallError::Fatal(error)) => return Err(error),
        }
        match self.call_until_done(give_up, |producer| producer.commit_transaction(ATTEMPT)) {
            Ok(()) => Ok(Outcome::Committed),
            Err(CallError::MustAbort(problem) | CallError::TimedOut(problem)) => {
                self.abort(problem, give_up)
            }
            // The commit may or may not have succeeded. Only the group's offsets show which, and the next start reads
            // them.
            Err(CallError::Stuck) => Err(KafkaError::Transaction(
                "the brokers did not confirm whether it was committed".into(),
            )),
            Err(CallError::Fatal(error)) => Err(error),
        }
    }

    pub fn abort(&self, problem: String, give_up: &Shutdown) -> Result<Outcome, KafkaError> {
        match self.call_until_done(give_up, |producer| producer.abort_transaction(ATTEMPT)) {
            // After giving up, the brokers abort the transaction when its timeout is over.
            Ok(()) | Err(CallError::MustAbort(_) | CallError::TimedOut(_)) => {
                Ok(Outcome::Aborted(problem))
            }
            Err(CallError::Stuck) => Ok(Outcome::Stuck),
            // librdkafka reports this fatal error if the brokers have no transaction to abort. They could not open it,
            // because a topic was deleted. Another producer can start over.
            Err(CallError::Fatal(KafkaError::Transaction(error))) => {
                tracing::warn!(
                    "a transaction cannot be aborted, so its producer will be replaced: {error}"
                );
                Ok(Outcome::Stuck)
            }
            Err(CallError::Fatal(error)) => Err(error),
        }
    }

    /// Tries to abort the transaction when the process ends, so that consumers need not wait for
    /// `transaction.timeout.ms`.
    pub fn abort_if_open(&self) {
        if self.id.is_some() {
            let abort = |producer: &VerdictProducer| {
                let _ = producer.abort_transaction(LAST_ATTEMPT);
            };
            call_with_watchdog(&self.producer, abort, &|polls| {
                polls * POLL >= 2 * LAST_ATTEMPT
            });
        }
    }

    /// Repeats a call that times out, until `give_up` is requested. librdkafka resumes the same call.
    fn call_until_done(
        &self,
        give_up: &Shutdown,
        call: impl Fn(&VerdictProducer) -> Result<(), ClientError> + Copy + Send + 'static,
    ) -> Result<(), CallError> {
        loop {
            match self.call(give_up, call) {
                Err(CallError::TimedOut(problem)) if !give_up.is_requested() => {
                    tracing::debug!("transaction: {problem}; trying again");
                }
                ended => return ended,
            }
        }
    }

    fn call(
        &self,
        give_up: &Shutdown,
        call: impl FnOnce(&VerdictProducer) -> Result<(), ClientError> + Send + 'static,
    ) -> Result<(), CallError> {
        let is_stuck =
            |polls| polls >= STUCK_AFTER || give_up.is_requested() && polls * POLL >= 2 * ATTEMPT;
        let error = match call_with_watchdog(&self.producer, call, &is_stuck) {
            Some(Ok(())) => return Ok(()),
            Some(Err(error)) => error,
            None => return Err(CallError::Stuck),
        };
        let timed_out = match &error {
            ClientError::Transaction(e) if e.is_fatal() => false,
            ClientError::Transaction(e) if e.txn_requires_abort() => {
                return Err(CallError::MustAbort(error.to_string()));
            }
            ClientError::Transaction(e) => e.is_retriable(),
            ClientError::Flush(code) => *code == RDKafkaErrorCode::OperationTimedOut,
            _ => false,
        };
        match timed_out {
            true => Err(CallError::TimedOut(error.to_string())),
            false => Err(CallError::Fatal(self.fatal(&error))),
        }
    }

    fn fatal(&self, error: &ClientError) -> KafkaError {
        match (error.rdkafka_error_code(), &self.id) {
            (Some(code), Some(id)) if is_fenced(code) => KafkaError::Fenced(id.clone()),
            _ => KafkaError::Transaction(error.to_string()),
        }
    }
}

/// Why a transactional call failed, named by what can succeed next.
enum CallError {
    /// Another transaction can succeed.
    MustAbort(String),
    /// The same call can succeed when it is repeated.
    TimedOut(String),
    /// Another producer can succeed.
    Stuck,
    Fatal(KafkaError),
}

/// Makes a call on another thread and polls for its result. If `is_stuck` returns true for the number of polls so far,
/// the thread is left behind and the result is `None`.
fn call_with_watchdog<T: Send + 'static>(
    producer: &Arc<VerdictProducer>,
    call: impl FnOnce(&VerdictProducer) -> T + Send + 'static,
    is_stuck: &dyn Fn(u32) -> bool,
) -> Option<T> {
    let (result, returned) = bounded(1);
    let producer = Arc::clone(producer);
    std::thread::spawn(move || result.send(call(&producer)));
    let mut polls = 0;
    loop {
        match returned.recv_timeout(POLL) {
            Ok(result) => return Some(result),
            Err(RecvTimeoutError::Timeout) if !is_stuck(polls) => polls += 1,
            Err(_) => return None,
        }
    }
}
