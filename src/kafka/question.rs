//! What has to be known of partitions before they are read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::admin::{self, Descriptions, Offsets};
use super::mark::Mark;
use super::source::Context;
use super::start::{Found, Reset, Siblings};
use super::watch::Seen;

const ASK_WITHIN: Duration = Duration::from_secs(1);
/// Transactions of other members hide their offsets for a moment; one of these tries most likely falls between.
const TRIES: usize = 5;
const BETWEEN_TRIES: Duration = Duration::from_millis(30);

pub(super) struct Question {
    pub consumer: Arc<BaseConsumer<Context>>,
    pub partitions: TopicPartitionList,
    pub seen: Seen,
    pub reset: Reset,
}

/// The group's offsets, with what they say of their topic.
type Committed = BTreeMap<(String, i32), (i64, Option<Mark>)>;

impl Question {
    /// Fails with the reason if something is not known yet.
    pub fn ask(&self) -> Result<Vec<Found>, String> {
        let committed = self.committed(self.partitions.clone())?;
        let topics = self.describe()?;
        let client = self.consumer.client();
        let ends = |end| {
            let offsets = admin::list_offsets(client, &self.partitions, end, ASK_WITHIN);
            offsets.map_err(|code| code.to_string())
        };
        let (low, high) = (ends(Offset::Beginning)?, ends(Offset::End)?);
        let end = match self.reset {
            Reset::End => self.committed_ends()?,
            _ => high.clone(),
        };
        let mut siblings = BTreeMap::new();
        let mut all = Vec::with_capacity(self.partitions.count());
        for element in self.partitions.elements() {
            let (topic, partition) = (element.topic().to_owned(), element.partition());
            let place = (topic.clone(), partition);
            let offset = |of: &Offsets| of.get(&place).copied().ok_or("an offset is missing");
            let described = topics[&topic].as_ref().expect("seen above");
            let mark = Mark {
                id: described.id.clone(),
                partitions: described.partitions,
            };
            let (own, own_mark) = committed.get(&place).cloned().unzip();
            if own.is_none() && !siblings.contains_key(&topic) {
                let others = self.siblings(&topic, described.partitions);
                siblings.insert(topic.clone(), others);
            }
            let others = siblings.get(&topic).map(Option::as_ref);
            all.push(Found {
                age: self.seen.note(&topic, described),
                siblings: others.map_or(Siblings::Unknown, |others| {
                    compare(others, &topic, partition, &mark)
                }),
                topic,
                partition,
                committed: own,
                committed_mark: own_mark.flatten(),
                mark,
                low: offset(&low)?,
                high: offset(&high)?,
                end: offset(&end)?,
            });
        }
        Ok(all)
    }

    fn committed(&self, partitions: TopicPartitionList) -> Result<Committed, String> {
        let told = self.consumer.committed_offsets(partitions, ASK_WITHIN);
        let told = told.map_err(|e| e.to_string())?;
        let mut committed = Committed::new();
        for element in told.elements() {
            element.error().map_err(|e| e.to_string())?;
            if let Offset::Offset(offset) = element.offset() {
                let place = (element.topic().to_owned(), element.partition());
                committed.insert(place, (offset, Mark::parse(element.metadata())));
            }
        }
        Ok(committed)
    }

    fn describe(&self) -> Result<Descriptions, String> {
        let elements = self.partitions.elements();
        let mut names: Vec<&str> = elements.iter().map(|element| element.topic()).collect();
        names.sort_unstable();
        names.dedup();
        let topics = admin::describe(self.consumer.client(), &names, ASK_WITHIN);
        let topics = topics.map_err(|code| code.to_string())?;
        for name in names {
            match topics.get(name) {
                Some(Ok(_)) => {}
                Some(Err(code)) => return Err(format!("topic `{name}`: {code}")),
                None => return Err(format!("topic `{name}` is not described")),
            }
        }
        Ok(topics)
    }

    /// Where a reader of committed records ends, unless the settings ask for the others too.
    fn committed_ends(&self) -> Result<Offsets, String> {
        let mut asked = self.partitions.clone();
        let all = asked.set_all_offsets(Offset::End);
        all.map_err(|e| e.to_string())?;
        let told = self.consumer.offsets_for_times(asked, ASK_WITHIN);
        let told = told.map_err(|e| e.to_string())?;
        let mut ends = Offsets::new();
        for element in told.elements() {
            element.error().map_err(|e| e.to_string())?;
            if let Offset::Offset(offset) = element.offset() {
                ends.insert((element.topic().to_owned(), element.partition()), offset);
            }
        }
        Ok(ends)
    }

    /// The offsets of a whole topic; `None` if they stay hidden.
    fn siblings(&self, topic: &str, partitions: i32) -> Option<Committed> {
        for _ in 0..TRIES {
            let mut all = TopicPartitionList::new();
            for partition in 0..partitions {
                all.add_partition(topic, partition);
            }
            match self.committed(all) {
                Ok(committed) => return Some(committed),
                Err(e) => tracing::debug!("the offsets of topic `{topic}` are not told: {e}"),
            }
            std::thread::sleep(BETWEEN_TRIES);
        }
        None
    }
}

/// What `others` say of a partition without an offset. What is hidden counts as older: rather read twice than never.
fn compare(others: Option<&Committed>, topic: &str, partition: i32, mark: &Mark) -> Siblings {
    let Some(others) = others else {
        return Siblings::Older;
    };
    let mut compared = Siblings::Unknown;
    for ((_, other), (_, theirs)) in others.iter().filter(|((name, _), _)| name == topic) {
        match theirs {
            _ if *other == partition => {}
            // Of a topic that is gone.
            Some(theirs) if theirs.differs(mark) => {}
            Some(theirs) if theirs.partitions > partition => compared = Siblings::Known,
            _ => return Siblings::Older,
        }
    }
    compared
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_newer_than_an_offset_that_does_not_know_it() {
        let mark = |id: &str, partitions| {
            let id = Some(id.to_owned());
            Mark { id, partitions }
        };
        let now = mark("now", 6);
        let compared = |others: &[(i32, Option<Mark>)]| {
            let others = others.iter().cloned();
            let others = others.map(|(partition, mark)| (("t".to_owned(), partition), (7, mark)));
            compare(Some(&others.collect()), "t", 4, &now)
        };
        assert_eq!(compared(&[]), Siblings::Unknown);
        assert_eq!(compared(&[(0, Some(mark("now", 6)))]), Siblings::Known);
        assert_eq!(compared(&[(0, Some(mark("now", 4)))]), Siblings::Older);
        let some_older = [(0, Some(mark("now", 6))), (1, Some(mark("now", 4)))];
        assert_eq!(compared(&some_older), Siblings::Older);
        assert_eq!(compared(&[(0, Some(mark("gone", 4)))]), Siblings::Unknown);
        assert_eq!(compared(&[(0, None)]), Siblings::Older);
        assert_eq!(compare(None, "t", 4, &now), Siblings::Older);
    }
}
