//! Reads a range of a topic once, without joining a group or committing offsets.

mod range;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::Message;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

pub use range::Bound;

use super::client::await_topic::await_topic;
use super::client::contexts::ReaderContext;
use super::client::last_error::LastError;
use super::error::KafkaError;
use super::{client, messages};
use crate::config::KafkaSettings;
use crate::record::Record;
use crate::shutdown::Shutdown;

/// librdkafka requires a group id. Nothing is ever committed to this group.
const GROUP: &str = "residuald-history";
/// The longest wait in one poll. A stop request is noticed after this time at the latest.
const POLL: Duration = Duration::from_millis(100);
/// How long the brokers may be silent while there is more to read.
const SILENCE: Duration = Duration::from_secs(60);
/// The longest wait for open transactions of other producers. The default timeout of a transaction is one minute.
const OPEN_TRANSACTIONS: Duration = Duration::from_secs(90);

/// The range of a topic to read.
#[derive(Debug, Clone)]
pub struct Range {
    pub from: Bound,
    pub to: Bound,
    /// The time from which [`Bound::Ago`] counts back.
    pub now: Timestamp,
    /// Whether to read only committed records and to wait for open transactions, so that everything committed before
    /// the start is read. If false, the range ends at the first open transaction.
    pub all_committed: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error("topic `{topic}` has no partition {partition}: it has {count}, numbered from 0")]
    NoSuchPartition {
        topic: String,
        partition: i32,
        count: usize,
    },
    #[error(
        "the start names partitions {from:?} and the end {to:?}: name the same partitions in both"
    )]
    Partitions { from: Vec<i32>, to: Vec<i32> },
    #[error(
        "retention deleted records of topic `{topic}` while they were read: start the range later"
    )]
    Deleted { topic: String },
    #[error(
        "an open transaction of another producer still hides the end of topic `{topic}` after {waited:?}: try again when it has ended"
    )]
    OpenTransaction { topic: String, waited: Duration },
}

impl From<ClientError> for HistoryError {
    fn from(error: ClientError) -> Self {
        HistoryError::Kafka(error.into())
    }
}

/// The range in one partition, from `start` to just before `end`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// The oldest offset that the partition still holds.
    pub oldest: i64,
    pub start: i64,
    pub end: i64,
}

/// The number of offsets read, and of all offsets in the range. Some offsets hold no record: transaction markers,
/// aborted records, and records removed by compaction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OffsetsRead {
    pub done: u64,
    pub total: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Complete,
    /// Ended by a stop request, or because the reader returned `Break`.
    Early,
}

/// A range of a topic with fixed ends. Records that arrive later are not read.
pub struct History {
    consumer: BaseConsumer<ReaderContext>,
    brokers: String,
    /// The timeout of one request.
    patience: Duration,
    topic: String,
    spans: BTreeMap<i32, Span>,
    /// Texts about the parts of the range that do not exist.
    pub notes: Vec<String>,
}

fn config(kafka: &KafkaSettings) -> ClientConfig {
    let mut config = client::config(kafka, &kafka.consumer);
    // The wait in ms before librdkafka refills its full local queue. The default of librdkafka halves the throughput.
    if config.get("fetch.queue.backoff.ms").is_none() {
        config.set("fetch.queue.backoff.ms", "5");
    }
    if config.get("isolation.level").is_none() {
        config.set("isolation.level", "read_committed");
    }
    config
        .set("group.id", GROUP)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .set("statistics.interval.ms", "0");
    config
}

impl History {
    /// Connects, finds the topic, and fixes the ends of the range.
    ///
    /// # Errors
    /// [`HistoryError`] when no broker answers, the topic or a named partition is absent, or a stop comes first.
    pub fn open(
        kafka: &KafkaSettings,
        topic: &str,
        range: &Range,
        stop: &Shutdown,
    ) -> Result<History, HistoryError> {
        let mut config = config(kafka);
        if range.all_committed {
            config.set("isolation.level", "read_committed");
        }
        let last_error = LastError::default();
        let consumer = reader(&config, &last_error)?;
        let serve = || while consumer.poll(Duration::from_millis(5)).is_some() {};
        let count = await_topic(consumer.client(), kafka, topic, &last_error, stop, serve)?;
        let partitions = partitions(topic, range, count)?;
        let mut history = History {
            consumer,
            brokers: kafka.brokers.clone(),
            patience: kafka.connect_timeout,
            topic: topic.to_owned(),
            spans: BTreeMap::new(),
            notes: Vec::new(),
        };
        if range.all_committed {
            history.await_open_transactions(config, &partitions, stop)?;
        }
        history.fix_range(range, &partitions, stop)?;
        Ok(history)
    }

    /// Waits until no open transaction hides records that are in the topic now.
    fn await_open_transactions(
        &self,
        mut config: ClientConfig,
        partitions: &[i32],
        stop: &Shutdown,
    ) -> Result<(), HistoryError> {
        config.set("isolation.level", "read_uncommitted");
        let everything = reader(&config, &LastError::default())?;
        // A sign-in token is fetched only during a poll.
        everything.poll(Duration::ZERO);
        let started = Instant::now();
        for &partition in partitions {
            let written = everything.fetch_watermarks(&self.topic, partition, self.patience);
            let (_, written) = self.answered(written)?;
            while self.watermarks(partition, stop)?.1 < written {
                if started.elapsed() >= OPEN_TRANSACTIONS {
                    return Err(HistoryError::OpenTransaction {
                        topic: self.topic.clone(),
                        waited: OPEN_TRANSACTIONS,
                    });
                }
                std::thread::sleep(POLL);
            }
        }
        Ok(())
    }

    fn watermarks(&self, partition: i32, stop: &Shutdown) -> Result<(i64, i64), HistoryError> {
        if stop.is_requested() {
            return Err(KafkaError::Stopped.into());
        }
        let watermarks = self
            .consumer
            .fetch_watermarks(&self.topic, partition, self.patience);
        self.answered(watermarks)
    }

    /// Converts the bounds into offsets that the partitions hold.
    fn fix_range(
        &mut self,
        range: &Range,
        partitions: &[i32],
        stop: &Shutdown,
    ) -> Result<(), HistoryError> {
        let from = self.offsets(&range.from, range.now, partitions)?;
        let to = self.offsets(&range.to, range.now, partitions)?;
        for &partition in partitions {
            let (oldest, newest) = self.watermarks(partition, stop)?;
            let asked = from[&partition];
            let by_time = matches!(range.from, Bound::Time(_) | Bound::Ago(_));
            if (asked < oldest || by_time && asked == oldest) && oldest > 0 {
                self.notes.push(format!(
                    "partition {partition}: the records before offset {oldest} are deleted"
                ));
            }
            if asked > newest && matches!(range.from, Bound::Offset(_) | Bound::Offsets(_)) {
                self.notes.push(format!(
                    "partition {partition}: offset {asked} is beyond the end, {newest}"
                ));
            }
            let start = asked.clamp(oldest, newest);
            let end = to[&partition].clamp(start, newest);
            let span = Span { oldest, start, end };
            self.spans.insert(partition, span);
        }
        Ok(())
    }

    /// Returns the bound's offset in each partition. `i64::MAX` stands for the end.
    fn offsets(
        &self,
        bound: &Bound,
        now: Timestamp,
        partitions: &[i32],
    ) -> Result<BTreeMap<i32, i64>, HistoryError> {
        let everywhere = |offset: i64| partitions.iter().map(|&p| (p, offset)).collect();
        let time = match bound {
            Bound::Beginning => return Ok(everywhere(0)),
            Bound::End => return Ok(everywhere(i64::MAX)),
            Bound::Offset(offset) => return Ok(everywhere(*offset)),
            Bound::Offsets(offsets) => return Ok(offsets.clone()),
            Bound::Time(time) => *time,
            Bound::Ago(ago) => now.saturating_sub(*ago).unwrap_or(Timestamp::MIN),
        };
        let mut asked = TopicPartitionList::new();
        for &partition in partitions {
            // Kafka has no timestamps before 1970.
            let time = Offset::Offset(time.as_millisecond().max(0));
            asked.add_partition_offset(&self.topic, partition, time)?;
        }
        let found = self.answered(self.consumer.offsets_for_times(asked, self.patience))?;
        let offset = |offset| match offset {
            Offset::Offset(offset) => offset,
            _ => i64::MAX,
        };
        let elements = found.elements();
        let offsets = elements
            .iter()
            .map(|e| e.error().map(|()| (e.partition(), offset(e.offset()))));
        Ok(offsets.collect::<Result<_, _>>()?)
    }

    /// Returns the range in each partition.
    pub fn spans(&self) -> &BTreeMap<i32, Span> {
        &self.spans
    }

    /// Returns the number of offsets in the range.
    pub fn total(&self) -> u64 {
        self.spans.values().map(|s| (s.end - s.start) as u64).sum()
    }

    /// Calls `each` for every record of the range, in the order of each partition, until the end, a stop or `Break`.
    ///
    /// # Errors
    /// The error of `each`; [`HistoryError`] when the brokers stop answering or delete records of the range.
    pub fn read<E: From<HistoryError>>(
        self,
        stop: &Shutdown,
        mut each: impl FnMut(&Record<'_>, OffsetsRead) -> Result<ControlFlow<()>, E>,
    ) -> Result<Ended, E> {
        let mut left: BTreeMap<i32, Span> = self.spans.clone();
        left.retain(|_, span| span.start < span.end);
        self.assign(&left)?;
        let mut progress = OffsetsRead {
            done: 0,
            total: self.total(),
        };
        let mut heard = Instant::now();
        while !left.is_empty() {
            if stop.is_requested() {
                return Ok(Ended::Early);
            }
            let polled = self.consumer.poll(POLL);
            let message = match polled {
                None => {
                    self.check_silence(heard)?;
                    continue;
                }
                Some(Err(ClientError::PartitionEOF(partition))) => {
                    if let Some(span) = left.remove(&partition) {
                        progress.done += (span.end - span.start) as u64;
                    }
                    heard = Instant::now();
                    continue;
                }
                Some(Err(error)) => {
                    self.check_error(error)?;
                    self.check_silence(heard)?;
                    continue;
                }
                Some(Ok(message)) => message,
            };
            let (partition, offset) = (message.partition(), message.offset());
            // The partition is finished; this record was fetched ahead.
            let Some(span) = left.get_mut(&partition) else {
                continue;
            };
            let reached = span.end.min(offset + 1);
            progress.done += (reached - span.start) as u64;
            span.start = reached;
            let (is_in, is_last) = (offset < span.end, reached == span.end);
            if is_last {
                left.remove(&partition);
                let mut done = TopicPartitionList::new();
                done.add_partition(&self.topic, partition);
                self.consumer.pause(&done).map_err(HistoryError::from)?;
            }
            if is_in && each(&messages::record(&message), progress)?.is_break() {
                return Ok(Ended::Early);
            }
            heard = Instant::now();
        }
        Ok(Ended::Complete)
    }

    fn assign(&self, spans: &BTreeMap<i32, Span>) -> Result<(), HistoryError> {
        let mut assignment = TopicPartitionList::new();
        for (&partition, span) in spans {
            let start = Offset::Offset(span.start);
            assignment.add_partition_offset(&self.topic, partition, start)?;
        }
        Ok(self.consumer.assign(&assignment)?)
    }

    fn check_silence(&self, heard: Instant) -> Result<(), HistoryError> {
        if heard.elapsed() < SILENCE {
            return Ok(());
        }
        Err(self.unreachable(SILENCE))
    }

    /// Turns a timeout into [`KafkaError::Unreachable`].
    fn answered<T>(&self, answer: Result<T, ClientError>) -> Result<T, HistoryError> {
        use RDKafkaErrorCode as Code;
        answer.map_err(|error| match error.rdkafka_error_code() {
            Some(Code::OperationTimedOut | Code::BrokerTransportFailure | Code::AllBrokersDown) => {
                self.unreachable(self.patience)
            }
            _ => error.into(),
        })
    }

    fn unreachable(&self, waited: Duration) -> HistoryError {
        let last_error = self.consumer.client().context().last_error.get();
        HistoryError::Kafka(KafkaError::Unreachable {
            brokers: self.brokers.clone(),
            waited,
            reason: last_error.unwrap_or_else(|| "no answer".into()),
        })
    }

    /// Returns errors that do not pass by themselves.
    fn check_error(&self, error: ClientError) -> Result<(), HistoryError> {
        use RDKafkaErrorCode as Code;
        match error {
            ClientError::MessageConsumption(Code::AutoOffsetReset | Code::OffsetOutOfRange) => {
                Err(HistoryError::Deleted {
                    topic: self.topic.clone(),
                })
            }
            ClientError::MessageConsumption(
                code @ (Code::UnknownTopicOrPartition
                | Code::UnknownTopic
                | Code::UnknownPartition
                | Code::TopicAuthorizationFailed),
            )
            | ClientError::MessageConsumptionFatal(code) => {
                let problem = format!("topic `{}`: {code}", self.topic);
                Err(KafkaError::Client(problem).into())
            }
            // This includes a token that cannot be renewed. If that lasts, `check_silence` ends the reading.
            _ => Ok(()),
        }
    }
}

/// Returns the partitions in the range.
fn partitions(topic: &str, range: &Range, count: usize) -> Result<Vec<i32>, HistoryError> {
    let named = match (range.from.partitions(), range.to.partitions()) {
        (Some(from), Some(to)) if from != to => {
            return Err(HistoryError::Partitions { from, to });
        }
        (from, to) => from.or(to),
    };
    let all = 0..count as i32;
    let Some(named) = named else {
        return Ok(all.collect());
    };
    match named.iter().find(|p| !all.contains(p)) {
        None => Ok(named),
        Some(&partition) => Err(HistoryError::NoSuchPartition {
            topic: topic.to_owned(),
            partition,
            count,
        }),
    }
}

fn reader(
    config: &ClientConfig,
    last_error: &LastError,
) -> Result<BaseConsumer<ReaderContext>, KafkaError> {
    let context = ReaderContext {
        name: "history",
        last_error: last_error.clone(),
    };
    client::create(config, context)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(from: &str, to: &str) -> Range {
        Range {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            now: Timestamp::UNIX_EPOCH,
            all_committed: false,
        }
    }

    #[test]
    fn a_bound_that_names_partitions_selects_them() {
        for (from, to, expected) in [
            ("beginning", "end", vec![0, 1, 2]),
            ("2:5", "end", vec![2]),
            ("-1h", "0:9,1:9", vec![0, 1]),
            ("0:1,1:1", "1:9,0:9", vec![0, 1]),
        ] {
            assert_eq!(partitions("t", &range(from, to), 3).unwrap(), expected);
        }
        for (from, to, expected) in [
            ("0:1", "1:1", "name the same partitions in both"),
            ("3:0", "end", "topic `t` has no partition 3: it has 3"),
        ] {
            let error = partitions("t", &range(from, to), 3).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
