//! From where assigned partitions are read, asked of the group by ourselves.
//!
//! With exactly-once librdkafka is not left to find that out. While the transaction of a process that was killed is open,
//! the group does not tell (UNSTABLE_OFFSET_COMMIT); librdkafka 2.12 asks three times, then takes the partition for one
//! that was never read and starts over by `auto.offset.reset`. So the group is asked until it tells, and only then the
//! partitions are assigned, with their offsets. The group waits for no answer to an assignment, and what was assigned
//! before is read on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, bounded};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::progress::Name;
use super::source::Context;
use super::{KafkaError, Source};
use crate::config::Kafka;

const ASK_WITHIN: Duration = Duration::from_secs(1);
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// Partitions given to us that are not read yet.
pub(super) struct Assigning {
    partitions: TopicPartitionList,
    answer: Receiver<Option<TopicPartitionList>>,
    ask_again: Option<Instant>,
    complained: bool,
}

/// Where a partition starts that was never read; `None` refuses to start.
pub(super) fn reset_offset(kafka: &Kafka) -> Option<Offset> {
    let settings = [&kafka.consumer, &kafka.client];
    let reset = settings
        .iter()
        .find_map(|settings| settings.get("auto.offset.reset"));
    match reset {
        Some("smallest" | "earliest" | "beginning") => Some(Offset::Beginning),
        Some("error") => None,
        // As librdkafka has it.
        _ => Some(Offset::End),
    }
}

impl Source {
    /// Assigns `partitions` once the group has told from where to read them.
    pub(super) fn assign_when_known(&mut self, partitions: &TopicPartitionList) {
        self.assigning = Some(Assigning {
            partitions: partitions.clone(),
            answer: ask(&self.consumer, partitions),
            ask_again: None,
            complained: false,
        });
    }

    pub(super) fn try_assign(&mut self, now: Instant) -> Result<(), KafkaError> {
        let Some(assigning) = &mut self.assigning else {
            return Ok(());
        };
        if let Some(again) = assigning.ask_again {
            if now >= again {
                assigning.answer = ask(&self.consumer, &assigning.partitions);
                assigning.ask_again = None;
            }
            return Ok(());
        }
        let answer = match assigning.answer.try_recv() {
            Err(TryRecvError::Empty) => return Ok(()),
            Err(TryRecvError::Disconnected) => None,
            Ok(answer) => answer,
        };
        let Some(starts) = answer.and_then(|told| starts(&told, self.reset)) else {
            assigning.ask_again = Some(now + ASK_AGAIN_AFTER);
            if !assigning.complained {
                assigning.complained = true;
                tracing::info!(
                    "waiting for the transaction of the last owner of these partitions to end"
                );
            }
            return Ok(());
        };
        self.assigning = None;
        self.assign(&starts?)
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
}

/// With offsets to start from; `None` if the group does not tell all of them yet.
fn starts(
    told: &TopicPartitionList,
    reset: Option<Offset>,
) -> Option<Result<TopicPartitionList, KafkaError>> {
    let mut starts = TopicPartitionList::with_capacity(told.count());
    for element in told.elements() {
        element.error().ok()?;
        let (topic, partition) = (element.topic(), element.partition());
        let offset = match (element.offset(), reset) {
            (offset @ Offset::Offset(_), _) | (_, Some(offset)) => offset,
            (_, None) => {
                return Some(Err(KafkaError::Client(format!(
                    "the group has no offset for {topic}-{partition}, and auto.offset.reset is error"
                ))));
            }
        };
        starts
            .add_partition_offset(topic, partition, offset)
            .expect("an offset that Kafka gave is valid");
    }
    Some(Ok(starts))
}

/// What the group has committed, asked for on a thread of its own: it may take a second.
fn ask(
    consumer: &Arc<BaseConsumer<Context>>,
    partitions: &TopicPartitionList,
) -> Receiver<Option<TopicPartitionList>> {
    let (answer, answered) = bounded(1);
    let (consumer, partitions) = (Arc::clone(consumer), partitions.clone());
    std::thread::spawn(move || {
        let told = consumer.committed_offsets(partitions, ASK_WITHIN);
        drop(consumer);
        if let Err(e) = &told {
            tracing::debug!("the group does not tell its offsets: {e}");
        }
        let _ = answer.send(told.ok());
    });
    answered
}
