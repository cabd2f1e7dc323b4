//! Decides which dead letters are replayed and to which topic, and builds the records to send.

use super::headers::{ERRORS_PREFIX, FailureHeaders};
use crate::record::{OwnedHeader, Record};

/// A record to produce: a replayed letter, or a marker.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplayRecord {
    pub topic: String,
    /// If `None`, the partitioner chooses.
    pub partition: Option<i32>,
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<OwnedHeader>,
    pub timestamp_ms: Option<i64>,
}

impl ReplayRecord {
    /// Restores the record of a letter as it was before the failure. A record without a key returns to its original partition, if
    /// it is sent to its original topic and the topic still has that partition.
    pub fn of(
        record: &Record<'_>,
        letter: &FailureHeaders<'_>,
        to: &str,
        partitions: usize,
    ) -> ReplayRecord {
        let has = |partition: &i32| (0..partitions as i32).contains(partition);
        let keeps_partition = letter.topic.as_deref() == Some(to) && record.key.is_none();
        let kept = record.headers.iter();
        let kept = kept.filter(|(name, _)| !name.starts_with(ERRORS_PREFIX));
        ReplayRecord {
            topic: to.to_owned(),
            partition: letter.partition.filter(|_| keeps_partition).filter(has),
            key: record.key.map(<[u8]>::to_vec),
            payload: record.payload.map(<[u8]>::to_vec),
            headers: kept
                .map(|(name, value)| ((*name).to_owned(), value.map(<[u8]>::to_vec)))
                .collect(),
            timestamp_ms: record.timestamp_ms,
        }
    }

    /// Returns the approximate size in memory and on the wire.
    pub fn bytes(&self) -> usize {
        let size = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let headers = self.headers.iter().map(|(n, v)| n.len() + size(v));
        size(&self.key) + size(&self.payload) + headers.sum::<usize>()
    }
}

/// Why a letter cannot be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// Its value, headers or key were left out because it was too large, so the original cannot be restored.
    ValueOmitted,
    /// Its headers contain no topic to return to.
    NoSourceTopic,
    /// It would be sent to the dead letter topic itself.
    SourceIsDeadLetterTopic,
}

impl Obstacle {
    pub fn as_str(self) -> &'static str {
        match self {
            Obstacle::ValueOmitted => "value_omitted",
            Obstacle::NoSourceTopic => "no_source_topic",
            Obstacle::SourceIsDeadLetterTopic => "source_is_dead_letter_topic",
        }
    }
}

/// Which letters to replay, and to which topic.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Empty for all.
    pub reasons: Vec<String>,
    /// The target of all letters. If `None`, each returns to the topic that it came from.
    pub to_topic: Option<String>,
}

impl Filter {
    pub fn matches(&self, letter: &FailureHeaders<'_>) -> bool {
        let reason = letter.reason.as_deref();
        self.reasons.is_empty() || self.reasons.iter().any(|r| Some(r.as_str()) == reason)
    }

    /// Returns the target topic of a letter in the topic `dead_letter_topic`.
    ///
    /// # Errors
    /// The [`Obstacle`], if the letter cannot be replayed.
    pub fn target<'l>(
        &'l self,
        letter: &'l FailureHeaders<'_>,
        dead_letter_topic: &str,
    ) -> Result<&'l str, Obstacle> {
        if letter.omitted {
            return Err(Obstacle::ValueOmitted);
        }
        let chosen = self.to_topic.as_deref();
        match chosen.or(letter.topic.as_deref()) {
            None => Err(Obstacle::NoSourceTopic),
            Some(to) if to == dead_letter_topic => Err(Obstacle::SourceIsDeadLetterTopic),
            Some(to) => Ok(to),
        }
    }
}
