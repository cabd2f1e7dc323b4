//! Exactly-once delivery: messages and the offsets of their records become visible together or not at all (KIP-98,
//! KIP-447).

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{RecvTimeoutError, bounded};
use rdkafka::TopicPartitionList;
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

/// librdkafka's `retry.backoff.ms` for transactions, unless it is set. A longer wait tells a request that was repeated
/// from one that was slow.
const RETRY_BACKOFF_MS: u64 = 500;
const RETRY_BACKOFF: &str = "retry.backoff.ms";
/// librdkafka varies the backoff by up to a fifth.
const SHORTEST_BACKOFF: f64 = 0.8;

/// How a transaction ended.
#[derive(Debug)]
pub enum Outcome {
    Committed,
    /// Nothing of the transaction is visible. Its messages may be sent again in another transaction.
    Aborted(String),
    /// No commit was requested from the brokers, and the abort did not end. Another producer with the same
    /// transactional.id aborts the transaction for good.
    Stuck,
    /// The wait for the brokers was given up. The commit may still happen, so nothing may be sent again.
    GivenUp,
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
        (RETRY_BACKOFF, RETRY_BACKOFF_MS.to_string()),
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

/// Returns the shortest time after which librdkafka repeats a request.
fn repeated_after(config: &ClientConfig) -> Duration {
    let set = |name| config.get(name).and_then(|ms| ms.parse().ok());
    let backoff = Duration::from_millis(set(RETRY_BACKOFF).unwrap_or(RETRY_BACKOFF_MS));
    let most = Duration::from_millis(set("retry.backoff.max.ms").unwrap_or(1000));
    backoff.mul_f64(SHORTEST_BACKOFF).min(most)
}

/// The transactions of one producer.
pub(super) struct Transactions {
    /// Shared with calls that may never return.
    pub producer: Arc<VerdictProducer>,
    /// `None` without exactly-once.
    pub id: Option<String>,
    /// Whether the group coordinator refused the last offsets because it does not know one of their topics.
    topic_unknown: AtomicBool,
    repeated_after: Duration,
    /// Whether a request of a transaction took so long that librdkafka may have sent it twice.
    is_repeated: AtomicBool,
}

impl Transactions {
    pub fn new(producer: &Arc<VerdictProducer>, config: &ClientConfig) -> Transactions {
        Transactions {
            producer: Arc::clone(producer),
            id: config.get("transactional.id").map(str::to_owned),
            topic_unknown: AtomicBool::new(false),
            repeated_after: repeated_after(config),
            is_repeated: AtomicBool::new(false),
        }
    }

    /// Takes over what the coordinator has said to the producer that this one replaces.
    pub fn succeed(&self, replaced: &Transactions) {
        let unknown = replaced.topic_unknown.load(Ordering::Relaxed);
        self.topic_unknown.store(unknown, Ordering::Relaxed);
    }

    /// Returns whether another producer must make the next transaction.
    ///
    /// If a connection breaks, librdkafka sends a request again. The first copy may still wait in a broker. Requests
    /// of librdkafka 2.12 do not say which transaction of their producer they belong to (KIP-890), so a late copy would
    /// act on the next transaction: commit half of it without its offsets, abort it before its offsets are committed,
    /// or replace its offsets by older ones. Another producer has another epoch, so the brokers refuse late copies.
    pub fn must_change_producer(&self) -> bool {
        self.is_repeated.load(Ordering::Relaxed)
    }

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
        let leave_out = self.topic_unknown.swap(false, Ordering::Relaxed);
        let offsets = membership.offsets(offsets, leave_out);
        let listed = tracing::enabled!(tracing::Level::DEBUG).then(|| listed(&offsets));
        let sent = self.call(give_up, move |producer| {
            producer.send_offsets_to_transaction(&offsets, &metadata, OFFSETS_WITHIN)
        });
        match sent {
            Ok(()) => {}
            Err(CallError::MustAbort(problem, code)) => {
                let unknown = code == RDKafkaErrorCode::UnknownTopicOrPartition;
                self.topic_unknown.store(unknown, Ordering::Relaxed);
                return self.abort(problem, give_up);
            }
            Err(CallError::TimedOut(_) | CallError::Stuck) => return Ok(Outcome::Stuck),
            Err(CallError::Fatal(error)) => return Err(error),
        }
        match self.call_until_done(give_up, |producer| producer.commit_transaction(ATTEMPT)) {
            Ok(()) => {
                tracing::debug!(sequence, offsets = listed, "transaction committed");
                Ok(Outcome::Committed)
            }
            Err(CallError::MustAbort(problem, _)) => self.abort_commit(problem, give_up),
            Err(CallError::TimedOut(_)) => Ok(Outcome::GivenUp),
            Err(CallError::Stuck) => Err(KafkaError::InDoubt(
                "a call of librdkafka did not return".into(),
            )),
            Err(CallError::Fatal(error)) => Err(error),
        }
    }

    /// Aborts a transaction whose commit failed. The brokers may have committed it nevertheless, for instance when
    /// their answer was an error. They refuse to abort a committed transaction, so only a confirmed abort shows that
    /// its messages may be sent again.
    fn abort_commit(&self, problem: String, give_up: &Shutdown) -> Result<Outcome, KafkaError> {
        match self.abort(problem.clone(), give_up)? {
            Outcome::Stuck => Err(KafkaError::InDoubt(problem)),
            ended => Ok(ended),
        }
    }

    /// Aborts the open transaction because of `problem`.
    pub fn abort(&self, problem: String, give_up: &Shutdown) -> Result<Outcome, KafkaError> {
        match self.call_until_done(give_up, |producer| producer.abort_transaction(ATTEMPT)) {
            Ok(()) => Ok(Outcome::Aborted(problem)),
            // The brokers abort the transaction when its timeout is over.
            Err(CallError::TimedOut(_)) => Ok(Outcome::GivenUp),
            Err(CallError::MustAbort(error, _)) => {
                tracing::warn!(
                    "a transaction cannot be aborted, so its producer will be replaced: {error}"
                );
                Ok(Outcome::Stuck)
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
        let started = Instant::now();
        let returned = call_with_watchdog(&self.producer, call, &is_stuck);
        if started.elapsed() >= self.repeated_after {
            self.is_repeated.store(true, Ordering::Relaxed);
        }
        let error = match returned {
            Some(Ok(())) => return Ok(()),
            Some(Err(error)) => error,
            None => return Err(CallError::Stuck),
        };
        let timed_out = match &error {
            ClientError::Transaction(e) if e.is_fatal() => false,
            ClientError::Transaction(e) if e.txn_requires_abort() => {
                return Err(CallError::MustAbort(error.to_string(), e.code()));
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

fn listed(offsets: &TopicPartitionList) -> String {
    let elements = offsets.elements();
    let offsets = elements.iter().map(|element| {
        let (topic, partition) = (element.topic(), element.partition());
        let offset = element.offset().to_raw().unwrap_or(-1);
        format!("{topic}-{partition} {offset}")
    });
    offsets.collect::<Vec<_>>().join(" ")
}

/// Why a transactional call failed, named by what can succeed next.
enum CallError {
    /// Another transaction can succeed.
    MustAbort(String, RDKafkaErrorCode),
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
