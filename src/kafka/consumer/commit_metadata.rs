//! The metadata committed with an offset. It describes the topic at the time of the commit. From it, a later start can
//! tell whether the topic was recreated, a partition was added, or an offset was deleted.

use std::fmt;

const NO_ID: &str = "-";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommitMetadata {
    /// The topic id in base64, as Kafka's tools print it. A recreated topic has another id. `None` with brokers before
    /// Kafka 2.8.
    pub topic_id: Option<String>,
    /// The number of partitions when the group began with the topic. A partition added later is read from its beginning.
    pub partitions: i32,
    /// All partitions below this number had a committed offset.
    pub committed_below: i32,
}

impl CommitMetadata {
    /// Returns whether the two certainly belong to different topics.
    pub fn differs(&self, other: &CommitMetadata) -> bool {
        matches!((&self.topic_id, &other.topic_id), (Some(one), Some(another)) if one != another)
    }

    /// Parses committed metadata. Returns `None` for metadata that another tool wrote.
    pub fn parse(metadata: &str) -> Option<CommitMetadata> {
        let (id, partitions) = metadata.strip_prefix("topic ")?.split_once(" of ")?;
        let (partitions, committed_below) = partitions.split_once(" read ")?;
        Some(CommitMetadata {
            topic_id: (id != NO_ID).then(|| id.to_owned()),
            partitions: partitions.parse().ok()?,
            committed_below: committed_below.parse().ok()?,
        })
    }
}

impl fmt::Display for CommitMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.topic_id.as_deref().unwrap_or(NO_ID);
        let (partitions, committed_below) = (self.partitions, self.committed_below);
        write!(f, "topic {id} of {partitions} read {committed_below}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_read_as_it_was_written_and_foreign_metadata_is_ignored() {
        for topic_id in [Some("iRZ2bHmjQVGOcnYQAAAAEw".to_owned()), None] {
            let metadata = CommitMetadata {
                topic_id,
                partitions: 12,
                committed_below: 7,
            };
            let written = metadata.to_string();
            assert_eq!(CommitMetadata::parse(&written), Some(metadata));
        }
        for foreign in [
            "",
            "topic",
            "topic x",
            "topic x of y",
            "topic x of 1 read",
            "by hand",
        ] {
            assert_eq!(CommitMetadata::parse(foreign), None, "{foreign}");
        }
    }
}
