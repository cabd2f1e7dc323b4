//! The rules that choose where an assigned partition is read from. They do no I/O.
//!
//! | the group's offset | the partition is read from |
//! | --- | --- |
//! | lies in the partition | that offset |
//! | belongs to a deleted topic of the same name | its beginning |
//! | lies below the first record: retention has deleted the records between | its first record |
//! | lies above the end: the broker has lost records | where `auto.offset.reset` points |
//! | is missing, and the partition or its topic is newer than the group | its beginning |
//! | is missing otherwise | where `auto.offset.reset` points |

use super::super::error::KafkaError;
use super::commit_metadata::CommitMetadata;
use super::known_topics::TopicAge;
use super::sibling_offsets::SiblingEvidence;
use crate::config::KafkaSettings;

/// The setting `auto.offset.reset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OffsetReset {
    Earliest,
    Latest,
    /// Without an offset, the daemon fails, so that the operator decides.
    Fail,
}

impl OffsetReset {
    pub fn from_settings(kafka: &KafkaSettings) -> OffsetReset {
        let settings = [&kafka.consumer, &kafka.client];
        let reset = settings
            .iter()
            .find_map(|settings| settings.get("auto.offset.reset"));
        match reset {
            Some("smallest" | "earliest" | "beginning") => OffsetReset::Earliest,
            Some("error" | "none") => OffsetReset::Fail,
            // librdkafka's default.
            _ => OffsetReset::Latest,
        }
    }

    /// Returns the offset at which reading begins, or `None` if the operator has to decide.
    pub fn offset(self) -> Option<rdkafka::Offset> {
        use rdkafka::Offset;
        match self {
            OffsetReset::Earliest => Some(Offset::Beginning),
            OffsetReset::Latest => Some(Offset::End),
            OffsetReset::Fail => None,
        }
    }
}

/// The facts from the brokers about a partition that is about to be read.
#[derive(Debug, Clone)]
pub(super) struct PartitionFacts {
    pub topic: String,
    pub partition: i32,
    pub committed: Option<i64>,
    /// The metadata of the group's offset.
    pub committed_metadata: Option<CommitMetadata>,
    /// The metadata to commit from now on. It describes the topic as it is now.
    pub metadata: CommitMetadata,
    /// The offset of the first record, or the next offset if there is no record.
    pub low: i64,
    pub high: i64,
    /// The offset where a consumer of new records starts: `high`, or the beginning of the first open transaction.
    pub end: i64,
    pub age: TopicAge,
    pub siblings: SiblingEvidence,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StartReason {
    Continues,
    Recreated,
    /// Retention has deleted records before the group read them.
    Deleted,
    /// The partition ends before the group's offset.
    Truncated,
    /// The group's offset was deleted, as the other partitions show.
    OffsetDeleted,
    New,
    /// As far as is known, the group has never read this topic.
    FirstTime,
}

/// Where to start reading, why, and at what cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    pub offset: i64,
    pub reason: StartReason,
    /// Records that will never be scored.
    pub unread: i64,
    /// Records that may be scored twice.
    pub read_again: i64,
}

impl Start {
    fn at(offset: i64, reason: StartReason) -> Start {
        Start {
            offset,
            reason,
            unread: 0,
            read_again: 0,
        }
    }
}

impl PartitionFacts {
    /// Chooses where to start reading.
    ///
    /// # Errors
    /// When there is no offset to continue from, and `auto.offset.reset` is `none`.
    pub fn start(&self, reset: OffsetReset) -> Result<Start, KafkaError> {
        if self.is_recreated() {
            return Ok(Start::at(self.low, StartReason::Recreated));
        }
        let Some(committed) = self.committed else {
            return self.start_without_offset(reset);
        };
        if (self.low..=self.high).contains(&committed) {
            return Ok(Start::at(committed, StartReason::Continues));
        }
        match reset {
            OffsetReset::Fail => Err(self.no_offset(&format!(
                "the group's offset {committed} is not in the partition, which holds the offsets {} to {}",
                self.low, self.high
            ))),
            _ if committed < self.low => Ok(Start {
                unread: self.low - committed,
                ..Start::at(self.low, StartReason::Deleted)
            }),
            OffsetReset::Earliest => Ok(Start {
                read_again: self.high - self.low,
                ..Start::at(self.low, StartReason::Truncated)
            }),
            OffsetReset::Latest => Ok(Start::at(self.end, StartReason::Truncated)),
        }
    }

    fn start_without_offset(&self, reset: OffsetReset) -> Result<Start, KafkaError> {
        if self.age == TopicAge::Newer || self.siblings == SiblingEvidence::IsNew {
            return Ok(Start::at(self.low, StartReason::New));
        }
        let reason = match self.siblings {
            SiblingEvidence::HadOffset => StartReason::OffsetDeleted,
            _ => StartReason::FirstTime,
        };
        match reset {
            OffsetReset::Earliest => Ok(Start {
                read_again: self.high - self.low,
                ..Start::at(self.low, reason)
            }),
            OffsetReset::Latest => Ok(Start {
                unread: self.end - self.low,
                ..Start::at(self.end, reason)
            }),
            OffsetReset::Fail => Err(self.no_offset("the group has no offset")),
        }
    }

    fn is_recreated(&self) -> bool {
        match &self.committed_metadata {
            Some(then) if then.topic_id.is_some() => then.differs(&self.metadata),
            // Without topic ids, an offset proves that the topic is the same, because brokers delete offsets together
            // with their topic.
            _ if self.committed.is_some() && self.metadata.topic_id.is_none() => false,
            _ => self.age == TopicAge::Recreated,
        }
    }

    fn no_offset(&self, problem: &str) -> KafkaError {
        KafkaError::NoOffset {
            partition: format!("{}-{}", self.topic, self.partition),
            problem: problem.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(topic_id: &str) -> CommitMetadata {
        CommitMetadata {
            topic_id: Some(topic_id.to_owned()),
            partitions: 2,
            committed_below: 2,
        }
    }

    /// A partition with the offsets 100 to 200, half of which the group has read.
    fn half_read() -> PartitionFacts {
        PartitionFacts {
            topic: "payments".into(),
            partition: 1,
            committed: Some(150),
            committed_metadata: Some(metadata("one")),
            metadata: metadata("one"),
            low: 100,
            high: 200,
            end: 190,
            age: TopicAge::Older,
            siblings: SiblingEvidence::HadOffset,
        }
    }

    fn start(facts: &PartitionFacts, reset: OffsetReset) -> (i64, StartReason, i64, i64) {
        let start = facts.start(reset).unwrap();
        (start.offset, start.reason, start.unread, start.read_again)
    }

    const ALL: [OffsetReset; 3] = [
        OffsetReset::Earliest,
        OffsetReset::Latest,
        OffsetReset::Fail,
    ];

    #[test]
    fn reading_continues_at_an_offset_in_the_partition() {
        for reset in ALL {
            for committed in [100, 150, 195, 200] {
                let facts = PartitionFacts {
                    committed: Some(committed),
                    ..half_read()
                };
                assert_eq!(
                    start(&facts, reset),
                    (committed, StartReason::Continues, 0, 0)
                );
            }
        }
        // Committed by another tool.
        let without_metadata = PartitionFacts {
            committed_metadata: None,
            ..half_read()
        };
        assert_eq!(
            start(&without_metadata, OffsetReset::Latest),
            (150, StartReason::Continues, 0, 0)
        );
    }

    #[test]
    fn a_recreated_topic_is_read_from_its_beginning() {
        let by_id = PartitionFacts {
            metadata: metadata("another"),
            ..half_read()
        };
        // The brokers delete the offsets of a deleted topic.
        let forgotten = PartitionFacts {
            committed: None,
            committed_metadata: None,
            age: TopicAge::Recreated,
            ..half_read()
        };
        for reset in ALL {
            assert_eq!(start(&by_id, reset), (100, StartReason::Recreated, 0, 0));
            assert_eq!(
                start(&forgotten, reset),
                (100, StartReason::Recreated, 0, 0)
            );
        }
        // Another replica has begun with the new topic already.
        let begun = PartitionFacts {
            age: TopicAge::Recreated,
            ..half_read()
        };
        assert_eq!(
            start(&begun, OffsetReset::Latest),
            (150, StartReason::Continues, 0, 0)
        );
    }

    #[test]
    fn partitions_and_topics_newer_than_the_group_are_read_from_the_beginning() {
        let bare = PartitionFacts {
            committed: None,
            committed_metadata: None,
            ..half_read()
        };
        let added = PartitionFacts {
            siblings: SiblingEvidence::IsNew,
            ..bare.clone()
        };
        let newer = PartitionFacts {
            age: TopicAge::Newer,
            siblings: SiblingEvidence::NoEvidence,
            ..bare
        };
        for reset in ALL {
            assert_eq!(start(&added, reset), (100, StartReason::New, 0, 0));
            assert_eq!(start(&newer, reset), (100, StartReason::New, 0, 0));
        }
    }

    #[test]
    fn without_an_offset_the_setting_decides_and_its_cost_is_counted() {
        for (siblings, reason) in [
            (SiblingEvidence::HadOffset, StartReason::OffsetDeleted),
            (SiblingEvidence::NoEvidence, StartReason::FirstTime),
        ] {
            let facts = PartitionFacts {
                committed: None,
                committed_metadata: None,
                siblings,
                ..half_read()
            };
            assert_eq!(start(&facts, OffsetReset::Earliest), (100, reason, 0, 100));
            assert_eq!(start(&facts, OffsetReset::Latest), (190, reason, 90, 0));
            let refused = facts.start(OffsetReset::Fail).unwrap_err().to_string();
            assert!(refused.contains("payments-1"), "{refused}");
        }
    }

    #[test]
    fn retention_past_the_offset_costs_only_the_deleted_records() {
        let facts = PartitionFacts {
            committed: Some(40),
            ..half_read()
        };
        for reset in [OffsetReset::Earliest, OffsetReset::Latest] {
            assert_eq!(start(&facts, reset), (100, StartReason::Deleted, 60, 0));
        }
        let refused = facts.start(OffsetReset::Fail).unwrap_err().to_string();
        assert!(
            refused.contains("40") && refused.contains("100"),
            "{refused}"
        );
    }

    #[test]
    fn an_offset_beyond_the_end_follows_the_setting() {
        let facts = PartitionFacts {
            committed: Some(1000),
            ..half_read()
        };
        assert_eq!(
            start(&facts, OffsetReset::Earliest),
            (100, StartReason::Truncated, 0, 100)
        );
        assert_eq!(
            start(&facts, OffsetReset::Latest),
            (190, StartReason::Truncated, 0, 0)
        );
        assert!(facts.start(OffsetReset::Fail).is_err());
    }
}
