//! What a committed offset says of its topic, in the commit's metadata: its id, because a topic that is deleted and made
//! again has the same name and another id; how many partitions it had when the group began with it,
//! because one that is added later is read from its beginning; and how many of them had an offset then.

use std::fmt;

const NO_ID: &str = "-";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    /// In base64, as Kafka's tools print it. Brokers before Kafka 2.8 have none.
    pub id: Option<String>,
    pub existed: i32,
    /// All below this one had an offset.
    pub read: i32,
}

impl Mark {
    /// Whether the two are known to be of different topics.
    pub fn differs(&self, other: &Mark) -> bool {
        matches!((&self.id, &other.id), (Some(one), Some(another)) if one != another)
    }

    /// `None` for metadata that somebody else wrote.
    pub fn parse(metadata: &str) -> Option<Mark> {
        let (id, partitions) = metadata.strip_prefix("topic ")?.split_once(" of ")?;
        let (existed, read) = partitions.split_once(" read ")?;
        Some(Mark {
            id: (id != NO_ID).then(|| id.to_owned()),
            existed: existed.parse().ok()?,
            read: read.parse().ok()?,
        })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.id.as_deref().unwrap_or(NO_ID);
        write!(f, "topic {id} of {} read {}", self.existed, self.read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written_and_foreign_metadata_is_none() {
        for id in [Some("iRZ2bHmjQVGOcnYQAAAAEw".to_owned()), None] {
            let (existed, read) = (12, 7);
            let mark = Mark { id, existed, read };
            assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
        }
        for foreign in [
            "",
            "topic",
            "topic x",
            "topic x of y",
            "topic x of 1 read",
            "by hand",
        ] {
            assert_eq!(Mark::parse(foreign), None, "{foreign}");
        }
    }
}
