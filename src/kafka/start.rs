//! Where an assigned partition is read from. The rules, apart from whoever asks the brokers:
//!
//! | the group's offset | the partition is read from |
//! | --- | --- |
//! | lies in the partition | there |
//! | is of a topic of that name that was deleted since | its beginning |
//! | lies below the first record: retention has deleted the records between | its first record |
//! | lies above the end: the broker has lost records | by `auto.offset.reset` |
//! | is missing, and the partition or its topic is newer than the group | its beginning |
//! | is missing otherwise | by `auto.offset.reset` |

use super::KafkaError;
use super::mark::Mark;
use super::siblings::Siblings;

/// `auto.offset.reset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reset {
    Beginning,
    End,
    /// The operator wants to decide.
    Refuse,
}

impl Reset {
    /// Where reading begins, if that does not wait for the operator.
    pub fn offset(self) -> Option<rdkafka::Offset> {
        use rdkafka::Offset;
        match self {
            Reset::Beginning => Some(Offset::Beginning),
            Reset::End => Some(Offset::End),
            Reset::Refuse => None,
        }
    }
}

/// How the topic's age compares with that of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    Older,
    /// It was not there at first.
    Newer,
    /// There was another one of its name.
    MadeAgain,
}

/// What was found out about a partition.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub topic: String,
    pub partition: i32,
    pub committed: Option<i64>,
    /// What the commit says of its topic.
    pub committed_mark: Option<Mark>,
    /// The topic as it is now.
    pub mark: Mark,
    /// Its first record, or where that will be.
    pub low: i64,
    pub high: i64,
    /// Where a reader starts that wants no older record: `high`, or the first open transaction.
    pub end: i64,
    pub age: Age,
    pub siblings: Siblings,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    GoesOn,
    Recreated,
    /// Retention was faster than this group.
    Deleted,
    /// The partition ends before the group's offset.
    Truncated,
    /// The group had an offset, by what it knows of the topic.
    OffsetDeleted,
    New,
    /// The group has never read this topic, as far as it knows.
    FirstTime,
}

/// Where to start. `unread`: records that nobody will judge; `again`: records that may be judged once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    pub offset: i64,
    pub why: Why,
    pub unread: i64,
    pub again: i64,
}

impl Start {
    fn at(offset: i64, why: Why) -> Start {
        Start {
            offset,
            why,
            unread: 0,
            again: 0,
        }
    }
}

impl Found {
    /// # Errors
    /// There is no offset to go on from, and `auto.offset.reset` is `none`.
    pub fn start(&self, reset: Reset) -> Result<Start, KafkaError> {
        if self.is_recreated() {
            return Ok(Start::at(self.low, Why::Recreated));
        }
        let Some(committed) = self.committed else {
            return self.start_without_offset(reset);
        };
        if (self.low..=self.high).contains(&committed) {
            return Ok(Start::at(committed, Why::GoesOn));
        }
        match reset {
            Reset::Refuse => Err(self.refused(&format!(
                "the group's offset {committed} is not in the partition, which holds {} to {}",
                self.low, self.high
            ))),
            _ if committed < self.low => Ok(Start {
                unread: self.low - committed,
                ..Start::at(self.low, Why::Deleted)
            }),
            Reset::Beginning => Ok(Start {
                again: self.high - self.low,
                ..Start::at(self.low, Why::Truncated)
            }),
            Reset::End => Ok(Start::at(self.end, Why::Truncated)),
        }
    }

    fn start_without_offset(&self, reset: Reset) -> Result<Start, KafkaError> {
        if self.age == Age::Newer || self.siblings == Siblings::Older {
            return Ok(Start::at(self.low, Why::New));
        }
        let why = match self.siblings {
            Siblings::Known => Why::OffsetDeleted,
            _ => Why::FirstTime,
        };
        match reset {
            Reset::Beginning => Ok(Start {
                again: self.high - self.low,
                ..Start::at(self.low, why)
            }),
            Reset::End => Ok(Start {
                unread: self.end - self.low,
                ..Start::at(self.end, why)
            }),
            Reset::Refuse => Err(self.refused("the group has no offset")),
        }
    }

    fn is_recreated(&self) -> bool {
        match &self.committed_mark {
            Some(then) if then.id.is_some() => then.differs(&self.mark),
            // Without ids only the brokers know, who forget the offsets of a deleted topic.
            _ if self.committed.is_some() && self.mark.id.is_none() => false,
            _ => self.age == Age::MadeAgain,
        }
    }

    fn refused(&self, problem: &str) -> KafkaError {
        KafkaError::NoOffset {
            partition: format!("{}-{}", self.topic, self.partition),
            problem: problem.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(id: &str) -> Mark {
        let id = Some(id.to_owned());
        let (existed, read) = (2, 2);
        Mark { id, existed, read }
    }

    /// A partition that holds 100 to 200 and of which the group has read half.
    fn half_read() -> Found {
        Found {
            topic: "payments".into(),
            partition: 1,
            committed: Some(150),
            committed_mark: Some(mark("one")),
            mark: mark("one"),
            low: 100,
            high: 200,
            end: 190,
            age: Age::Older,
            siblings: Siblings::Known,
        }
    }

    fn start(found: &Found, reset: Reset) -> (i64, Why, i64, i64) {
        let start = found.start(reset).unwrap();
        (start.offset, start.why, start.unread, start.again)
    }

    const ALL: [Reset; 3] = [Reset::Beginning, Reset::End, Reset::Refuse];

    #[test]
    fn an_offset_in_the_partition_is_gone_on_from() {
        for reset in ALL {
            for committed in [100, 150, 195, 200] {
                let found = Found {
                    committed: Some(committed),
                    ..half_read()
                };
                assert_eq!(start(&found, reset), (committed, Why::GoesOn, 0, 0));
            }
        }
        // Written by another tool, or before brokers had ids.
        let unmarked = Found {
            committed_mark: None,
            ..half_read()
        };
        assert_eq!(start(&unmarked, Reset::End), (150, Why::GoesOn, 0, 0));
    }

    #[test]
    fn a_topic_that_was_made_again_is_read_from_its_beginning() {
        let by_mark = Found {
            mark: mark("another"),
            ..half_read()
        };
        // The brokers forget the offsets of a deleted topic.
        let forgotten = Found {
            committed: None,
            committed_mark: None,
            age: Age::MadeAgain,
            ..half_read()
        };
        for reset in ALL {
            assert_eq!(start(&by_mark, reset), (100, Why::Recreated, 0, 0));
            assert_eq!(start(&forgotten, reset), (100, Why::Recreated, 0, 0));
        }
        // A replica has begun with the new one already.
        let begun = Found {
            age: Age::MadeAgain,
            ..half_read()
        };
        assert_eq!(start(&begun, Reset::End), (150, Why::GoesOn, 0, 0));
    }

    #[test]
    fn what_appears_after_the_group_is_read_from_its_beginning() {
        let bare = Found {
            committed: None,
            committed_mark: None,
            ..half_read()
        };
        let added = Found {
            siblings: Siblings::Older,
            ..bare.clone()
        };
        let newer = Found {
            age: Age::Newer,
            siblings: Siblings::Unknown,
            ..bare
        };
        for reset in ALL {
            assert_eq!(start(&added, reset), (100, Why::New, 0, 0));
            assert_eq!(start(&newer, reset), (100, Why::New, 0, 0));
        }
    }

    #[test]
    fn without_an_offset_the_setting_decides_and_what_it_costs_is_counted() {
        for (siblings, why) in [
            (Siblings::Known, Why::OffsetDeleted),
            (Siblings::Unknown, Why::FirstTime),
        ] {
            let found = Found {
                committed: None,
                committed_mark: None,
                siblings,
                ..half_read()
            };
            assert_eq!(start(&found, Reset::Beginning), (100, why, 0, 100));
            assert_eq!(start(&found, Reset::End), (190, why, 90, 0));
            let refused = found.start(Reset::Refuse).unwrap_err().to_string();
            assert!(refused.contains("payments-1"), "{refused}");
        }
    }

    #[test]
    fn retention_past_the_offset_costs_the_deleted_records_and_no_others() {
        let found = Found {
            committed: Some(40),
            ..half_read()
        };
        for reset in [Reset::Beginning, Reset::End] {
            assert_eq!(start(&found, reset), (100, Why::Deleted, 60, 0));
        }
        let refused = found.start(Reset::Refuse).unwrap_err().to_string();
        assert!(
            refused.contains("40") && refused.contains("100"),
            "{refused}"
        );
    }

    #[test]
    fn an_offset_beyond_the_end_goes_by_the_setting() {
        let found = Found {
            committed: Some(1000),
            ..half_read()
        };
        assert_eq!(
            start(&found, Reset::Beginning),
            (100, Why::Truncated, 0, 100)
        );
        assert_eq!(start(&found, Reset::End), (190, Why::Truncated, 0, 0));
        assert!(found.start(Reset::Refuse).is_err());
    }
}
