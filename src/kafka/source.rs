//! The consumer. Rebalances come out as events: whoever polls drains first and completes them after.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{
    BaseConsumer, CommitMode, Consumer, ConsumerContext, ConsumerGroupMetadata, RebalanceProtocol,
};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};
use serde::Deserialize;

use super::{KafkaError, LastComplaint, await_topic, client_config, report};
use crate::batch::TopicPartition;
use crate::config::{Guarantee, Kafka};
use crate::metrics::Metrics;
use crate::record::Record;
use crate::shutdown::Shutdown;
use crate::status::{PartitionStatus, Partitions, Status};

/// How long a partition stands still before its record is tried again.
const HOLD: Duration = Duration::from_millis(250);
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
    consumer: Arc<BaseConsumer<Context>>,
    topics: Vec<String>,
    guarantee: Guarantee,
    lost_below: Arc<AtomicU64>,
    metrics: Metrics,
    status: Status,
    /// Nothing is fetched: the stages behind are busy.
    paused: bool,
    held: Vec<Held>,
}

/// A partition that stands still at a record which cannot be read yet.
struct Held {
    from: TopicPartition,
    offset: i64,
    until: Instant,
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
    /// Connects, makes sure that every topic exists, and subscribes.
    ///
    /// # Errors
    /// [`KafkaError`] when a setting is refused, no broker answers in time, a topic is absent, or a stop comes first.
    pub fn connect(
        kafka: &Kafka,
        metrics: Metrics,
        status: Status,
        stop: &Shutdown,
    ) -> Result<Source, KafkaError> {
        let complaint = LastComplaint::default();
        let context = Context {
            complaint: complaint.clone(),
            rebalances: Mutex::default(),
            closing: AtomicBool::new(false),
            metrics: metrics.clone(),
            status: status.clone(),
        };
        let consumer: BaseConsumer<Context> = config(kafka).create_with_context(context)?;
        let serve = || while consumer.poll(SERVE).is_some() {};
        for topic in &kafka.topics {
            await_topic(consumer.client(), kafka, topic, &complaint, stop, serve)?;
        }
        let topics: Vec<&str> = kafka.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics)?;
        Ok(Source {
            consumer: Arc::new(consumer),
            topics: kafka.topics.clone(),
            guarantee: kafka.guarantee,
            lost_below: Arc::default(),
            metrics,
            status,
            paused: false,
            held: Vec::new(),
        })
    }

    pub fn topics(&self) -> &[String] {
        &self.topics
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
            ClientError::MessageConsumption(
                code @ (Code::UnknownTopicOrPartition
                | Code::UnknownTopic
                | Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::SaslAuthenticationFailed
                | Code::Authentication
                | Code::AutoOffsetReset),
            ) => Err(KafkaError::Client(format!("consumer: {code}"))),
            ClientError::MessageConsumptionFatal(code) => {
                Err(KafkaError::Client(format!("consumer was shut out: {code}")))
            }
            passing => {
                report("consumer", &passing, "trying again");
                Ok(())
            }
        }
    }

    /// The message as a record, and its partition.
    pub fn record<'m>(&self, message: &'m BorrowedMessage<'_>) -> (Record<'m>, TopicPartition) {
        let headers = message.headers().map(|headers| {
            let own = headers.iter();
            own.map(|header| (header.key, header.value)).collect()
        });
        let record = Record {
            topic: message.topic(),
            partition: message.partition(),
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis(),
            key: message.key(),
            headers: headers.unwrap_or_default(),
            payload: message.payload(),
        };
        let topic = self.topics.iter().position(|topic| topic == record.topic);
        let from = TopicPartition {
            topic: topic.expect("only subscribed topics are delivered"),
            partition: record.partition,
        };
        (record, from)
    }

    /// Completes a rebalance; the coordinator goes on only after it.
    ///
    /// # Errors
    /// When librdkafka refuses the assignment.
    pub fn complete(&mut self, rebalance: &Rebalance) -> Result<(), KafkaError> {
        let cooperative = is_cooperative(&self.consumer);
        let partitions = &rebalance.partitions;
        self.metrics.rebalances.inc();
        tracing::info!(
            kind = ?rebalance.kind,
            partitions = %listed(partitions),
            "rebalance"
        );
        match (rebalance.kind, cooperative) {
            (RebalanceKind::Assign, true) => self.consumer.incremental_assign(partitions)?,
            (RebalanceKind::Assign, false) => self.consumer.assign(partitions)?,
            (_, true) => self.consumer.incremental_unassign(partitions)?,
            (_, false) => self.consumer.unassign()?,
        }
        if rebalance.kind == RebalanceKind::Assign {
            self.status.partitions_are_assigned(true);
            if self.paused {
                self.consumer.pause(partitions)?;
            }
        } else {
            let topics = &self.topics;
            self.held.retain(|Held { from, .. }| {
                let topic = &topics[from.topic];
                partitions.find_partition(topic, from.partition).is_none()
            });
            for element in partitions.elements() {
                // Absent if no statistics came in between.
                let _ = self
                    .metrics
                    .consumer_lag
                    .remove_label_values(&[element.topic(), &element.partition().to_string()]);
            }
        }
        if self.paused {
            self.count_paused()?;
        }
        Ok(())
    }

    /// Marks everything below these offsets as finished; the next commit takes them along.
    pub fn finish(&self, offsets: &[(TopicPartition, i64)]) {
        let offsets = offset_list(&self.topics, offsets);
        if let Err(e) = self.consumer.store_offsets(&offsets) {
            // The partition was taken away meanwhile; its new owner reads these records again.
            tracing::debug!("offsets not stored: {e}");
        }
    }

    /// Commits what is finished and waits for the broker's answer, unless transactions have committed it.
    pub fn commit(&self) {
        if self.guarantee == Guarantee::ExactlyOnce {
            return;
        }
        match self.consumer.commit_consumer_state(CommitMode::Sync) {
            Ok(()) | Err(ClientError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => {}
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
        if !self.paused {
            self.consumer.pause(&self.consumer.assignment()?)?;
            self.paused = true;
            self.count_paused()?;
        }
        Ok(())
    }

    /// Fetches again: after [`Source::pause`], and held partitions whose time has come, from the record that held them.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn resume(&mut self, now: Instant) -> Result<(), KafkaError> {
        if self.paused {
            let assigned = self.consumer.assignment()?;
            let held = self.held.iter().map(|held| self.name(held.from));
            let held: Vec<(&str, i32)> = held.collect();
            self.consumer.resume(&without(&assigned, &held))?;
            self.paused = false;
            self.count_paused()?;
        }
        while let Some(at) = self.held.iter().position(|held| held.until <= now) {
            let Held { from, offset, .. } = self.held.swap_remove(at);
            let (topic, partition) = self.name(from);
            self.consumer.resume(&one(topic, partition))?;
            let offset = Offset::Offset(offset);
            self.consumer
                .seek(topic, partition, offset, Duration::ZERO)?;
            self.count_paused()?;
        }
        Ok(())
    }

    /// Stops a partition at a record that cannot be read yet; [`Source::resume`] delivers it again a little later.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn hold(&mut self, from: TopicPartition, offset: i64) -> Result<(), KafkaError> {
        let (topic, partition) = self.name(from);
        self.consumer.pause(&one(topic, partition))?;
        let until = Instant::now() + HOLD;
        self.held.push(Held {
            from,
            offset,
            until,
        });
        self.count_paused()
    }

    fn name(&self, from: TopicPartition) -> (&str, i32) {
        (&self.topics[from.topic], from.partition)
    }

    /// Commits what is finished and leaves the group; `false` if that did not end in time, because the brokers are
    /// gone. librdkafka may wait minutes for them, so it is left waiting on a thread that ends with the process.
    pub fn close(self, timeout: Duration) -> bool {
        let (closed, closing) = crossbeam_channel::bounded::<()>(1);
        std::thread::spawn(move || {
            self.commit();
            self.consumer
                .context()
                .closing
                .store(true, Ordering::Release);
            drop(self.consumer);
            drop(closed);
        });
        closing.recv_timeout(timeout) == Err(RecvTimeoutError::Disconnected)
    }

    fn count_paused(&self) -> Result<(), KafkaError> {
        let paused = match self.paused {
            true => self.consumer.assignment()?.count(),
            false => self.held.len(),
        };
        self.metrics.paused_partitions.set(paused as i64);
        Ok(())
    }
}

/// A consumer's place in its group.
pub struct Membership {
    /// Weak, so that leaving the group does not wait for this.
    consumer: Weak<BaseConsumer<Context>>,
    lost_below: Arc<AtomicU64>,
    topics: Vec<String>,
}

impl Membership {
    /// Whether the partitions of this batch are lost: others judge its records again.
    pub fn is_lost(&self, sequence: u64) -> bool {
        sequence < self.lost_below.load(Ordering::SeqCst)
    }

    /// What the group knows this member by, if it may commit batches from `sequence` on; `None` if they are lost.
    ///
    /// A commit without a generation is not checked by the group coordinator, and one with a newer generation is let
    /// through. So the metadata is read first, and must have been that of a member; the assignment must not be lost,
    /// nor its loss be completed already. Whichever way a loss falls between these, one of the checks sees it.
    pub(super) fn metadata(&self, sequence: u64) -> Option<ConsumerGroupMetadata> {
        let consumer = self.consumer.upgrade()?;
        let metadata = consumer.group_metadata()?;
        let refused = !is_member(&consumer) || consumer.assignment_lost() || self.is_lost(sequence);
        (!refused).then_some(metadata)
    }

    pub(super) fn offsets(&self, offsets: &[(TopicPartition, i64)]) -> TopicPartitionList {
        offset_list(&self.topics, offsets)
    }
}

/// Whether the consumer has a member id and a generation; once it has lost them, only a completed rebalance brings
/// new ones.
fn is_member(consumer: &BaseConsumer<Context>) -> bool {
    use rdkafka::bindings as rd;
    // SAFETY: the client outlives the call, and the metadata lives until it is destroyed below.
    unsafe {
        let metadata = rd::rd_kafka_consumer_group_metadata(consumer.client().native_ptr());
        if metadata.is_null() {
            return false;
        }
        let generation = rd::rd_kafka_consumer_group_metadata_generation_id(metadata);
        let member_id = rd::rd_kafka_consumer_group_metadata_member_id(metadata);
        let is_member = generation > 0 && !member_id.is_null() && *member_id != 0;
        rd::rd_kafka_consumer_group_metadata_destroy(metadata);
        is_member
    }
}

fn offset_list(topics: &[String], offsets: &[(TopicPartition, i64)]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for (from, next) in offsets {
        let offset = Offset::Offset(*next);
        list.add_partition_offset(&topics[from.topic], from.partition, offset)
            .expect("an offset from a record is valid");
    }
    list
}

fn one(topic: &str, partition: i32) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(1);
    list.add_partition(topic, partition);
    list
}

fn without(all: &TopicPartitionList, out: &[(&str, i32)]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(all.count());
    for element in all.elements() {
        if !out.contains(&(element.topic(), element.partition())) {
            list.add_partition(element.topic(), element.partition());
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

struct Context {
    complaint: LastComplaint,
    rebalances: Mutex<VecDeque<Rebalance>>,
    /// Nobody polls for events any more: rebalances are completed in place.
    closing: AtomicBool,
    metrics: Metrics,
    status: Status,
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
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.complaint.log(level, facility, message);
    }

    fn error(&self, error: ClientError, reason: &str) {
        self.complaint.error("consumer", &error, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        match serde_json::from_slice::<Statistics>(statistics) {
            Ok(statistics) => self.publish(&statistics),
            Err(e) => tracing::warn!("librdkafka's statistics cannot be read: {e}"),
        }
    }
}

impl Context {
    fn publish(&self, statistics: &Statistics) {
        let mut partitions = Partitions::new();
        for (topic, of_topic) in &statistics.topics {
            for (id, partition) in &of_topic.partitions {
                // -1 is librdkafka's internal partition; no lag is known before the first fetch.
                if *id < 0 || !partition.desired || partition.consumer_lag_stored < 0 {
                    continue;
                }
                self.metrics
                    .consumer_lag
                    .with_label_values(&[topic.as_str(), &id.to_string()])
                    .set(partition.consumer_lag_stored);
                let status = PartitionStatus {
                    lag: partition.consumer_lag_stored,
                    finished_offset: partition.stored_offset.max(-1),
                };
                partitions.insert((topic.clone(), *id), status);
            }
        }
        self.status.set_partitions(partitions);
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
    stored_offset: i64,
    consumer_lag_stored: i64,
}
