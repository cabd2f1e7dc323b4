//! Pauses fetching from all partitions while later stages are busy. Polling continues, so that the group keeps this
//! member. The intake decides when to pause; see its `wait_for_room`.

use jiff::Timestamp;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer;

use super::super::error::KafkaError;
use super::context::GroupConsumer;

#[derive(Default)]
pub(super) struct Backpressure {
    paused_since: Option<Timestamp>,
}

impl Backpressure {
    pub fn paused_since(&self) -> Option<Timestamp> {
        self.paused_since
    }

    pub fn is_paused(&self) -> bool {
        self.paused_since.is_some()
    }

    /// Pauses all assigned partitions.
    pub fn pause(&mut self, consumer: &GroupConsumer) -> Result<(), KafkaError> {
        consumer.pause(&consumer.assignment()?)?;
        self.paused_since = Some(Timestamp::now());
        Ok(())
    }

    /// Resumes fetching from `partitions`.
    pub fn resume(
        &mut self,
        consumer: &GroupConsumer,
        partitions: &TopicPartitionList,
    ) -> Result<(), KafkaError> {
        consumer.resume(partitions)?;
        self.paused_since = None;
        Ok(())
    }

    /// Pauses or resumes newly assigned partitions like the others.
    pub fn apply_to(
        &self,
        consumer: &GroupConsumer,
        assigned: &TopicPartitionList,
    ) -> Result<(), KafkaError> {
        match self.is_paused() {
            true => consumer.pause(assigned)?,
            // librdkafka remembers that a partition was paused when it was revoked.
            false => consumer.resume(assigned)?,
        }
        Ok(())
    }
}
