//! Looks up where to start reading newly assigned partitions, before they are assigned to librdkafka.
//!
//! librdkafka could find the offsets itself, but it fails in three cases:
//!
//! - While the transaction of a killed process is open, the group does not return its offsets (UNSTABLE_OFFSET_COMMIT).
//!   librdkafka 2.12 asks three times, then treats the partition as never read and applies `auto.offset.reset`.
//! - It does not notice that a topic was deleted and recreated.
//! - It applies the same rule to every missing offset, whatever the cause.
//!
//! Therefore the group is asked until it answers. Only then are the partitions assigned, with offsets chosen by the
//! rules of [`super::start_offset`]. Meanwhile the group coordinator does not wait, and partitions assigned earlier are
//! read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, bounded};
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::super::error::KafkaError;
use super::context::{GroupConsumer, PartitionName};
use super::known_topics::KnownTopics;
use super::start_lookup::StartLookup;
use super::start_offset::{OffsetReset, PartitionFacts, Start, StartReason};
use super::topics::Topics;
use crate::metrics::{
    Metrics, RESET_DELETED, RESET_OFFSET_DELETED, RESET_RECREATED, RESET_TRUNCATED,
};

const ASK_AGAIN_AFTER: Duration = Duration::from_millis(250);

type Answer = Result<Vec<PartitionFacts>, String>;

/// The partitions that the group has assigned to this consumer but that are not read yet.
pub(super) struct Assignment {
    pub reset: OffsetReset,
    is_exactly_once: bool,
    pending: Option<Pending>,
}

struct Pending {
    partitions: TopicPartitionList,
    answer: Receiver<Answer>,
    ask_again: Option<Instant>,
    /// Whether the wait was already logged, so that it is logged only once.
    is_logged: bool,
}

impl Assignment {
    pub fn new(reset: OffsetReset, is_exactly_once: bool) -> Assignment {
        Assignment {
            reset,
            is_exactly_once,
            pending: None,
        }
    }

    /// Starts to look up the start offsets of `partitions`.
    pub fn begin(
        &mut self,
        consumer: &Arc<GroupConsumer>,
        known: &KnownTopics,
        partitions: &TopicPartitionList,
    ) {
        self.pending = Some(Pending {
            partitions: partitions.clone(),
            answer: look_up(consumer, known, self.reset, partitions),
            ask_again: None,
            is_logged: false,
        });
    }

    /// Returns the facts about all pending partitions once they are known. Until then, repeats the request after each
    /// failure.
    pub fn poll(
        &mut self,
        consumer: &Arc<GroupConsumer>,
        known: &KnownTopics,
        now: Instant,
    ) -> Option<Vec<PartitionFacts>> {
        let pending = self.pending.as_mut()?;
        if let Some(again) = pending.ask_again {
            if now >= again {
                pending.answer = look_up(consumer, known, self.reset, &pending.partitions);
                pending.ask_again = None;
            }
            return None;
        }
        let answer = match pending.answer.try_recv() {
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => Err("the lookup ended without an answer".to_owned()),
            Ok(answer) => answer,
        };
        match answer {
            Ok(facts) => {
                self.pending = None;
                Some(facts)
            }
            Err(problem) => {
                pending.ask_again = Some(now + ASK_AGAIN_AFTER);
                pending.log_wait(&problem, self.is_exactly_once);
                None
            }
        }
    }

    pub fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Returns whether the start offset of this partition is still unknown.
    pub fn is_pending_for(&self, (topic, partition): &PartitionName) -> bool {
        let pending = self.pending.as_ref();
        let found = pending.and_then(|p| p.partitions.find_partition(topic, *partition));
        found.is_some()
    }

    /// Cancels the lookup and returns the pending partitions.
    pub fn cancel(&mut self) -> Option<TopicPartitionList> {
        self.pending.take().map(|pending| pending.partitions)
    }
}

impl Pending {
    fn log_wait(&mut self, problem: &str, is_exactly_once: bool) {
        if self.is_logged {
            return;
        }
        self.is_logged = true;
        match is_exactly_once {
            true => tracing::info!(
                "new partitions wait until a transaction of their last owner has ended: {problem}"
            ),
            false => tracing::info!(
                "new partitions wait until the brokers return their start offsets: {problem}"
            ),
        }
    }
}

/// Runs the lookup on another thread, because an answer may take seconds.
fn look_up(
    consumer: &Arc<GroupConsumer>,
    known: &KnownTopics,
    reset: OffsetReset,
    partitions: &TopicPartitionList,
) -> Receiver<Answer> {
    let (answer, answered) = bounded(1);
    let lookup = StartLookup {
        consumer: Arc::clone(consumer),
        partitions: partitions.clone(),
        known: known.clone(),
        reset,
    };
    std::thread::spawn(move || {
        let facts = lookup.run();
        drop(lookup);
        let _ = answer.send(facts);
    });
    answered
}

/// The start offsets to assign, and those to commit because the group's offset differs from the start.
pub(super) struct Starts {
    pub to_assign: TopicPartitionList,
    to_commit: TopicPartitionList,
    /// For the log: each start with the facts that decided it.
    decisions: Vec<String>,
}

impl Starts {
    pub fn with_capacity(partitions: usize) -> Starts {
        Starts {
            to_assign: TopicPartitionList::with_capacity(partitions),
            to_commit: TopicPartitionList::with_capacity(partitions),
            decisions: Vec::with_capacity(partitions),
        }
    }

    pub fn add(&mut self, facts: &PartitionFacts, start: Start) {
        let offset = Offset::Offset(start.offset);
        self.to_assign
            .add_partition_offset(&facts.topic, facts.partition, offset)
            .expect("an offset that Kafka gave is valid");
        let is_committed = facts.committed == Some(start.offset)
            && facts.committed_metadata.is_some()
            && start.reason != StartReason::Recreated;
        let group = facts.committed.map_or("none".into(), |o| o.to_string());
        self.decisions.push(format!(
            "{}-{} at {} ({:?}, group's offset {group}, log {} to {}{})",
            facts.topic,
            facts.partition,
            start.offset,
            start.reason,
            facts.low,
            facts.high,
            if is_committed { "" } else { ", to commit" }
        ));
        if !is_committed {
            let mut commit = self.to_commit.add_partition(&facts.topic, facts.partition);
            commit
                .set_offset(offset)
                .expect("an offset that Kafka gave is valid");
            commit.set_metadata(facts.metadata.to_string());
        }
    }

    /// Logs where each partition starts and why. If records are ever judged twice, this shows who began where.
    pub fn log(&self) {
        tracing::info!(starts = %self.decisions.join("; "), "reading starts");
    }

    /// Commits the start offsets, so that partitions without records have a committed offset too. A partition without
    /// one counts as newer than the group. Call this before assigning the partitions, so that it cannot overwrite a
    /// later commit.
    pub fn commit(&self, consumer: &GroupConsumer) {
        if self.to_commit.count() == 0 {
            return;
        }
        if let Err(e) = consumer.commit(&self.to_commit, CommitMode::Sync) {
            tracing::warn!("cannot commit the start offsets of partitions: {e}");
        }
    }
}

/// Sets the metadata to commit with the topic's offsets. Returns `false` and changes nothing while other assigned
/// partitions belong to a deleted topic of the same name.
pub(super) fn set_metadata(
    consumer: &GroupConsumer,
    topics: &Topics,
    facts: &PartitionFacts,
) -> Result<bool, KafkaError> {
    let number = topics.number(&facts.topic);
    let then = topics.metadata(number);
    let is_another = then.is_some_and(|then| then.differs(&facts.metadata));
    if is_another && reads_topic(consumer, &facts.topic)? {
        return Ok(false);
    }
    topics.set_metadata(number, Some(facts.metadata.clone()));
    topics.set_assigned(number);
    Ok(true)
}

/// Forgets the metadata of topics that are no longer read. The name may belong to another topic when it is assigned
/// again.
pub(super) fn forget_metadata(
    consumer: &GroupConsumer,
    topics: &Topics,
    revoked: &TopicPartitionList,
) -> Result<(), KafkaError> {
    for element in revoked.elements() {
        if !reads_topic(consumer, element.topic())? {
            let number = topics.number(element.topic());
            topics.set_metadata(number, None);
        }
    }
    Ok(())
}

/// Returns whether a partition of this topic is assigned.
fn reads_topic(consumer: &GroupConsumer, topic: &str) -> Result<bool, KafkaError> {
    let assigned = consumer.assignment()?;
    let mut elements = assigned.elements().into_iter();
    Ok(elements.any(|element| element.topic() == topic))
}

/// Logs and counts where a partition starts, unless it continues at the group's offset.
pub(super) fn report(metrics: &Metrics, facts: &PartitionFacts, start: Start) {
    let partition = format!("{}-{}", facts.topic, facts.partition);
    let Start {
        offset,
        unread,
        read_again,
        ..
    } = start;
    let (records, committed) = (facts.high - facts.low, facts.committed.unwrap_or_default());
    let reason = match start.reason {
        StartReason::Continues => return,
        StartReason::New => {
            tracing::info!(
                "{partition} is newer than the group: it is read from its beginning, offset {offset}, and holds {records} records"
            );
            return;
        }
        StartReason::FirstTime => {
            let skipped = match unread {
                0 => String::new(),
                _ => format!("; the {unread} records before it are not read"),
            };
            tracing::info!(
                "the group has no offset in {partition}: it is read from offset {offset}, as auto.offset.reset requires{skipped}"
            );
            return;
        }
        StartReason::Recreated => {
            tracing::warn!(
                "topic `{}` was deleted and recreated: {partition} is read from its beginning, offset {offset}, and holds {records} records; the unread records of the old topic are lost",
                facts.topic
            );
            RESET_RECREATED
        }
        StartReason::Deleted => {
            tracing::warn!(
                "{unread} records of {partition} were deleted before they were read: the group's offset was {committed}, and reading continues at the first record left, offset {offset}. Raise the topic's retention, or add workers or replicas"
            );
            RESET_DELETED
        }
        StartReason::Truncated => {
            tracing::warn!(
                "the brokers have lost records of {partition}: the group's offset was {committed}, but the partition ends at {}; it is read from offset {offset}, as auto.offset.reset requires, and {read_again} records are scored again",
                facts.high
            );
            RESET_TRUNCATED
        }
        StartReason::OffsetDeleted => {
            tracing::warn!(
                "the group's offset in {partition} was deleted: it is read from offset {offset}, as auto.offset.reset requires; {read_again} records may be scored again, and {unread} are not read"
            );
            RESET_OFFSET_DELETED
        }
    };
    let resets = &metrics.partition_resets;
    resets.with_label_values(&[reason]).inc();
    metrics.records_unread.inc_by(unread.unsigned_abs());
    metrics.records_read_again.inc_by(read_again.unsigned_abs());
}
