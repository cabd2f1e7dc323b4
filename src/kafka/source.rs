//! The consumer. Rebalances come out as events: whoever polls drains first and completes them after.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use jiff::Timestamp;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::BorrowedMessage;
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};
use serde::Deserialize;

use super::assignment::{Assigning, reset};
use super::hold::Held;
use super::membership::Membership;
use super::presence::await_topics;
use super::progress::{FetchedEnd, Name, Progress};
use super::start::Reset;
use super::tail::Tails;
use super::topics::Topics;
use super::wanted::Wanted;
use super::watch::{Watch, is_missing};
use super::{KafkaError, LastComplaint, client, client_config, decompression, report, sasl};
use crate::batch::TopicPartition;
use crate::config::{Guarantee, Kafka};
use crate::metrics::Metrics;
use crate::record::Record;
use crate::shutdown::Shutdown;
use crate::status::Status;

/// Enough for a poll to go through more than one report; one of zero ends after the first.
const SERVE: Duration = Duration::from_millis(5);

/// What a poll brought.
pub enum Event<'c> {
    Message(BorrowedMessage<'c>),
    /// To be passed to [`Source::complete`] once what is in flight is drained.
    Rebalance(Rebalance),
    Idle,
}

/// A change of the assignment that the group coordinator waits for.
#[derive(Debug)]
pub struct Rebalance {
    pub kind: RebalanceKind,
    partitions: TopicPartitionList,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RebalanceKind {
    Assign,
    Revoke,
    /// Revoked without asking: others own the partitions already, so nothing may be committed.
    Lost,
}

pub struct Source {
    pub(super) consumer: Arc<BaseConsumer<Context>>,
    pub(super) topics: Topics,
    pub(super) watch: Watch,
    guarantee: Guarantee,
    lost_below: Arc<AtomicU64>,
    pub(super) metrics: Metrics,
    pub(super) status: Status,
    /// Since when nothing is fetched, because the stages behind are busy.
    pub(super) paused: Option<Timestamp>,
    pub(super) held: Vec<Held>,
    /// Where a partition starts that was never read.
    pub(super) reset: Reset,
    pub(super) assigning: Option<Assigning>,
    /// When it last left the group to ask anew.
    pub(super) rejoined: Option<Instant>,
    /// What to join the group with once everything is given back.
    pub(super) resubscribe: Option<BTreeSet<String>>,
    pub(super) progress: Progress,
    pub(super) tails: Tails,
}

pub(super) fn config(kafka: &Kafka) -> ClientConfig {
    let mut config = client_config(kafka, &kafka.consumer);
    // Offsets are stored by us once a batch is delivered. What is stored librdkafka commits, unless the producer's
    // transactions do.
    let commits = kafka.guarantee == Guarantee::AtLeastOnce;
    config
        .set("group.id", &kafka.group_id)
        .set("enable.auto.commit", commits.to_string())
        .set("enable.auto.offset.store", "false");
    config
}

impl Source {
    /// Connects, makes sure that the topics exist, and subscribes. `written` are topics that no pattern may match.
    ///
    /// # Errors
    /// [`KafkaError`] when a setting is refused, no broker answers in time, topics are absent, or a stop comes first.
    pub fn connect(
        kafka: &Kafka,
        written: &[&str],
        metrics: Metrics,
        status: Status,
        stop: &Shutdown,
    ) -> Result<Source, KafkaError> {
        let complaint = LastComplaint::default();
        let context = Context {
            complaint: complaint.clone(),
            rebalances: Mutex::default(),
            closing: AtomicBool::new(false),
            ends: Mutex::default(),
        };
        let mut config = config(kafka);
        // Where to start is decided in `start`; librdkafka only says that an offset is not there.
        config.set("auto.offset.reset", "error");
        let consumer: BaseConsumer<Context> = client(&config, context)?;
        let wanted = Wanted::new(&kafka.topics, written)?;
        let found = await_topics(&consumer, kafka, &wanted, &complaint, stop)?;
        let consumer = Arc::new(consumer);
        let topics = Topics::default();
        let watch = Watch::begin(
            &consumer,
            wanted,
            kafka,
            topics.clone(),
            found,
            status.clone(),
        );
        let mut source = Source {
            consumer,
            topics,
            watch,
            guarantee: kafka.guarantee,
            lost_below: Arc::default(),
            progress: Progress::new(metrics.clone(), status.clone()),
            tails: Tails::new(kafka),
            metrics,
            status,
            paused: None,
            held: Vec::new(),
            reset: reset(kafka),
            assigning: None,
            rejoined: None,
            resubscribe: None,
        };
        source.follow_topics()?;
        Ok(source)
    }

    pub fn topics(&self) -> &Topics {
        &self.topics
    }

    pub fn is_exactly_once(&self) -> bool {
        self.guarantee != Guarantee::AtLeastOnce
    }

    /// This consumer's place in the group, for whoever commits in its name.
    pub fn membership(&self) -> Membership {
        Membership {
            consumer: Arc::downgrade(&self.consumer),
            lost_below: Arc::clone(&self.lost_below),
            topics: self.topics.clone(),
        }
    }

    /// Says that the partitions of every batch below this sequence are lost. To be said before the rebalance is
    /// completed: with it this member comes back, and then the group would take its commits again.
    pub fn lose_below(&self, sequence: u64) {
        self.lost_below.store(sequence, Ordering::SeqCst);
    }

    /// Waits up to `timeout` for something to happen.
    ///
    /// # Errors
    /// What librdkafka will not recover from by itself.
    pub fn poll(&self, timeout: Duration) -> Result<Event<'_>, KafkaError> {
        let polled = self.consumer.poll(timeout);
        if let Some(rebalance) = self.consumer.context().next_rebalance() {
            // librdkafka serves a rebalance in place of a message, never together with one.
            return Ok(Event::Rebalance(rebalance));
        }
        match polled {
            Some(Ok(message)) => Ok(Event::Message(message)),
            Some(Err(error)) => self.survive(error).map(|()| Event::Idle),
            None => Ok(Event::Idle),
        }
    }

    /// Tells what passes from what does not.
    fn survive(&self, error: ClientError) -> Result<(), KafkaError> {
        use RDKafkaErrorCode as Code;
        match error {
            ClientError::MessageConsumption(code) if is_missing(code) => {
                tracing::debug!("a topic cannot be read: {code}");
                self.watch.look_now();
                Ok(())
            }
            ClientError::MessageConsumption(Code::AutoOffsetReset) => {
                self.watch.astray.store(true, Ordering::Relaxed);
                Ok(())
            }
            ClientError::MessageConsumption(code @ Code::GroupAuthorizationFailed) => {
                Err(KafkaError::Client(format!("consumer: {code}")))
            }
            ClientError::MessageConsumptionFatal(code) => {
                Err(KafkaError::Client(format!("consumer was shut out: {code}")))
            }
            ClientError::MessageConsumption(Code::BadCompression) if decompression::held_back() => {
                tracing::debug!(
                    "a compressed batch waits: those before it take their share of memory"
                );
                Ok(())
            }
            ClientError::MessageConsumption(Code::BadCompression) => {
                if decompression::is_news() {
                    tracing::warn!(
                        "a compressed batch cannot be read, or not within its share of memory, and its partition waits: raise memory.limit, or move the group past it (kafka-consumer-groups.sh --reset-offsets)"
                    );
                }
                Ok(())
            }
            // Among them that nobody lets it in: at the start somebody did, and an identity provider that is away comes back.
            passing => {
                report("consumer", &passing, "trying again");
                Ok(())
            }
        }
    }

    /// The message as a record, and its partition.
    pub fn record<'m>(&self, message: &'m BorrowedMessage<'_>) -> (Record<'m>, TopicPartition) {
        let record = super::record(message);
        let from = TopicPartition {
            topic: self.topics.number(record.topic),
            partition: record.partition,
        };
        (record, from)
    }

    /// Completes a rebalance; the coordinator goes on only after it.
    ///
    /// # Errors
    /// When librdkafka refuses the assignment.
    pub fn complete(&mut self, rebalance: &Rebalance) -> Result<(), KafkaError> {
        let partitions = &rebalance.partitions;
        self.metrics.rebalances.inc();
        tracing::info!(
            kind = ?rebalance.kind,
            partitions = %listed(partitions),
            "rebalance"
        );
        if rebalance.kind == RebalanceKind::Assign {
            if partitions.count() > 0 {
                self.progress.assigned(partitions);
                self.assign_when_known(partitions);
                return Ok(());
            }
            return self.assign(partitions);
        }
        if rebalance.kind == RebalanceKind::Lost {
            self.status.partitions_are_assigned(false);
        }
        self.stop_assigning();
        match is_cooperative(&self.consumer) {
            true => self.consumer.incremental_unassign(partitions)?,
            false => self.consumer.unassign()?,
        }
        let topics = &self.topics;
        self.held.retain(|Held { from, .. }| {
            let topic = &topics[from.topic];
            partitions.find_partition(topic, from.partition).is_none()
        });
        self.forget_marks(partitions)?;
        self.progress.revoked(partitions);
        self.count_paused();
        Ok(())
    }

    pub(super) fn assign(&mut self, partitions: &TopicPartitionList) -> Result<(), KafkaError> {
        match is_cooperative(&self.consumer) {
            true => self.consumer.incremental_assign(partitions)?,
            false => self.consumer.assign(partitions)?,
        }
        match self.paused.is_some() {
            true => self.consumer.pause(partitions)?,
            // They may have been paused when they were given back.
            false => self.consumer.resume(partitions)?,
        }
        self.progress.assigned(partitions);
        self.status.partitions_are_assigned(true);
        self.count_paused();
        Ok(())
    }

    /// Marks everything below these offsets as finished; the next commit takes them along.
    pub fn finish(&mut self, offsets: &[(TopicPartition, i64)]) {
        for (from, next) in offsets {
            let topic = &self.topics[from.topic];
            self.progress.finished(topic, from.partition, *next);
        }
        let offsets = offset_list(&self.topics, offsets);
        if let Err(e) = self.consumer.store_offsets(&offsets) {
            // The partition was taken away meanwhile; its new owner reads these records again.
            tracing::debug!("offsets not stored: {e}");
        }
    }

    /// Commits what is finished and waits for the broker's answer, unless transactions have committed it.
    pub fn commit(&self) {
        if self.is_exactly_once() {
            return;
        }
        match self.consumer.commit_consumer_state(CommitMode::Sync) {
            Ok(()) | Err(ClientError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => {}
            Err(e) if e.rdkafka_error_code().is_some_and(is_missing) => {
                tracing::info!("the offsets of a topic that is gone are not committed");
            }
            Err(e) => tracing::warn!(
                "offsets not committed: {e}; the records since the last commit will be judged again"
            ),
        }
    }

    /// Stops fetching while polling goes on, so that the group keeps this member.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn pause(&mut self) -> Result<(), KafkaError> {
        if self.paused.is_none() {
            self.consumer.pause(&self.consumer.assignment()?)?;
            self.paused = Some(Timestamp::now());
            self.stop_looking_ahead();
            self.count_paused();
        }
        Ok(())
    }

    /// Fetches again after [`Source::pause`].
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn resume(&mut self, now: Instant) -> Result<(), KafkaError> {
        self.follow_topics()?;
        self.rejoin_if_astray(now)?;
        if self.paused.is_some() {
            let assigned = self.consumer.assignment()?;
            self.consumer.resume(&self.without_held(&assigned))?;
            self.paused = None;
            self.count_paused();
        }
        self.try_assign(now)
    }

    /// Whether some partition waits for something.
    pub fn is_holding(&self) -> bool {
        self.assigning.is_some() || !self.held.is_empty()
    }

    /// Commits what is finished and leaves the group; `false` if that did not end in time, because the brokers are
    /// gone. librdkafka may wait minutes for them, so it is left waiting on a thread that ends with the process.
    pub fn close(mut self, timeout: Duration) -> bool {
        self.stop_assigning();
        let (closed, closing) = crossbeam_channel::bounded::<()>(1);
        std::thread::spawn(move || {
            self.commit();
            // Whoever asks for offsets lets go soon.
            while Arc::strong_count(&self.consumer) > 1 {
                std::thread::sleep(SERVE);
            }
            self.consumer
                .context()
                .closing
                .store(true, Ordering::Release);
            drop(self.consumer);
            drop(closed);
        });
        closing.recv_timeout(timeout) == Err(RecvTimeoutError::Disconnected)
    }

    /// Shows which partitions wait, and how many.
    pub(super) fn count_paused(&self) {
        let paused = match self.paused {
            Some(_) => self.progress.names().count(),
            None => self.held.len(),
        };
        self.metrics.paused_partitions.set(paused as i64);
        self.show();
    }
}

pub(super) fn offset_list(
    topics: &Topics,
    offsets: &[(TopicPartition, i64)],
) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for (from, next) in offsets {
        let mut element = list.add_partition(&topics[from.topic], from.partition);
        element
            .set_offset(Offset::Offset(*next))
            .expect("an offset from a record is valid");
        if let Some(mark) = topics.mark(from.topic) {
            element.set_metadata(mark.to_string());
        }
    }
    list
}

fn is_cooperative(consumer: &BaseConsumer<Context>) -> bool {
    matches!(
        consumer.rebalance_protocol(),
        RebalanceProtocol::Cooperative
    )
}

fn listed(partitions: &TopicPartitionList) -> String {
    let names = partitions
        .elements()
        .into_iter()
        .map(|element| format!("{}-{}", element.topic(), element.partition()));
    names.collect::<Vec<_>>().join(" ")
}

pub(super) struct Context {
    complaint: LastComplaint,
    rebalances: Mutex<VecDeque<Rebalance>>,
    /// Nobody polls for events any more: rebalances are completed in place.
    closing: AtomicBool,
    /// What the last statistics told of the ends of partitions.
    ends: Mutex<Option<Vec<(Name, FetchedEnd)>>>,
}

impl Context {
    fn next_rebalance(&self) -> Option<Rebalance> {
        self.rebalances
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }
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
        // The watch reports a missing topic once.
        match error.rdkafka_error_code() {
            Some(code) if is_missing(code) => tracing::debug!("consumer: {error}: {reason}"),
            _ => self.complaint.error("consumer", &error, reason),
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        match serde_json::from_slice::<Statistics>(statistics) {
            Ok(statistics) => self.tell(statistics),
            Err(e) => tracing::warn!("librdkafka's statistics cannot be read: {e}"),
        }
    }
}

impl Context {
    fn tell(&self, statistics: Statistics) {
        let mut ends = Vec::new();
        for (topic, of_topic) in statistics.topics {
            for (id, partition) in of_topic.partitions {
                // -1 is librdkafka's internal partition; no end is known before the first fetch.
                if id >= 0 && partition.desired && partition.ls_offset >= 0 {
                    let end = FetchedEnd {
                        visible: partition.ls_offset,
                        all: partition.hi_offset,
                    };
                    ends.push(((topic.clone(), id), end));
                }
            }
        }
        *self.ends.lock().unwrap_or_else(PoisonError::into_inner) = Some(ends);
    }

    pub(super) fn take_ends(&self) -> Option<Vec<(Name, FetchedEnd)>> {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.take()
    }
}

impl ConsumerContext for Context {
    /// Only takes note: draining needs the thread that polls, and this runs inside its poll.
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        code: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        if self.closing.load(Ordering::Acquire) {
            let released = match is_cooperative(consumer) {
                true => consumer.incremental_unassign(partitions),
                false => consumer.unassign(),
            };
            if let Err(e) = released {
                tracing::debug!("leaving the group: {e}");
            }
            return;
        }
        let kind = match code {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => RebalanceKind::Assign,
            _ if consumer.assignment_lost() => RebalanceKind::Lost,
            _ => RebalanceKind::Revoke,
        };
        self.rebalances
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(Rebalance {
                kind,
                partitions: partitions.clone(),
            });
    }
}

/// The few of librdkafka's statistics that are used.
#[derive(Deserialize)]
struct Statistics {
    topics: BTreeMap<String, TopicStatistics>,
}

#[derive(Deserialize)]
struct TopicStatistics {
    partitions: BTreeMap<i32, PartitionStatistics>,
}

#[derive(Deserialize)]
struct PartitionStatistics {
    desired: bool,
    /// Where the records end that may be seen, by the isolation level.
    ls_offset: i64,
    /// Where all records end, those of open transactions too.
    hi_offset: i64,
}
