//! The Kafka consumer. It returns rebalances as events, so that the caller can drain before it completes them.
//!
//! [`Source`] owns librdkafka's consumer and lends it to the parts in `consumer/`, which never import `Source`.
//! Dropping the last reference to the consumer leaves the group, so no part keeps a reference longer than one request.

mod assignment;
mod backpressure;
mod commit_metadata;
pub(super) mod context;
mod empty_tails;
mod known_topics;
pub(super) mod membership;
mod partition_offsets;
mod progress;
mod rejoin;
mod schema_hold;
mod sibling_offsets;
mod stale_assignment;
mod start_lookup;
mod start_offset;
mod startup_topics;
mod topic_selection;
mod topic_watch;
pub(super) mod topics;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use rdkafka::TopicPartitionList;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaErrorCode;

use self::assignment::{Assignment, Starts};
use self::backpressure::Backpressure;
use self::context::{
    GroupConsumer, PartitionName, Rebalance, RebalanceKind, SourceContext, is_cooperative,
};
use self::empty_tails::EmptyTails;
use self::membership::Membership;
use self::progress::{PartitionProgress, ProgressTracker};
use self::rejoin::Rejoin;
use self::schema_hold::SchemaHolds;
use self::start_offset::{OffsetReset, PartitionFacts};
use self::startup_topics::await_topics;
use self::topic_selection::TopicSelection;
use self::topic_watch::TopicWatch;
use self::topics::Topics;
use super::client::last_error::{LastError, report};
use super::error::{KafkaError, is_topic_missing};
use super::{client, decompression, messages};
use crate::batch::TopicPartition;
use crate::config::{Guarantee, KafkaSettings};
use crate::metrics::Metrics;
use crate::record::Record;
use crate::shutdown::Shutdown;
use crate::status::{Status, Waiting};

/// How often [`Source::close`] checks whether other threads have released the client.
const RELEASE_POLL: Duration = Duration::from_millis(5);

/// The result of a poll.
pub enum Event<'c> {
    Message(BorrowedMessage<'c>),
    /// Pass this to [`Source::complete`] once the in-flight records are drained.
    Rebalance(Rebalance),
    Idle,
}

pub struct Source {
    consumer: Arc<GroupConsumer>,
    guarantee: Guarantee,
    topics: Topics,
    watch: TopicWatch,
    assignment: Assignment,
    rejoin: Rejoin,
    backpressure: Backpressure,
    holds: SchemaHolds,
    progress: ProgressTracker,
    tails: EmptyTails,
    lost_below: Arc<AtomicU64>,
    metrics: Metrics,
    status: Status,
}

pub(super) fn config(kafka: &KafkaSettings) -> ClientConfig {
    let mut config = client::config(kafka, &kafka.consumer);
    // `Source` stores offsets after a batch is delivered. librdkafka commits stored offsets, unless the producer
    // commits them in transactions.
    let commits = kafka.guarantee == Guarantee::AtLeastOnce;
    config
        .set("group.id", &kafka.group_id)
        .set("enable.auto.commit", commits.to_string())
        .set("enable.auto.offset.store", "false");
    config
}

impl Source {
    /// Connects, waits for the topics, and subscribes. Patterns never select the topics in `written`.
    ///
    /// # Errors
    /// [`KafkaError`] when a setting is refused, no broker answers in time, topics are absent, or a stop comes first.
    pub fn connect(
        kafka: &KafkaSettings,
        written: &[&str],
        metrics: Metrics,
        status: Status,
        stop: &Shutdown,
    ) -> Result<Source, KafkaError> {
        let last_error = LastError::default();
        let mut config = config(kafka);
        // `start_offset` decides where reading starts. With `error`, librdkafka only reports an offset that does not
        // exist.
        config.set("auto.offset.reset", "error");
        let consumer: GroupConsumer =
            client::create(&config, SourceContext::new(last_error.clone()))?;
        let selection = TopicSelection::new(&kafka.topics, written)?;
        let found = await_topics(&consumer, kafka, &selection, &last_error, stop)?;
        let consumer = Arc::new(consumer);
        let topics = Topics::default();
        let is_exactly_once = kafka.guarantee != Guarantee::AtLeastOnce;
        let reset = OffsetReset::from_settings(kafka);
        let mut source = Source {
            watch: TopicWatch::begin(
                &consumer,
                selection,
                kafka,
                topics.clone(),
                found,
                status.clone(),
            ),
            guarantee: kafka.guarantee,
            assignment: Assignment::new(reset, is_exactly_once),
            rejoin: Rejoin::default(),
            backpressure: Backpressure::default(),
            holds: SchemaHolds::new(topics.clone()),
            progress: ProgressTracker::new(metrics.clone(), status.clone()),
            tails: EmptyTails::new(kafka),
            lost_below: Arc::default(),
            consumer,
            topics,
            metrics,
            status,
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

    /// Returns the membership in the group. The producer uses it to commit offsets in the consumer's name.
    pub fn membership(&self) -> Membership {
        Membership {
            consumer: Arc::downgrade(&self.consumer),
            lost_below: Arc::clone(&self.lost_below),
            topics: self.topics.clone(),
        }
    }

    /// Marks the partitions of every batch below this sequence as lost. Call this before completing the rebalance,
    /// because afterwards the group accepts this member's commits again.
    pub fn lose_below(&self, sequence: u64) {
        self.lost_below.store(sequence, Ordering::SeqCst);
    }

    /// Waits up to `timeout` for an event.
    ///
    /// # Errors
    /// When librdkafka will not recover by itself.
    pub fn poll(&self, timeout: Duration) -> Result<Event<'_>, KafkaError> {
        let polled = self.consumer.poll(timeout);
        if let Some(rebalance) = self.consumer.context().next_rebalance() {
            // librdkafka returns no message from a poll in which it served a rebalance.
            return Ok(Event::Rebalance(rebalance));
        }
        match polled {
            Some(Ok(message)) => Ok(Event::Message(message)),
            Some(Err(error)) => self.handle_error(error).map(|()| Event::Idle),
            None => Ok(Event::Idle),
        }
    }

    /// Returns fatal errors. Logs the others, and reacts to some of them.
    fn handle_error(&self, error: ClientError) -> Result<(), KafkaError> {
        use RDKafkaErrorCode as Code;
        match error {
            ClientError::MessageConsumption(code) if is_topic_missing(code) => {
                tracing::debug!("a topic cannot be read: {code}");
                self.watch.look_now();
                Ok(())
            }
            ClientError::MessageConsumption(Code::AutoOffsetReset) => {
                self.watch.must_rejoin.store(true, Ordering::Relaxed);
                Ok(())
            }
            ClientError::MessageConsumption(code @ Code::GroupAuthorizationFailed) => {
                Err(KafkaError::Client(format!("consumer: {code}")))
            }
            ClientError::MessageConsumptionFatal(code) => Err(KafkaError::Client(format!(
                "the consumer was fenced: {code}"
            ))),
            ClientError::MessageConsumption(Code::BadCompression) if decompression::held_back() => {
                tracing::debug!(
                    "a compressed batch waits until earlier batches release their share of memory"
                );
                Ok(())
            }
            ClientError::MessageConsumption(Code::BadCompression) => {
                if decompression::may_log() {
                    tracing::warn!(
                        "a compressed batch is damaged or needs more than its share of memory, so its partition waits: raise memory.limit, or move the group past the batch (kafka-consumer-groups.sh --reset-offsets)"
                    );
                }
                Ok(())
            }
            // This includes a refused sign-in. The first sign-in succeeded, so an identity provider that is down may
            // come back.
            transient => {
                report("consumer", &transient, "trying again");
                Ok(())
            }
        }
    }

    /// Returns the message as a record, and its partition.
    pub fn record<'m>(&self, message: &'m BorrowedMessage<'_>) -> (Record<'m>, TopicPartition) {
        let record = messages::record(message);
        let from = TopicPartition {
            topic: self.topics.number(record.topic),
            partition: record.partition,
        };
        (record, from)
    }

    /// Completes a rebalance. The group coordinator waits until this is done.
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
                self.progress.assign(partitions);
                self.assignment
                    .begin(&self.consumer, &self.watch.known, partitions);
                return Ok(());
            }
            return self.assign(partitions);
        }
        if rebalance.kind == RebalanceKind::Lost {
            self.status.partitions_are_assigned(false);
        }
        self.cancel_assignment();
        match is_cooperative(&self.consumer) {
            true => self.consumer.incremental_unassign(partitions)?,
            false => self.consumer.unassign()?,
        }
        self.holds.revoke(partitions);
        assignment::forget_metadata(&self.consumer, &self.topics, partitions)?;
        self.progress.revoke(partitions);
        self.count_paused();
        Ok(())
    }

    fn assign(&mut self, partitions: &TopicPartitionList) -> Result<(), KafkaError> {
        match is_cooperative(&self.consumer) {
            true => self.consumer.incremental_assign(partitions)?,
            false => self.consumer.assign(partitions)?,
        }
        self.backpressure.apply_to(&self.consumer, partitions)?;
        self.progress.assign(partitions);
        self.status.partitions_are_assigned(true);
        self.count_paused();
        Ok(())
    }

    /// Assigns partitions, each at the offset chosen by [`PartitionFacts::start`].
    fn start(&mut self, facts: &[PartitionFacts]) -> Result<(), KafkaError> {
        let mut starts = Starts::with_capacity(facts.len());
        for partition in facts {
            let start = partition.start(self.assignment.reset)?;
            assignment::report(&self.metrics, partition, start);
            if !assignment::set_metadata(&self.consumer, &self.topics, partition)? {
                // The next look finds that the topic was recreated and makes the consumer rejoin.
                self.watch.look_now();
            }
            starts.add(partition, start);
        }
        starts.log();
        starts.commit(&self.consumer);
        self.assign(&starts.to_assign)
    }

    /// Assigns pending partitions without waiting for their offsets, because librdkafka can leave the group or give
    /// partitions back only after they were assigned.
    fn cancel_assignment(&mut self) {
        if let Some(partitions) = self.assignment.cancel()
            && let Err(e) = self.assign(&partitions)
        {
            tracing::debug!("leaving the group: {e}");
        }
    }

    /// Acts on the latest look at the topics, if it is new.
    fn follow_topics(&mut self) -> Result<(), KafkaError> {
        let Some(found) = self.watch.latest() else {
            return Ok(());
        };
        self.watch.count_missing(&found, &self.metrics);
        let has_changed = self.watch.update_subscribed(&found);
        let subscribed = &self.watch.subscribed;
        if subscribed.is_empty() {
            // Without a topic there is nothing to wait for, so the daemon is ready.
            self.status.partitions_are_assigned(true);
        }
        if has_changed {
            self.rejoin.subscribe(&self.consumer, subscribed)?;
        }
        self.watch
            .check_recreated(&self.consumer, &self.topics, &found)
    }

    /// Leaves and rejoins the group if partitions must be read from other offsets.
    fn rejoin_if_needed(&mut self, now: Instant) -> Result<(), KafkaError> {
        let must_rejoin = &self.watch.must_rejoin;
        if self.rejoin.is_leaving() {
            return self.rejoin.finish(&self.consumer, must_rejoin);
        }
        if self.rejoin.is_allowed(now) && must_rejoin.swap(false, Ordering::Relaxed) {
            tracing::info!("leaving and rejoining the group to look up where to read from");
            self.rejoin.begin(now, self.watch.subscribed.clone());
            if let Some(partitions) = self.assignment.cancel() {
                // Only assigned partitions can be given back. They are paused so that nothing is read from them until
                // then.
                self.assign(&partitions)?;
                self.consumer.pause(&partitions)?;
            }
            self.consumer.unsubscribe();
        }
        Ok(())
    }

    /// Marks everything below these offsets as finished. The next commit includes them.
    pub fn finish(&mut self, offsets: &[(TopicPartition, i64)]) {
        for (from, next) in offsets {
            let topic = &self.topics[from.topic];
            self.progress.finish(topic, from.partition, *next);
        }
        let offsets = self.topics.with_metadata(offsets);
        if let Err(e) = self.consumer.store_offsets(&offsets) {
            // The partition was revoked meanwhile. Its new owner reads these records again.
            tracing::debug!("cannot store offsets: {e}");
        }
    }

    /// Commits the finished offsets and waits for the brokers' answer. Does nothing if transactions commit the offsets.
    pub fn commit(&self) {
        if self.is_exactly_once() {
            return;
        }
        match self.consumer.commit_consumer_state(CommitMode::Sync) {
            Ok(()) | Err(ClientError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => {}
            Err(e) if e.rdkafka_error_code().is_some_and(is_topic_missing) => {
                tracing::info!("the offsets of a deleted topic are not committed");
            }
            Err(e) => tracing::warn!(
                "cannot commit offsets: {e}; the records since the last commit will be scored again"
            ),
        }
    }

    /// Pauses all partitions under backpressure. The caller must keep polling, so that the group keeps this member.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn pause(&mut self) -> Result<(), KafkaError> {
        if !self.backpressure.is_paused() {
            self.backpressure.pause(&self.consumer)?;
            self.holds.stop_looking_ahead();
            self.count_paused();
        }
        Ok(())
    }

    /// Resumes fetching after [`Source::pause`], and continues rebalances and rejoins.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn resume(&mut self, now: Instant) -> Result<(), KafkaError> {
        self.follow_topics()?;
        self.rejoin_if_needed(now)?;
        if self.backpressure.is_paused() {
            let assigned = self.consumer.assignment()?;
            let partitions = self.holds.without_held(&assigned);
            self.backpressure.resume(&self.consumer, &partitions)?;
            self.count_paused();
        }
        let known = &self.watch.known;
        match self.assignment.poll(&self.consumer, known, now) {
            Some(facts) => self.start(&facts),
            None => Ok(()),
        }
    }

    /// Returns whether a partition waits for its start offset or for a schema.
    pub fn is_holding(&self) -> bool {
        self.assignment.is_pending() || self.holds.count() > 0
    }

    /// Holds a partition at a record whose schema is not known yet. [`Source::release`] makes librdkafka deliver the
    /// record again.
    pub fn hold(&mut self, from: TopicPartition, offset: i64, schema: u32) {
        let topic = &self.topics[from.topic];
        self.progress.reset_tail(topic, from.partition);
        let is_paused = self.backpressure.is_paused();
        self.holds.hold(from, offset, schema, is_paused);
        self.count_paused();
    }

    /// Returns whether records of this partition must not be taken now.
    pub fn is_held(&self, from: TopicPartition) -> bool {
        self.holds.is_held(from)
    }

    /// Notes that a record after the one that holds its partition was looked at.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn looked_ahead(&mut self, from: TopicPartition, size: usize) -> Result<(), KafkaError> {
        self.holds.looked_ahead(&self.consumer, from, size)
    }

    /// Ends the hold on a partition, because one of its records was taken.
    pub fn taken(&mut self, from: TopicPartition) {
        if self.holds.remove(from) {
            self.count_paused();
        }
    }

    /// Resumes held partitions for whose schema `waits_for` returns `None`. For the others, its answer is shown as the
    /// reason for waiting.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn release(
        &mut self,
        now: Instant,
        waits_for: impl Fn(u32) -> Option<String>,
    ) -> Result<(), KafkaError> {
        self.holds.release(&self.consumer, now, waits_for)
    }

    /// Updates the progress of all partitions at regular intervals. Never waits for the brokers.
    pub fn update_progress(&mut self, now: Instant) {
        self.progress.take_answer(self.assignment.reset.offset());
        let (backpressure, holds) = (&self.backpressure, &self.holds);
        let is_stopped =
            |name: &PartitionName| backpressure.is_paused() || holds.is_held_by_name(name);
        if let Some(ends) = self.consumer.context().take_ends() {
            self.progress.take_fetched_ends(ends, is_stopped);
        }
        self.tails.take_result(&mut self.progress);
        if !self.progress.is_due(now) {
            return;
        }
        self.progress.ask(&self.consumer, now);
        if !self.assignment.is_pending() {
            self.tails.search(&mut self.progress, now, is_stopped);
        }
        self.publish_progress();
        let held = i64::try_from(decompression::held()).unwrap_or(i64::MAX);
        self.metrics.memory_decompressed_bytes.set(held);
    }

    /// Returns partitions with an offset below which no unfinished record is left, so that everything below can be
    /// finished. Each is returned once.
    pub fn empty_tails(&mut self) -> Vec<(TopicPartition, i64)> {
        let mut tails = Vec::new();
        for tail in self.tails.confirmed(&self.consumer, &mut self.progress) {
            let (topic, partition) = tail.name;
            let topic = self.topics.number(&topic);
            tails.push((TopicPartition { topic, partition }, tail.end));
        }
        for (from, _) in &tails {
            self.taken(*from);
        }
        tails
    }

    /// Updates the metric of paused partitions, and publishes the progress of all partitions.
    fn count_paused(&self) {
        let paused = match self.backpressure.is_paused() {
            true => self.progress.count(),
            false => self.holds.count(),
        };
        self.metrics.paused_partitions.set(paused as i64);
        self.publish_progress();
    }

    fn publish_progress(&self) {
        self.progress
            .publish(|name, progress| self.waiting(name, progress));
    }

    /// Returns what a partition waits for, if it waits.
    fn waiting(&self, name: &PartitionName, progress: &PartitionProgress) -> Option<Waiting> {
        let (what, since) = if let Some(hold) = self.holds.get(name) {
            (hold.waits_for.clone(), hold.since)
        } else if self.assignment.is_pending_for(name) {
            let what = "the group's offsets: the last owner's transaction may be open";
            (what.to_owned(), progress.assigned)
        } else if let Some(since) = self.backpressure.paused_since() {
            let what = "the scorers or the delivery of verdicts, which are behind";
            (what.to_owned(), since)
        } else if progress.lag().is_none() {
            let what = "its offsets from the brokers";
            (what.to_owned(), progress.unknown_since())
        } else if let Some((offsets, since)) = progress.hidden() {
            let what = format!(
                "an open transaction to end, which hides {offsets} offsets from offset {} on",
                progress.end.unwrap_or(-1)
            );
            (what, since)
        } else {
            return None;
        };
        Some(Waiting { what, since })
    }

    /// Commits the finished offsets and leaves the group. Returns `false` if that takes longer than `timeout`: without
    /// brokers, librdkafka may wait for minutes. The call is then left on a thread that ends with the process.
    pub fn close(mut self, timeout: Duration) -> bool {
        self.cancel_assignment();
        let (closed, closing) = crossbeam_channel::bounded::<()>(1);
        std::thread::spawn(move || {
            self.commit();
            // Threads that request offsets release the client soon.
            while Arc::strong_count(&self.consumer) > 1 {
                std::thread::sleep(RELEASE_POLL);
            }
            self.consumer.context().set_closing();
            drop(self.consumer);
            drop(closed);
        });
        closing.recv_timeout(timeout) == Err(RecvTimeoutError::Disconnected)
    }
}

fn listed(partitions: &TopicPartitionList) -> String {
    let names = partitions
        .elements()
        .into_iter()
        .map(|element| format!("{}-{}", element.topic(), element.partition()));
    names.collect::<Vec<_>>().join(" ")
}
