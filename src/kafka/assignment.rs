//! From where assigned partitions are read, asked of the group by ourselves.
//!
//! librdkafka is not left to find that out, for three reasons. While the transaction of a process that was killed is open,
//! the group does not tell (UNSTABLE_OFFSET_COMMIT); librdkafka 2.12 asks three times, then takes the partition for one
//! that was never read and starts over by `auto.offset.reset`. It does not see that a topic was deleted and made again. And
//! where an offset is missing it knows one rule for every cause. So the group is asked until it tells, and only then the
//! partitions are assigned, with their offsets by the rules of [`super::start`]. The group waits for no answer to an
//! assignment, and what was assigned before is read on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, bounded};
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::progress::Name;
use super::question::Question;
use super::start::{Found, Reset, Start, Why};
use super::{KafkaError, Source};
use crate::config::Kafka;
use crate::metrics::{RESET_DELETED, RESET_OFFSET_DELETED, RESET_RECREATED, RESET_TRUNCATED};

const ASK_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// Partitions given to us that are not read yet.
pub(super) struct Assigning {
    pub partitions: TopicPartitionList,
    answer: Receiver<Result<Vec<Found>, String>>,
    ask_again: Option<Instant>,
    complained: bool,
}

/// `auto.offset.reset`.
pub(super) fn reset(kafka: &Kafka) -> Reset {
    let settings = [&kafka.consumer, &kafka.client];
    let reset = settings
        .iter()
        .find_map(|settings| settings.get("auto.offset.reset"));
    match reset {
        Some("smallest" | "earliest" | "beginning") => Reset::Beginning,
        Some("error" | "none") => Reset::Refuse,
        // As librdkafka has it.
        _ => Reset::End,
    }
}

impl Source {
    /// Assigns `partitions` once the group has told from where to read them.
    pub(super) fn assign_when_known(&mut self, partitions: &TopicPartitionList) {
        self.assigning = Some(Assigning {
            partitions: partitions.clone(),
            answer: self.ask(partitions),
            ask_again: None,
            complained: false,
        });
    }

    /// On a thread of its own: it may take seconds.
    fn ask(&self, partitions: &TopicPartitionList) -> Receiver<Result<Vec<Found>, String>> {
        let (answer, answered) = bounded(1);
        let question = Question {
            consumer: Arc::clone(&self.consumer),
            partitions: partitions.clone(),
            seen: self.watch.seen.clone(),
            reset: self.reset,
        };
        std::thread::spawn(move || {
            let found = question.ask();
            drop(question);
            let _ = answer.send(found);
        });
        answered
    }

    pub(super) fn try_assign(&mut self, now: Instant) -> Result<(), KafkaError> {
        let Some(assigning) = &self.assigning else {
            return Ok(());
        };
        if let Some(again) = assigning.ask_again {
            if now >= again {
                let answer = self.ask(&assigning.partitions);
                if let Some(assigning) = &mut self.assigning {
                    assigning.answer = answer;
                    assigning.ask_again = None;
                }
            }
            return Ok(());
        }
        let found = match assigning.answer.try_recv() {
            Err(TryRecvError::Empty) => return Ok(()),
            Err(TryRecvError::Disconnected) => Err("nobody answered".to_owned()),
            Ok(found) => found,
        };
        match found {
            Ok(found) => {
                self.assigning = None;
                self.start(&found)
            }
            Err(problem) => {
                self.ask_again(now + ASK_AGAIN_AFTER, &problem);
                Ok(())
            }
        }
    }

    fn ask_again(&mut self, at: Instant, problem: &str) {
        let exactly_once = self.is_exactly_once();
        let Some(assigning) = &mut self.assigning else {
            return;
        };
        assigning.ask_again = Some(at);
        if !assigning.complained {
            assigning.complained = true;
            match exactly_once {
                true => tracing::info!(
                    "waiting for the transaction of the last owner of these partitions to end: {problem}"
                ),
                false => tracing::info!(
                    "the brokers do not say yet from where to read the new partitions, so they wait: {problem}"
                ),
            }
        }
    }

    /// Whether the group has not told yet from where to read it.
    pub(super) fn is_assigning(&self, (topic, partition): &Name) -> bool {
        let assigning = self.assigning.as_ref();
        let found = assigning.and_then(|a| a.partitions.find_partition(topic, *partition));
        found.is_some()
    }

    /// Gives up asking: who leaves the group must have taken what it was given.
    pub(super) fn stop_assigning(&mut self) {
        if let Some(assigning) = self.assigning.take()
            && let Err(e) = self.assign(&assigning.partitions)
        {
            tracing::debug!("leaving the group: {e}");
        }
    }

    /// Assigns partitions with their offsets.
    fn start(&mut self, found: &[Found]) -> Result<(), KafkaError> {
        let mut starts = TopicPartitionList::with_capacity(found.len());
        let mut to_commit = TopicPartitionList::with_capacity(found.len());
        for partition in found {
            let start = partition.start(self.reset)?;
            self.report(partition, start);
            self.set_mark(partition)?;
            let offset = Offset::Offset(start.offset);
            let (topic, number) = (&partition.topic, partition.partition);
            starts
                .add_partition_offset(topic, number, offset)
                .expect("an offset that Kafka gave is valid");
            let unmarked = partition.committed_mark.is_none();
            if partition.committed != Some(start.offset) || start.why == Why::Recreated || unmarked
            {
                let mut commit = to_commit.add_partition(topic, number);
                commit
                    .set_offset(offset)
                    .expect("an offset that Kafka gave is valid");
                commit.set_metadata(partition.mark.to_string());
            }
        }
        self.commit_starts(&to_commit);
        self.assign(&starts)
    }

    /// So that a partition without records has an offset too: one without is newer than the group. Before anything is
    /// read, so that this overtakes no later commit.
    fn commit_starts(&self, starts: &TopicPartitionList) {
        if starts.count() == 0 {
            return;
        }
        if let Err(e) = self.consumer.commit(starts, CommitMode::Sync) {
            tracing::warn!("where the partitions start is not committed: {e}");
        }
    }

    /// Keeps the old mark while other partitions are read as those of the topic before this one: the next look at the
    /// topics finds the difference and has all of them read again.
    fn set_mark(&self, found: &Found) -> Result<(), KafkaError> {
        let number = self.topics.number(&found.topic);
        let then = self.topics.mark(number);
        let another = then.is_some_and(|then| then.differs(&found.mark));
        if another && self.reads(&found.topic)? {
            self.watch.look_now();
            return Ok(());
        }
        self.topics.set_mark(number, Some(found.mark.clone()));
        Ok(())
    }

    /// Whether a partition of this topic is assigned.
    pub(super) fn reads(&self, topic: &str) -> Result<bool, KafkaError> {
        let assigned = self.consumer.assignment()?;
        let mut elements = assigned.elements().into_iter();
        Ok(elements.any(|element| element.topic() == topic))
    }

    /// Says where a partition starts, unless it simply goes on.
    fn report(&self, found: &Found, start: Start) {
        let partition = format!("{}-{}", found.topic, found.partition);
        let Start {
            offset,
            unread,
            again,
            ..
        } = start;
        let (held, committed) = (found.high - found.low, found.committed.unwrap_or_default());
        let reason = match start.why {
            Why::GoesOn => return,
            Why::New => {
                tracing::info!(
                    "{partition} is newer than the group: it is read from its beginning, offset {offset}, and holds {held} records"
                );
                return;
            }
            Why::FirstTime => {
                let left_out = match unread {
                    0 => String::new(),
                    _ => format!("; the {unread} records before that are not read"),
                };
                tracing::info!(
                    "the group has no offset of {partition}: it is read from offset {offset}, by auto.offset.reset{left_out}"
                );
                return;
            }
            Why::Recreated => {
                tracing::warn!(
                    "topic `{}` was deleted and made again: {partition} is read from its beginning, offset {offset}, and holds {held} records; what was not read of the old topic is gone",
                    found.topic
                );
                RESET_RECREATED
            }
            Why::Deleted => {
                tracing::warn!(
                    "{unread} records of {partition} were deleted before they were read: the group's offset was {committed}, the first record left is {offset}, and reading goes on there. Raise the topic's retention, or add workers or replicas"
                );
                RESET_DELETED
            }
            Why::Truncated => {
                tracing::warn!(
                    "the brokers have lost records of {partition}: the group's offset was {committed}, the partition ends at {}; it is read from offset {offset}, by auto.offset.reset, and {again} records are judged again",
                    found.high
                );
                RESET_TRUNCATED
            }
            Why::OffsetDeleted => {
                tracing::warn!(
                    "the group's offset of {partition} was deleted: it is read from offset {offset}, by auto.offset.reset; {again} records may be judged again, {unread} are not read"
                );
                RESET_OFFSET_DELETED
            }
        };
        let resets = &self.metrics.partition_resets;
        resets.with_label_values(&[reason]).inc();
        self.metrics.records_unread.inc_by(unread.unsigned_abs());
        self.metrics.records_read_again.inc_by(again.unsigned_abs());
    }
}
