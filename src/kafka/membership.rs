//! A consumer's place in its group, for whoever commits in its name.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};

use super::source::{Context, offset_list};
use super::topics::Topics;
use crate::batch::TopicPartition;

/// A consumer's place in its group.
pub struct Membership {
    /// Weak, so that leaving the group does not wait for this.
    pub(super) consumer: Weak<BaseConsumer<Context>>,
    pub(super) lost_below: Arc<AtomicU64>,
    pub(super) topics: Topics,
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
        // A commit for a topic that is gone fails, and the whole transaction with it.
        let of_deleted = |(from, _): &&(TopicPartition, i64)| !self.topics.is_deleted(from.topic);
        let offsets: Vec<_> = offsets.iter().filter(of_deleted).copied().collect();
        offset_list(&self.topics, &offsets)
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
