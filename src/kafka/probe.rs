//! Checks to run before a start: whether librdkafka accepts the settings, and whether the brokers provide what the
//! daemon needs. They join no group, commit nothing and write nothing.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::Message as _;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use serde::Serialize;

use super::client::await_topic::await_topic;
use super::client::contexts::ReaderContext;
use super::client::last_error::LastError;
use super::client::{self, sasl};
use super::error::KafkaError;
use super::producer::Sink;
use super::producer::limits::Limits;
use super::{consumer, producer};
use crate::config::{Guarantee, KafkaSettings};
use crate::shutdown::Shutdown;

const POLL: Duration = Duration::from_millis(100);
/// A poll with a timeout of zero ends after the first callback. This timeout is long enough for several.
const SERVE: Duration = Duration::from_millis(5);

/// Makes librdkafka parse every setting, without connecting.
///
/// # Errors
/// [`KafkaError::Setting`] for the first setting that is unknown or refused.
pub fn check_settings(kafka: &KafkaSettings) -> Result<(), KafkaError> {
    for config in [consumer::config(kafka), producer::config(kafka)] {
        config.create_native_config()?;
        sasl::check(&config)?;
    }
    Ok(())
}

/// The results of all checks, as texts for the operator.
#[derive(Debug, Default, Serialize)]
pub struct Findings {
    pub fine: Vec<String>,
    /// The checks that could not be made, with the reason.
    pub unknown: Vec<String>,
    pub faults: Vec<String>,
}

/// Checks the topics to read and to write, the permission to read, the group, and transactions.
///
/// # Errors
/// When no broker answers or a setting is refused, because then nothing else can be checked.
pub fn probe(
    kafka: &KafkaSettings,
    outputs: &[&str],
    stop: &Shutdown,
) -> Result<Findings, KafkaError> {
    let last_error = LastError::default();
    let mut config = consumer::config(kafka);
    config
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true");
    let context = ReaderContext {
        name: "check",
        last_error: last_error.clone(),
    };
    let consumer: BaseConsumer<ReaderContext> = client::create(&config, context)?;
    let mut probe = Probe {
        kafka,
        consumer,
        last_error,
        stop,
        findings: Findings::default(),
    };
    for topic in &kafka.topics {
        if let Some(partitions) = probe.exists(topic)? {
            probe.may_be_read(topic, partitions)?;
        }
    }
    for topic in outputs {
        probe.exists(topic)?;
    }
    let limits = Limits::ask(&producer::config(kafka), outputs);
    match limits.are_known() {
        true => probe.findings.fine.extend(limits.lines()),
        false => probe.findings.unknown.extend(limits.lines()),
    }
    probe.findings.unknown.push(format!(
        "permission to write to {}: only sending a message would show it",
        outputs.join(", ")
    ));
    probe.group()?;
    if kafka.guarantee != Guarantee::AtLeastOnce {
        probe.transactional_id();
    }
    Ok(probe.findings)
}

struct Probe<'k> {
    kafka: &'k KafkaSettings,
    consumer: BaseConsumer<ReaderContext>,
    last_error: LastError,
    stop: &'k Shutdown,
    findings: Findings,
}

impl Probe<'_> {
    /// Checks that a topic exists, and returns the number of its partitions.
    fn exists(&mut self, topic: &str) -> Result<Option<usize>, KafkaError> {
        if topic.starts_with('^') {
            let unknown =
                format!("topics {topic}: this pattern is matched only while the daemon runs");
            self.findings.unknown.push(unknown);
            return Ok(None);
        }
        let consumer = &self.consumer;
        let serve = || while consumer.poll(SERVE).is_some() {};
        let (kafka, last_error) = (self.kafka, &self.last_error);
        match await_topic(
            consumer.client(),
            kafka,
            topic,
            last_error,
            self.stop,
            serve,
        ) {
            Ok(partitions) => {
                let fine = format!("topic `{topic}` has {partitions} partitions");
                self.findings.fine.push(fine);
                Ok(Some(partitions))
            }
            Err(e @ (KafkaError::TopicAbsent { .. } | KafkaError::Client(_))) => {
                self.findings.faults.push(e.to_string());
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Fetches from the end of every partition. This returns no record, but it reveals a missing permission.
    fn may_be_read(&mut self, topic: &str, partitions: usize) -> Result<(), KafkaError> {
        let mut all = TopicPartitionList::new();
        for partition in 0..i32::try_from(partitions).unwrap_or(i32::MAX) {
            all.add_partition_offset(topic, partition, Offset::End)?;
        }
        self.consumer.assign(&all)?;
        let started = Instant::now();
        let mut answered = HashSet::new();
        while answered.len() < partitions && started.elapsed() < self.kafka.connect_timeout {
            if self.stop.is_requested() {
                return Err(KafkaError::Stopped);
            }
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => _ = answered.insert(message.partition()),
                Some(Err(ClientError::PartitionEOF(partition))) => _ = answered.insert(partition),
                Some(Err(ClientError::MessageConsumption(
                    code @ RDKafkaErrorCode::TopicAuthorizationFailed,
                ))) => {
                    let fault = format!("topic `{topic}` may not be read: {code}");
                    self.findings.faults.push(fault);
                    break;
                }
                _ => {}
            }
        }
        self.consumer.assign(&TopicPartitionList::new())?;
        match partitions - answered.len() {
            0 => self
                .findings
                .fine
                .push(format!("topic `{topic}` can be read")),
            silent if started.elapsed() >= self.kafka.connect_timeout => {
                let waited = self.kafka.connect_timeout;
                let fault = format!(
                    "topic `{topic}`: {silent} of {partitions} partitions did not answer within {waited:?}"
                );
                self.findings.faults.push(fault);
            }
            _ => {}
        }
        Ok(())
    }

    /// Requests a committed offset, which needs permission to use the group.
    fn group(&mut self) -> Result<(), KafkaError> {
        let group = &self.kafka.group_id;
        let mut first = TopicPartitionList::new();
        let topics = self.kafka.topics.iter();
        for topic in topics.filter(|topic| !topic.starts_with('^')) {
            first.add_partition(topic, 0);
        }
        let asked = self
            .consumer
            .committed_offsets(first, self.kafka.connect_timeout);
        let refused = asked.and_then(|offsets| {
            let answers = offsets.elements();
            answers
                .iter()
                .try_for_each(rdkafka::topic_partition_list::TopicPartitionListElem::error)
        });
        match refused {
            Ok(()) => self
                .findings
                .fine
                .push(format!("group `{group}` can be used")),
            Err(e) => {
                let why = e
                    .rdkafka_error_code()
                    .map_or_else(|| e.to_string(), |code| code.to_string());
                self.findings.faults.push(format!("group `{group}`: {why}"));
            }
        }
        Ok(())
    }

    fn transactional_id(&mut self) {
        if let Some(unknown) = self.would_fence() {
            self.findings.unknown.push(unknown);
            return;
        }
        match Sink::connect(self.kafka, &[], self.stop) {
            Ok(_) => self
                .findings
                .fine
                .push("transactions can be opened".to_owned()),
            Err(e) => self.findings.faults.push(format!("transactions: {e}")),
        }
    }

    /// Returns why transactions cannot be tried: that would fence a running daemon with the same transactional.id.
    fn would_fence(&self) -> Option<String> {
        let KafkaSettings {
            client,
            consumer,
            producer,
            ..
        } = self.kafka;
        let fixed = [client, consumer, producer].iter().any(|of| {
            of.get("transactional.id")
                .or(of.get("group.instance.id"))
                .is_some()
        });
        let group = &self.kafka.group_id;
        let groups = fixed.then(|| {
            let timeout = self.kafka.connect_timeout;
            self.consumer
                .client()
                .fetch_group_list(Some(group), timeout)
        })?;
        let members = groups.map(|list| {
            list.groups()
                .iter()
                .map(|g| g.members().len())
                .sum::<usize>()
        });
        match members {
            Ok(0) => None,
            Ok(n) => Some(format!(
                "transactions were not tried: group `{group}` has {n} members, and one may use the transactional.id"
            )),
            Err(e) => Some(format!(
                "transactions were not tried: the members of group `{group}` are unknown: {e}"
            )),
        }
    }
}
