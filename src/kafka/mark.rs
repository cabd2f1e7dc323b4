//! What a committed offset says of its topic, in the commit's metadata: its id, because a topic that is deleted and made
//! again has the same name and another id; and how many partitions it had, because one that is added later is read from
//! its beginning.

use std::fmt;

const NO_ID: &str = "-";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    /// In base64, as Kafka's tools print it. Brokers before Kafka 2.8 have none.
    pub id: Option<String>,
    pub partitions: i32,
}

impl Mark {
    /// Whether the two are known to be of different topics.
    pub fn differs(&self, other: &Mark) -> bool {
        matches!((&self.id, &other.id), (Some(one), Some(another)) if one != another)
    }

    /// `None` for metadata that somebody else wrote.
    pub fn parse(metadata: &str) -> Option<Mark> {
        let (id, partitions) = metadata.strip_prefix("topic ")?.split_once(" of ")?;
        Some(Mark {
            id: (id != NO_ID).then(|| id.to_owned()),
            partitions: partitions.parse().ok()?,
        })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.id.as_deref().unwrap_or(NO_ID);
        write!(f, "topic {id} of {}", self.partitions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written_and_foreign_metadata_is_none() {
        for id in [Some("iRZ2bHmjQVGOcnYQAAAAEw".to_owned()), None] {
            let mark = Mark { id, partitions: 12 };
            assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
        }
        for foreign in ["", "topic", "topic x", "topic x of y", "by hand"] {
            assert_eq!(Mark::parse(foreign), None, "{foreign}");
        }
    }
}
