//! The consumer's membership in its group, for the producer that commits offsets in its name.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{Consumer, ConsumerGroupMetadata};

use super::context::GroupConsumer;
use super::topics::Topics;
use crate::batch::TopicPartition;

/// Lets a transaction commit offsets in the name of the consumer.
pub struct Membership {
    /// Weak, so that it does not delay leaving the group.
    pub(super) consumer: Weak<GroupConsumer>,
    /// Batches with a lower sequence are lost.
    pub(super) lost_below: Arc<AtomicU64>,
    pub(super) topics: Topics,
}

impl Membership {
    /// Returns whether the partitions of this batch are lost. If so, their new owner scores its records again.
    pub fn is_lost(&self, sequence: u64) -> bool {
        sequence < self.lost_below.load(Ordering::SeqCst)
    }

    /// Returns the group metadata for committing batches from `sequence` on, or `None` if these batches are lost.
    ///
    /// The group coordinator does not check a commit without a generation, and it accepts a newer generation. Therefore
    /// this reads the metadata first. It then checks that the metadata belonged to a member, that the assignment is not
    /// lost, and that no loss was completed meanwhile. Wherever a loss falls between these steps, one of the checks
    /// detects it.
    pub(in crate::kafka) fn metadata(&self, sequence: u64) -> Option<ConsumerGroupMetadata> {
        let consumer = self.consumer.upgrade()?;
        let metadata = consumer.group_metadata()?;
        let refused = !is_member(&consumer) || consumer.assignment_lost() || self.is_lost(sequence);
        (!refused).then_some(metadata)
    }

    /// Returns the offsets to commit. With `leave_out`, those of deleted topics are left out, because a commit to a
    /// deleted topic fails the whole transaction.
    ///
    /// Leaving out the offsets of a topic that exists would publish the verdicts of its records twice. So two witnesses
    /// are needed: the topic watch, and the group coordinator, which has refused these offsets.
    pub(in crate::kafka) fn offsets(
        &self,
        offsets: &[(TopicPartition, i64)],
        leave_out: bool,
    ) -> TopicPartitionList {
        let (gone, there): (Vec<_>, Vec<_>) = offsets
            .iter()
            .partition(|(from, _)| leave_out && self.topics.is_deleted(from.topic));
        for (from, next) in gone {
            tracing::warn!(
                "topic `{}` does not exist any more: the verdicts of its records are published, but offset {next} of its partition {} is not committed",
                &self.topics[from.topic],
                from.partition
            );
        }
        self.topics.with_metadata(&there)
    }
}

/// Returns whether the consumer has a member id and a generation. If they are lost, only a completed rebalance restores
/// them.
fn is_member(consumer: &GroupConsumer) -> bool {
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn offsets_are_left_out_only_if_the_watch_and_the_coordinator_miss_their_topic() {
        let membership = Membership {
            consumer: Weak::new(),
            lost_below: Arc::default(),
            topics: Topics::default(),
        };
        let offsets = ["kept", "gone"].map(|topic| {
            let topic = membership.topics.number(topic);
            let partition = 0;
            (TopicPartition { topic, partition }, 7)
        });
        let committed = |leave_out| membership.offsets(&offsets, leave_out).count();
        assert_eq!(committed(true), 2, "the watch has not missed a topic");
        let gone = membership.topics.number("gone");
        membership.topics.set_deleted(gone, true, Instant::now());
        assert_eq!(committed(false), 2, "the coordinator takes the offsets");
        assert_eq!(committed(true), 1);
    }
}
