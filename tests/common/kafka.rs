//! A tiny Kafka client: everything into a topic, everything out of it, what a group has committed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode;

use super::{PATIENCE, wait_for};

/// A message to send or as it was read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Note {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    pub timestamp_ms: Option<i64>,
}

impl Note {
    pub fn new(key: &str, payload: impl Into<Vec<u8>>) -> Note {
        Note {
            key: Some(key.as_bytes().to_vec()),
            payload: Some(payload.into()),
            ..Note::default()
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(n, _)| n == name)?;
        std::str::from_utf8(value.as_ref()?).ok()
    }

    pub fn json(&self) -> serde_json::Value {
        super::parse(self.payload.as_ref().expect("a value"))
    }
}

/// Records with a key of their own and their partition by number: record `i` goes to `i % partitions`.
pub fn spread(records: &[String], partitions: i32) -> Vec<Note> {
    let notes = records.iter().enumerate().map(|(i, record)| Note {
        partition: i as i32 % partitions,
        ..Note::new(&format!("key-{i}"), record.as_str())
    });
    notes.collect()
}

/// Sends every note to its partition and waits for all deliveries.
pub fn produce(brokers: &str, topic: &str, notes: &[Note]) {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("message.max.bytes", "20000000")
        .set("log_level", "2")
        .create()
        .unwrap();
    for note in notes {
        let mut headers = OwnedHeaders::new();
        for (key, value) in &note.headers {
            let value = value.as_deref();
            headers = headers.insert(Header { key, value });
        }
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic)
            .partition(note.partition)
            .headers(headers);
        record.key = note.key.as_deref();
        record.payload = note.payload.as_deref();
        record.timestamp = note.timestamp_ms;
        while let Err((error, unsent)) = producer.send(record) {
            let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
            assert_eq!(error, full, "{topic}");
            record = unsent;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    producer.flush(PATIENCE).unwrap();
}

fn consumer(brokers: &str, group: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("fetch.message.max.bytes", "20000000")
        .set("log_level", "2")
        .create()
        .unwrap()
}

fn partitions(consumer: &BaseConsumer, topic: &str) -> Vec<i32> {
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).unwrap();
    let partitions = metadata.topics()[0].partitions();
    partitions.iter().map(|p| p.id()).collect()
}

/// The offset after the last record of each partition.
pub fn ends(brokers: &str, topic: &str) -> BTreeMap<i32, i64> {
    let consumer = consumer(brokers, "reads-only");
    let ends = partitions(&consumer, topic).into_iter().map(|partition| {
        let (_, high) = consumer
            .fetch_watermarks(topic, partition, PATIENCE)
            .unwrap();
        (partition, high)
    });
    ends.collect()
}

/// Everything that is in the topic now, by partition and offset.
pub fn read_all(brokers: &str, topic: &str) -> Vec<Note> {
    let consumer = consumer(brokers, "reads-only");
    let mut waiting_for = BTreeMap::new();
    let mut assignment = TopicPartitionList::new();
    for partition in partitions(&consumer, topic) {
        let (low, high) = consumer
            .fetch_watermarks(topic, partition, PATIENCE)
            .unwrap();
        if high > low {
            waiting_for.insert(partition, high);
            assignment
                .add_partition_offset(topic, partition, Offset::Beginning)
                .unwrap();
        }
    }
    consumer.assign(&assignment).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut notes = Vec::new();
    while !waiting_for.is_empty() {
        assert!(
            Instant::now() < deadline,
            "{topic}: {waiting_for:?} after {} records",
            notes.len()
        );
        let Some(message) = consumer.poll(Duration::from_millis(100)) else {
            continue;
        };
        let message = match message {
            // The last offsets may be a transaction's end, which is no record.
            Err(KafkaError::PartitionEOF(partition)) => {
                waiting_for.remove(&partition);
                continue;
            }
            message => message.unwrap(),
        };
        if waiting_for.get(&message.partition()) == Some(&(message.offset() + 1)) {
            waiting_for.remove(&message.partition());
        }
        notes.push(Note {
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(<[u8]>::to_vec),
            headers: message.headers().map_or_else(Vec::new, |headers| {
                let own = headers.iter();
                own.map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec)))
                    .collect()
            }),
            timestamp_ms: message.timestamp().to_millis(),
        });
    }
    notes.sort_by_key(|note| (note.partition, note.offset));
    notes
}

/// The offset that `group` goes on from in each partition; none where nothing is committed.
pub fn committed(brokers: &str, group: &str, topic: &str) -> BTreeMap<i32, i64> {
    let consumer = consumer(brokers, group);
    let mut list = TopicPartitionList::new();
    for partition in partitions(&consumer, topic) {
        list.add_partition(topic, partition);
    }
    // A broker that loads a group, or a group that moves, says so and means: ask again.
    let committed = wait_for("the group's offsets", || {
        consumer.committed_offsets(list.clone(), PATIENCE).ok()
    });
    let offsets = committed.elements().into_iter().filter_map(|element| {
        let Offset::Offset(offset) = element.offset() else {
            return None;
        };
        Some((element.partition(), offset))
    });
    offsets.collect()
}
