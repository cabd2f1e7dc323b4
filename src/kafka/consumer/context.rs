//! The consumer's rdkafka context. It stores what librdkafka's callbacks report until the polling thread reads it.

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rdkafka::TopicPartitionList;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::types::RDKafkaRespErr;
use serde::Deserialize;

use super::super::client::last_error::LastError;
use super::super::client::sasl;
use super::super::error::is_topic_missing;

/// The consumer that is a member of the group.
pub(super) type GroupConsumer = BaseConsumer<SourceContext>;

/// A topic and a partition.
pub(super) type PartitionName = (String, i32);

/// A change of the assignment. The group coordinator waits until it is completed.
#[derive(Debug)]
pub struct Rebalance {
    pub kind: RebalanceKind,
    pub(super) partitions: TopicPartitionList,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RebalanceKind {
    Assign,
    Revoke,
    /// Revoked without warning: other members own the partitions already, so nothing may be committed.
    Lost,
}

/// The end of a partition as its last fetch reported it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FetchedEnd {
    /// Consumers can read the records below this offset.
    pub visible: i64,
    /// The end of all records. It is larger than `visible` while a transaction is open.
    pub all: i64,
}

pub(super) struct SourceContext {
    last_error: LastError,
    rebalances: Mutex<VecDeque<Rebalance>>,
    /// Set once polling has ended. The callback then completes rebalances itself.
    closing: AtomicBool,
    /// The ends of partitions from the last statistics, until they are taken.
    ends: Mutex<Option<Vec<(PartitionName, FetchedEnd)>>>,
}

impl SourceContext {
    pub fn new(last_error: LastError) -> SourceContext {
        SourceContext {
            last_error,
            rebalances: Mutex::default(),
            closing: AtomicBool::new(false),
            ends: Mutex::default(),
        }
    }

    pub fn next_rebalance(&self) -> Option<Rebalance> {
        self.rebalances
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }

    /// Makes the callback complete rebalances itself from now on.
    pub fn set_closing(&self) {
        self.closing.store(true, Ordering::Release);
    }

    pub fn take_ends(&self) -> Option<Vec<(PartitionName, FetchedEnd)>> {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.take()
    }

    fn keep_ends(&self, statistics: Statistics) {
        let mut ends = Vec::new();
        for (topic, of_topic) in statistics.topics {
            for (id, partition) in of_topic.partitions {
                // librdkafka has an internal partition -1, and the end is -1 before the first fetch.
                if id >= 0 && partition.desired && partition.ls_offset >= 0 {
                    let end = FetchedEnd {
                        visible: partition.ls_offset,
                        all: partition.hi_offset,
                    };
                    ends.push(((topic.clone(), id), end));
                }
            }
        }
        *self.ends.lock().unwrap_or_else(PoisonError::into_inner) = Some(ends);
    }
}

impl ClientContext for SourceContext {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, source: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        sasl::token(source)
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.last_error.log(level, facility, message);
    }

    fn error(&self, error: ClientError, reason: &str) {
        // The topic watch reports a missing topic once, so this does not.
        match error.rdkafka_error_code() {
            Some(code) if is_topic_missing(code) => tracing::debug!("consumer: {error}: {reason}"),
            _ => self.last_error.error("consumer", &error, reason),
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        match serde_json::from_slice::<Statistics>(statistics) {
            Ok(statistics) => self.keep_ends(statistics),
            Err(e) => tracing::warn!("librdkafka's statistics cannot be read: {e}"),
        }
    }
}

impl ConsumerContext for SourceContext {
    /// Only queues the rebalance, because this runs inside a poll of the thread that has to drain first.
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        code: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        if self.closing.load(Ordering::Acquire) {
            let released = match is_cooperative(consumer) {
                true => consumer.incremental_unassign(partitions),
                false => consumer.unassign(),
            };
            if let Err(e) = released {
                tracing::debug!("leaving the group: {e}");
            }
            return;
        }
        let kind = match code {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => RebalanceKind::Assign,
            _ if consumer.assignment_lost() => RebalanceKind::Lost,
            _ => RebalanceKind::Revoke,
        };
        self.rebalances
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(Rebalance {
                kind,
                partitions: partitions.clone(),
            });
    }
}

pub(super) fn is_cooperative(consumer: &GroupConsumer) -> bool {
    matches!(
        consumer.rebalance_protocol(),
        RebalanceProtocol::Cooperative
    )
}

/// The fields of librdkafka's statistics that are used.
#[derive(Deserialize)]
struct Statistics {
    topics: BTreeMap<String, TopicStatistics>,
}

#[derive(Deserialize)]
struct TopicStatistics {
    partitions: BTreeMap<i32, PartitionStatistics>,
}

#[derive(Deserialize)]
struct PartitionStatistics {
    desired: bool,
    /// The last stable offset: the end of the records that may be read at the isolation level.
    ls_offset: i64,
    /// The high watermark: the end of all records, including those of open transactions.
    hi_offset: i64,
}
