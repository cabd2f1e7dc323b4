//! What an operator does to topics on a real Kafka.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::{PATIENCE, wait_for};

pub struct Admin {
    client: AdminClient<DefaultClientContext>,
    options: AdminOptions,
    runtime: tokio::runtime::Runtime,
}

impl Admin {
    pub fn new(brokers: &str) -> Admin {
        let patience = Some(Duration::from_secs(30));
        Admin {
            client: ClientConfig::new()
                .set("bootstrap.servers", brokers)
                .set("log_level", "2")
                .create()
                .unwrap(),
            options: AdminOptions::new()
                .operation_timeout(patience)
                .request_timeout(patience),
            runtime: tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap(),
        }
    }

    /// Topics that keep their records whatever their timestamps (retention goes by these), ready to be read and written.
    ///
    /// # Panics
    /// If there is one of these already: another test has taken its name.
    pub fn create_all<T: AsRef<str>>(
        &self,
        names: &[T],
        partitions: i32,
        settings: &[(&str, &str)],
    ) {
        let new = names.iter().map(|name| {
            let new = NewTopic::new(name.as_ref(), partitions, TopicReplication::Fixed(1));
            let new = new.set("retention.ms", "-1");
            settings
                .iter()
                .fold(new, |new, (key, value)| new.set(key, value))
        });
        let new: Vec<NewTopic<'_>> = new.collect();
        let created = self.client.create_topics(&new, &self.options);
        for created in self.runtime.block_on(created).unwrap() {
            created.unwrap_or_else(|(topic, why)| panic!("topic {topic} cannot be created: {why}"));
        }
        for name in names {
            self.await_leaders(name.as_ref(), partitions);
        }
    }

    /// Waits for the one before it of that name to be gone.
    pub fn create(&self, topic: &str, partitions: i32) {
        wait_for(&format!("topic {topic} to be created"), || {
            let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
            let new = new.set("retention.ms", "-1");
            let created = self.client.create_topics([&new], &self.options);
            self.runtime.block_on(created).unwrap()[0].clone().ok()
        });
    }

    /// A broker names itself the leader of a new partition a moment before it is.
    fn await_leaders(&self, topic: &str, partitions: i32) {
        let client = self.client.inner();
        for partition in 0..partitions {
            wait_for(&format!("the leader of {topic}-{partition}"), || {
                client.fetch_watermarks(topic, partition, PATIENCE).ok()
            });
        }
    }

    pub fn delete(&self, topic: &str) {
        let deleted = self.client.delete_topics(&[topic], &self.options);
        let deleted = self.runtime.block_on(deleted).unwrap();
        deleted[0].as_ref().unwrap();
    }

    /// Until it has `partitions`.
    pub fn grow(&self, topic: &str, partitions: usize) {
        let new = NewPartitions::new(topic, partitions);
        let grown = self.client.create_partitions([&new], &self.options);
        self.runtime.block_on(grown).unwrap()[0].as_ref().unwrap();
    }

    /// What retention does: everything below `offset` goes.
    pub fn delete_records(&self, topic: &str, partition: i32, offset: i64) {
        let mut below = TopicPartitionList::new();
        below
            .add_partition_offset(topic, partition, Offset::Offset(offset))
            .unwrap();
        let deleted = self.client.delete_records(&below, &self.options);
        let deleted = self.runtime.block_on(deleted).unwrap();
        deleted.elements()[0].error().unwrap();
    }
}
