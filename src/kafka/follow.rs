//! Follows topics from their present ends, without joining a group or committing offsets.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::client::await_topic::await_topic;
use super::client::contexts::ReaderContext;
use super::client::last_error::LastError;
use super::error::KafkaError;
use super::{client, messages};
use crate::config::KafkaSettings;
use crate::record::Record;
use crate::shutdown::Shutdown;

/// librdkafka requires a group id. Nothing is ever committed to this group.
const GROUP: &str = "residuald-follower";

/// Reads everything that is written to some topics after [`Follower::open`].
pub struct Follower(BaseConsumer<ReaderContext>);

impl Follower {
    /// Connects, and remembers the present end of each partition.
    ///
    /// # Errors
    /// No broker answers, a topic is absent, or a stop comes first.
    pub fn open(
        kafka: &KafkaSettings,
        topics: &[&str],
        stop: &Shutdown,
    ) -> Result<Follower, KafkaError> {
        let mut config = client::config(kafka, &kafka.consumer);
        config
            .set("group.id", GROUP)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("statistics.interval.ms", "0");
        let last_error = LastError::default();
        let context = ReaderContext {
            name: "follower",
            last_error: last_error.clone(),
        };
        let consumer: BaseConsumer<ReaderContext> = client::create(&config, context)?;
        let serve = || while consumer.poll(Duration::from_millis(5)).is_some() {};
        let mut ends = TopicPartitionList::new();
        for topic in topics {
            let count = await_topic(consumer.client(), kafka, topic, &last_error, stop, serve)?;
            for partition in 0..count as i32 {
                let (_, end) =
                    consumer.fetch_watermarks(topic, partition, kafka.connect_timeout)?;
                ends.add_partition_offset(topic, partition, Offset::Offset(end))?;
            }
        }
        consumer.assign(&ends)?;
        Ok(Follower(consumer))
    }

    /// Waits for one record, at most `wait`. Errors of the connection are logged, because librdkafka retries.
    pub fn poll(&self, wait: Duration, each: impl FnOnce(&Record<'_>)) {
        match self.0.poll(wait) {
            Some(Ok(message)) => each(&messages::record(&message)),
            Some(Err(error)) => tracing::warn!("following: {error}"),
            None => {}
        }
    }
}
