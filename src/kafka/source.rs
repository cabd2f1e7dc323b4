//! The consumer. Rebalances come out as events: whoever polls drains first and completes them after.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::BorrowedMessage;
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};
use serde::Deserialize;

use super::assignment::{Assigning, reset_offset};
use super::hold::Held;
use super::membership::Membership;
use super::{KafkaError, LastComplaint, await_topic, client_config, decompression, report};
use crate::batch::TopicPartition;
use crate::config::{Guarantee, Kafka};
use crate::metrics::Metrics;
use crate::record::Record;
use crate::shutdown::Shutdown;
use crate::status::{PartitionStatus, Partitions, Status};

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
    pub(super) topics: Vec<String>,
    guarantee: Guarantee,
    lost_below: Arc<AtomicU64>,
    metrics: Metrics,
    status: Status,
    /// Nothing is fetched: the stages behind are busy.
    paused: bool,
    pub(super) held: Vec<Held>,
    /// Where a partition starts that was never read.
    pub(super) reset: Option<Offset>,
    pub(super) assigning: Option<Assigning>,
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
            reset: reset_offset(kafka),
            assigning: None,
        })
    }

    pub fn topics(&self) -> &[String] {
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
            passing => {
                report("consumer", &passing, "trying again");
                Ok(())
            }
        }
    }

    /// The message as a record, and its partition.
    pub fn record<'m>(&self, message: &'m BorrowedMessage<'_>) -> (Record<'m>, TopicPartition) {
        let record = super::record(message);
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
        let partitions = &rebalance.partitions;
        self.metrics.rebalances.inc();
        tracing::info!(
            kind = ?rebalance.kind,
            partitions = %listed(partitions),
            "rebalance"
        );
        if rebalance.kind == RebalanceKind::Assign {
            if self.is_exactly_once() && partitions.count() > 0 {
                self.assign_when_known(partitions);
                return Ok(());
            }
            return self.assign(partitions);
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
        for element in partitions.elements() {
            let labels = [element.topic(), &element.partition().to_string()];
            // Absent if no statistics came in between.
            let _ = self.metrics.consumer_lag.remove_label_values(&labels);
        }
        self.count_paused()
    }

    pub(super) fn assign(&mut self, partitions: &TopicPartitionList) -> Result<(), KafkaError> {
        match is_cooperative(&self.consumer) {
            true => self.consumer.incremental_assign(partitions)?,
            false => self.consumer.assign(partitions)?,
        }
        if self.paused {
            self.consumer.pause(partitions)?;
        }
        self.status.partitions_are_assigned(true);
        self.count_paused()
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
        if self.is_exactly_once() {
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

    /// Fetches again: after [`Source::pause`], and held partitions whose time has come.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn resume(&mut self, now: Instant) -> Result<(), KafkaError> {
        if self.paused {
            let assigned = self.consumer.assignment()?;
            self.consumer.resume(&self.without_held(&assigned))?;
            self.paused = false;
            self.count_paused()?;
        }
        self.try_assign(now)?;
        self.try_held(now)
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

    pub(super) fn count_paused(&self) -> Result<(), KafkaError> {
        let paused = match self.paused {
            true => self.consumer.assignment()?.count(),
            false => self.held.len(),
        };
        self.metrics.paused_partitions.set(paused as i64);
        Ok(())
    }
}

pub(super) fn offset_list(
    topics: &[String],
    offsets: &[(TopicPartition, i64)],
) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for (from, next) in offsets {
        let offset = Offset::Offset(*next);
        list.add_partition_offset(&topics[from.topic], from.partition, offset)
            .expect("an offset from a record is valid");
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
        let held = i64::try_from(decompression::held()).unwrap_or(i64::MAX);
        self.metrics.memory_decompressed_bytes.set(held);
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
