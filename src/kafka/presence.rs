//! Whether the topics to read are there when the daemon starts.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use super::admin::Descriptions;
use super::source::Context;
use super::wanted::Wanted;
use super::{KafkaError, LastComplaint};
use crate::config::Kafka;
use crate::shutdown::Shutdown;

const RETRY: Duration = Duration::from_millis(200);
/// One attempt, so that a stop is noticed soon.
const ATTEMPT: Duration = Duration::from_secs(1);
/// A topic that is being created is unknown for a moment.
const GRACE: Duration = Duration::from_secs(2);
/// Enough for a poll to go through more than one report; one of zero ends after the first.
const SERVE: Duration = Duration::from_millis(5);

/// Waits until the brokers answer, and until every topic that has a name in the settings is there. One that is missing is
/// an error when the group starts for the first time, because the name may be wrong. A group that has read before goes on
/// with the others; an error then would stop them too.
pub(super) fn await_topics(
    consumer: &BaseConsumer<Context>,
    kafka: &Kafka,
    wanted: &Wanted,
    complaint: &LastComplaint,
    stop: &Shutdown,
) -> Result<Descriptions, KafkaError> {
    let started = Instant::now();
    let mut answered = None;
    loop {
        if stop.is_requested() {
            return Err(KafkaError::Stopped);
        }
        let left = kafka.connect_timeout.saturating_sub(started.elapsed());
        match wanted.look(consumer.client(), left.clamp(RETRY, ATTEMPT)) {
            Ok(found) => {
                let missing = missing(wanted, &found);
                let waited = answered.get_or_insert_with(Instant::now).elapsed();
                if missing.is_empty() || waited >= GRACE {
                    return match missing.is_empty() || has_read_before(consumer, &found) {
                        true => Ok(found),
                        false => Err(absent(kafka, missing)),
                    };
                }
            }
            Err(e) => {
                // A consumer says what is wrong only when it is polled.
                while consumer.poll(SERVE).is_some() {}
                if started.elapsed() >= kafka.connect_timeout && answered.is_none() {
                    return Err(KafkaError::Unreachable {
                        brokers: kafka.brokers.clone(),
                        waited: kafka.connect_timeout,
                        reason: complaint.get().unwrap_or_else(|| e.to_string()),
                    });
                }
            }
        }
        std::thread::sleep(RETRY);
    }
}

type Missing<'w> = Vec<(&'w str, RDKafkaErrorCode)>;

fn missing<'w>(wanted: &'w Wanted, found: &Descriptions) -> Missing<'w> {
    let named = wanted.named.iter().map(String::as_str);
    let missing = named.filter_map(|topic| match found.get(topic) {
        Some(Ok(_)) => None,
        Some(Err(code)) => Some((topic, *code)),
        None => Some((topic, RDKafkaErrorCode::UnknownTopicOrPartition)),
    });
    missing.collect()
}

fn absent(kafka: &Kafka, missing: Missing<'_>) -> KafkaError {
    use RDKafkaErrorCode as Code;
    let refused = missing
        .iter()
        .filter(|(_, code)| matches!(code, Code::TopicAuthorizationFailed | Code::InvalidTopic));
    let refused: Vec<String> = refused
        .map(|(topic, code)| format!("topic `{topic}`: {code}"))
        .collect();
    if !refused.is_empty() {
        return KafkaError::Client(refused.join("; "));
    }
    let brokers = kafka.brokers.clone();
    let topics: Vec<String> = missing
        .iter()
        .map(|(topic, _)| (*topic).to_owned())
        .collect();
    match <[String; 1]>::try_from(topics) {
        Ok([topic]) => KafkaError::TopicAbsent { topic, brokers },
        Err(topics) => KafkaError::TopicsAbsent { topics, brokers },
    }
}

/// Whether the group has an offset of any of the topics that are there.
fn has_read_before(consumer: &BaseConsumer<Context>, found: &Descriptions) -> bool {
    let mut partitions = TopicPartitionList::new();
    for (topic, described) in found {
        for partition in 0..described.as_ref().map_or(0, |topic| topic.partitions) {
            partitions.add_partition(topic, partition);
        }
    }
    if partitions.count() == 0 {
        return false;
    }
    match consumer.committed_offsets(partitions, ATTEMPT) {
        Ok(told) => {
            let mut elements = told.elements().into_iter();
            elements.any(|e| matches!(e.offset(), Offset::Offset(_)) || e.error().is_err())
        }
        // A transaction hides its offsets, so there are some.
        Err(e) => e.rdkafka_error_code() == Some(RDKafkaErrorCode::UnstableOffsetCommit),
    }
}
