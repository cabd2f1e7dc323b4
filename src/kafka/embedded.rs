//! A Kafka broker inside the process, for `demo`, `bench` and tests: librdkafka's mock cluster. It supports groups,
//! rebalances and commits, keeps at most 5 MiB or 100,000 records per partition, and loses everything when it ends.

use rdkafka::ClientConfig;
use rdkafka::bindings::{
    rd_kafka_handle_mock_cluster, rd_kafka_mock_group_initial_rebalance_delay_ms,
};
use rdkafka::producer::{BaseProducer, Producer};

use super::error::KafkaError;

/// An embedded broker. It runs until this value is dropped.
pub struct EmbeddedBroker {
    /// The mock cluster belongs to this client.
    host: BaseProducer,
    pub brokers: String,
}

/// The size at which the mock cluster deletes the oldest records of a partition.
const PARTITION_BYTES: u64 = 5 << 20;
const PARTITION_RECORDS: u64 = 100_000;
/// The rough overhead of a record, with some reserve for partitions that fill unevenly.
const RECORD_OVERHEAD: u64 = 100;

/// A consumer setting for the embedded broker, which answers a fetch only after this wait, not as soon as a record
/// arrives.
pub const FETCH_WAIT: (&str, &str) = ("fetch.wait.max.ms", "5");

/// A producer setting for the embedded broker. It spreads records over all partitions, so that none fills up before the
/// others.
pub const SPREAD: (&str, &str) = ("sticky.partitioning.linger.ms", "0");

/// Returns how many records of this average size fit without losing any. The result leaves room for one partition that
/// gets 50 % more than the others, and for one that gets five standard deviations more by chance.
pub fn capacity(partitions: i32, average_payload: u64) -> u64 {
    let by_size = PARTITION_BYTES / (average_payload + RECORD_OVERHEAD);
    let each = by_size.min(PARTITION_RECORDS);
    // Solves mean + 5 √mean = each for the mean of a Poisson distribution.
    let root = ((25 + 4 * each) as f64).sqrt() / 2.0 - 2.5;
    let by_chance = (root * root) as u64;
    partitions as u64 * by_chance.min(each * 2 / 3)
}

impl EmbeddedBroker {
    /// Starts the broker on a free loopback port, with these topics and their numbers of partitions.
    ///
    /// # Errors
    /// When no port is free or a topic cannot be created.
    pub fn start(topics: &[(&str, i32)]) -> Result<EmbeddedBroker, KafkaError> {
        let host: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", "replaced by the mock cluster")
            .set("test.mock.num.brokers", "1")
            .create()?;
        let absent = || KafkaError::Client("the embedded broker does not start".into());
        let cluster = host.client().mock_cluster().ok_or_else(absent)?;
        for (topic, partitions) in topics {
            cluster.create_topic(topic, *partitions, 1)?;
        }
        let brokers = cluster.bootstrap_servers();
        // SAFETY: the client is alive and owns the mock cluster behind the handle. The call only sets a number.
        unsafe {
            let handle = rd_kafka_handle_mock_cluster(host.client().native_ptr());
            rd_kafka_mock_group_initial_rebalance_delay_ms(handle, 0);
        }
        drop(cluster);
        Ok(EmbeddedBroker { host, brokers })
    }

    /// Makes the only broker unreachable, or reachable again.
    ///
    /// # Errors
    /// When the mock cluster refuses.
    pub fn set_up(&self, up: bool) -> Result<(), KafkaError> {
        let cluster = self.host.client().mock_cluster();
        let cluster = cluster.expect("the client was made with a mock cluster");
        match up {
            true => cluster.broker_up(1)?,
            false => cluster.broker_down(1)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_large_records_leave_more_room_for_chance() {
        // 50 records fit into a partition. With an average of 25, the fullest partition hardly gets more than 50.
        assert_eq!(capacity(32, 104_000), 32 * 25);
        assert_eq!(capacity(32, 924), 32 * 3413);
        assert_eq!(capacity(1, 0), 34_952);
    }
}
