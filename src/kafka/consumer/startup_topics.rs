//! Waits at startup until the topics to read exist.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use super::super::client::last_error::LastError;
use super::super::error::KafkaError;
use super::super::topic_admin::Descriptions;
use super::context::GroupConsumer;
use super::topic_selection::TopicSelection;
use crate::config::KafkaSettings;
use crate::shutdown::Shutdown;

const RETRY: Duration = Duration::from_millis(200);
/// The timeout of one attempt. It is short, so that a stop request is noticed quickly.
const ATTEMPT: Duration = Duration::from_secs(1);
/// How long a topic may be unknown, because a topic that is being created takes a moment to appear.
const GRACE: Duration = Duration::from_secs(2);
/// A poll with a timeout of zero ends after the first callback. This timeout is long enough for several.
const SERVE: Duration = Duration::from_millis(5);

/// Waits until the brokers answer and every topic named in the settings exists. If the group starts for the first time,
/// a missing topic is an error, because its name may be wrong. A group with offsets continues with its other topics.
pub(super) fn await_topics(
    consumer: &GroupConsumer,
    kafka: &KafkaSettings,
    selection: &TopicSelection,
    last_error: &LastError,
    stop: &Shutdown,
) -> Result<Descriptions, KafkaError> {
    let started = Instant::now();
    let mut answered = None;
    loop {
        if stop.is_requested() {
            return Err(KafkaError::Stopped);
        }
        let left = kafka.connect_timeout.saturating_sub(started.elapsed());
        match selection.describe(consumer.client(), left.clamp(RETRY, ATTEMPT)) {
            Ok(found) => {
                let missing = missing(selection, &found);
                let waited = answered.get_or_insert_with(Instant::now).elapsed();
                if missing.is_empty() || waited >= GRACE {
                    return match missing.is_empty() || has_offsets(consumer, &found) {
                        true => Ok(found),
                        false => Err(absent(kafka, missing)),
                    };
                }
            }
            Err(e) => {
                // A consumer reports errors only while it is polled.
                while consumer.poll(SERVE).is_some() {}
                if started.elapsed() >= kafka.connect_timeout && answered.is_none() {
                    return Err(KafkaError::Unreachable {
                        brokers: kafka.brokers.clone(),
                        waited: kafka.connect_timeout,
                        reason: last_error.get().unwrap_or_else(|| e.to_string()),
                    });
                }
            }
        }
        std::thread::sleep(RETRY);
    }
}

type Missing<'s> = Vec<(&'s str, RDKafkaErrorCode)>;

fn missing<'s>(selection: &'s TopicSelection, found: &Descriptions) -> Missing<'s> {
    let named = selection.named.iter().map(String::as_str);
    let missing = named.filter_map(|topic| match found.get(topic) {
        Some(Ok(_)) => None,
        Some(Err(code)) => Some((topic, *code)),
        None => Some((topic, RDKafkaErrorCode::UnknownTopicOrPartition)),
    });
    missing.collect()
}

fn absent(kafka: &KafkaSettings, missing: Missing<'_>) -> KafkaError {
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

/// Returns whether the group has an offset in any topic that exists.
fn has_offsets(consumer: &GroupConsumer, found: &Descriptions) -> bool {
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
        Ok(answer) => {
            let mut elements = answer.elements().into_iter();
            elements.any(|e| matches!(e.offset(), Offset::Offset(_)) || e.error().is_err())
        }
        // Only a transaction that contains offsets hides them.
        Err(e) => e.rdkafka_error_code() == Some(RDKafkaErrorCode::UnstableOffsetCommit),
    }
}
