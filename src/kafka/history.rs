//! A range of a topic that is read once and ends: no group is joined, nothing is committed.

mod range;

use std::collections::BTreeMap;
use std::error::Error;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::Message;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

pub use range::Bound;

use super::{KafkaError, LastComplaint, await_topic, client, client_config, record, sasl};
use crate::config::Kafka;
use crate::record::Record;
use crate::shutdown::Shutdown;

/// librdkafka wants a group for a consumer that only reads; nothing is ever committed to it.
const GROUP: &str = "residuald-history";
/// One wait for a record; bounds how late a stop is noticed.
pub(super) const POLL: Duration = Duration::from_millis(100);
/// How long the brokers may say nothing at all while there is more to read.
const SILENCE: Duration = Duration::from_secs(60);
/// How long transactions of others that are open may hold the reading up; their default timeout is a minute.
const OPEN_TRANSACTIONS: Duration = Duration::from_secs(90);

/// What to read of a topic.
#[derive(Debug, Clone)]
pub struct Range {
    pub from: Bound,
    pub to: Bound,
    /// What a time before now is counted from.
    pub now: Timestamp,
    /// Whether to read what is committed and nothing else, and to wait for transactions that are open: then everything
    /// that was committed before the start is read. Otherwise the range ends at the first open transaction.
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
    #[error("the beginning names partitions {from:?} and the end {to:?}: name the same in both")]
    Partitions { from: Vec<i32>, to: Vec<i32> },
    #[error(
        "records of topic `{topic}` were deleted by its retention while they were read: begin later"
    )]
    Deleted { topic: String },
    #[error(
        "an open transaction of another producer hides the end of topic `{topic}`, still after {waited:?}: try again when it has ended"
    )]
    OpenTransaction { topic: String, waited: Duration },
}

impl From<ClientError> for HistoryError {
    fn from(error: ClientError) -> Self {
        HistoryError::Kafka(error.into())
    }
}

/// What is read of one partition: `start` to `end`, without `end`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// The oldest offset that the partition still holds.
    pub oldest: i64,
    pub start: i64,
    pub end: i64,
}

/// Offsets read, of all in the range; some hold no record for us (transaction markers, compaction, aborted records).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Complete,
    /// By a stop, or because the reader had enough.
    Early,
}

/// A range whose ends are fixed: what comes later is not read.
pub struct History {
    consumer: BaseConsumer<Context>,
    brokers: String,
    /// How long an answer may take.
    patience: Duration,
    topic: String,
    spans: BTreeMap<i32, Span>,
    /// What was asked for and is not there, for the person.
    pub notes: Vec<String>,
}

fn config(kafka: &Kafka) -> ClientConfig {
    let mut config = client_config(kafka, &kafka.consumer);
    // How soon a full local queue is filled again, in ms; librdkafka's own default halves the throughput.
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
    /// Connects, finds the topic, and fixes the range.
    ///
    /// # Errors
    /// [`HistoryError`] when no broker answers, the topic or a named partition is absent, or a stop comes first.
    pub fn open(
        kafka: &Kafka,
        topic: &str,
        range: &Range,
        stop: &Shutdown,
    ) -> Result<History, HistoryError> {
        let mut config = config(kafka);
        if range.all_committed {
            config.set("isolation.level", "read_committed");
        }
        let complaint = LastComplaint::default();
        let consumer: BaseConsumer<Context> = client(&config, Context(complaint.clone()))?;
        let serve = || while consumer.poll(Duration::from_millis(5)).is_some() {};
        let count = await_topic(consumer.client(), kafka, topic, &complaint, stop, serve)?;
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
        history.resolve(range, &partitions, stop)?;
        Ok(history)
    }

    /// Waits until the reader may see everything that is in the topic now.
    fn await_open_transactions(
        &self,
        mut config: ClientConfig,
        partitions: &[i32],
        stop: &Shutdown,
    ) -> Result<(), HistoryError> {
        config.set("isolation.level", "read_uncommitted");
        let everything: BaseConsumer<Context> = client(&config, Context(LastComplaint::default()))?;
        // It may want a token, which only a poll brings.
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

    fn resolve(
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
                    "partition {partition}: what came before offset {oldest} is deleted"
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

    /// The bound in each partition; `i64::MAX` is its end.
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
            // Records from before 1970 are not told apart.
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

    /// What is read of each partition.
    pub fn spans(&self) -> &BTreeMap<i32, Span> {
        &self.spans
    }

    /// Offsets in the range.
    pub fn total(&self) -> u64 {
        self.spans.values().map(|s| (s.end - s.start) as u64).sum()
    }

    /// Calls `each` for every record of the range, in the order of each partition, until the end, a stop or `Break`.
    ///
    /// # Errors
    /// What `each` fails with; [`HistoryError`] when the brokers go away or delete what is to be read.
    pub fn read<E: From<HistoryError>>(
        self,
        stop: &Shutdown,
        mut each: impl FnMut(&Record<'_>, Progress) -> Result<ControlFlow<()>, E>,
    ) -> Result<Ended, E> {
        let mut left: BTreeMap<i32, Span> = self.spans.clone();
        left.retain(|_, span| span.start < span.end);
        self.assign(&left)?;
        let mut progress = Progress {
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
                    self.is_silent_since(heard)?;
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
                    self.survive(error)?;
                    self.is_silent_since(heard)?;
                    continue;
                }
                Some(Ok(message)) => message,
            };
            let (partition, offset) = (message.partition(), message.offset());
            // What was fetched ahead of a partition's end is of no interest.
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
            if is_in && each(&record(&message), progress)?.is_break() {
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

    fn is_silent_since(&self, heard: Instant) -> Result<(), HistoryError> {
        if heard.elapsed() < SILENCE {
            return Ok(());
        }
        Err(self.unreachable(SILENCE))
    }

    /// What the brokers say, if they say it in time.
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
        let complaint = self.consumer.client().context().0.get();
        HistoryError::Kafka(KafkaError::Unreachable {
            brokers: self.brokers.clone(),
            waited,
            reason: complaint.unwrap_or_else(|| "no answer".into()),
        })
    }

    /// Tells what passes from what does not.
    fn survive(&self, error: ClientError) -> Result<(), HistoryError> {
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
            // Among them that a token cannot be renewed: unless it comes back, the silence ends the reading.
            _ => Ok(()),
        }
    }
}

/// The partitions that the range is about.
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

pub(super) struct Context(pub(super) LastComplaint);

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, source: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        sasl::token(source)
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(level, facility, message);
    }

    fn error(&self, error: ClientError, reason: &str) {
        self.0.error("history", &error, reason);
    }
}

impl ConsumerContext for Context {}

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
    fn a_bound_that_names_partitions_is_about_these() {
        for (from, to, expected) in [
            ("beginning", "end", vec![0, 1, 2]),
            ("2:5", "end", vec![2]),
            ("-1h", "0:9,1:9", vec![0, 1]),
            ("0:1,1:1", "1:9,0:9", vec![0, 1]),
        ] {
            assert_eq!(partitions("t", &range(from, to), 3).unwrap(), expected);
        }
        for (from, to, expected) in [
            ("0:1", "1:1", "name the same in both"),
            ("3:0", "end", "topic `t` has no partition 3: it has 3"),
        ] {
            let error = partitions("t", &range(from, to), 3).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
