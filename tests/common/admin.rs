//! What an operator does to topics on a real Kafka.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::wait_for;

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

    /// Waits for the one before it of that name to be gone.
    pub fn create(&self, topic: &str, partitions: i32) {
        wait_for(&format!("topic {topic} to be created"), || {
            let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
            let new = new.set("retention.ms", "-1");
            let created = self.client.create_topics([&new], &self.options);
            self.runtime.block_on(created).unwrap()[0].clone().ok()
        });
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
