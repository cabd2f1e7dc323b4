//! Asks the brokers for the facts that decide where partitions are read from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::{Offset, TopicPartitionList};

use super::super::topic_admin::{self, Descriptions, Offsets, TopicDescription};
use super::commit_metadata::CommitMetadata;
use super::context::{GroupConsumer, PartitionName};
use super::known_topics::{KnownTopics, TopicAge};
use super::sibling_offsets::{self, Committed};
use super::start_offset::{OffsetReset, PartitionFacts};

const ASK_WITHIN: Duration = Duration::from_secs(1);
/// The number of attempts to read offsets that transactions of other members hide for a moment. One of these attempts
/// most likely falls between two transactions.
const TRIES: usize = 5;
const BETWEEN_TRIES: Duration = Duration::from_millis(30);

pub(super) struct StartLookup {
    pub consumer: Arc<GroupConsumer>,
    pub partitions: TopicPartitionList,
    pub known: KnownTopics,
    pub reset: OffsetReset,
}

/// The group's offsets with their metadata.
type GroupOffsets = BTreeMap<PartitionName, (i64, Option<CommitMetadata>)>;

/// The facts about a topic with partitions in the lookup.
struct TopicFacts {
    age: TopicAge,
    metadata: CommitMetadata,
    /// `None` if transactions of other members hide the offsets.
    committed: Option<Committed>,
}

impl StartLookup {
    /// Collects the facts. Fails with the reason if one of them is not known yet.
    pub fn run(&self) -> Result<Vec<PartitionFacts>, String> {
        let group_offsets = self.committed(self.partitions.clone())?;
        let topics = self.topics(&group_offsets)?;
        let client = self.consumer.client();
        let ends = |end| {
            let offsets = topic_admin::list_offsets(client, &self.partitions, end, ASK_WITHIN);
            offsets.map_err(|code| code.to_string())
        };
        let (low, high) = (ends(Offset::Beginning)?, ends(Offset::End)?);
        let end = match self.reset {
            OffsetReset::Latest => self.committed_ends()?,
            _ => high.clone(),
        };
        let mut all = Vec::with_capacity(self.partitions.count());
        for element in self.partitions.elements() {
            let name = (element.topic().to_owned(), element.partition());
            let offset = |of: &Offsets| {
                of.get(&name)
                    .copied()
                    .ok_or("the brokers did not return an offset")
            };
            let topic = &topics[&name.0];
            let (committed, committed_metadata) = group_offsets.get(&name).cloned().unzip();
            all.push(PartitionFacts {
                committed,
                committed_metadata: committed_metadata.flatten(),
                metadata: topic.metadata.clone(),
                low: offset(&low)?,
                high: offset(&high)?,
                end: offset(&end)?,
                age: topic.age,
                siblings: sibling_offsets::compare(topic.committed.as_ref(), name.1),
                topic: name.0,
                partition: name.1,
            });
        }
        Ok(all)
    }

    fn topics(&self, group_offsets: &GroupOffsets) -> Result<BTreeMap<String, TopicFacts>, String> {
        let mut assigned: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
        for element in self.partitions.elements() {
            let partitions = assigned.entry(element.topic().to_owned()).or_default();
            partitions.insert(element.partition());
        }
        let names: Vec<&str> = assigned.keys().map(String::as_str).collect();
        let mut described = self.describe(&names)?;
        let mut topics = BTreeMap::new();
        for (name, assigned) in assigned {
            let Some(Ok(described)) = described.remove(&name) else {
                return Err(format!("the brokers did not describe topic `{name}`"));
            };
            let topic = self.topic(&name, &described, &assigned, group_offsets);
            topics.insert(name, topic);
        }
        Ok(topics)
    }

    fn topic(
        &self,
        name: &str,
        described: &TopicDescription,
        assigned: &BTreeSet<i32>,
        group_offsets: &GroupOffsets,
    ) -> TopicFacts {
        let (id, partitions) = (described.id.clone(), described.partitions);
        let mut committed = of_topic(name, id.as_ref(), group_offsets);
        let own = |partition| committed.get(partition).and_then(Option::as_ref);
        let up_to_date = |metadata: &CommitMetadata| {
            metadata.partitions == partitions && metadata.committed_below == partitions
        };
        let mut hidden = false;
        if !assigned
            .iter()
            .all(|partition| own(partition).is_some_and(up_to_date))
        {
            match self.all_of(name, partitions) {
                Some(all) => committed = of_topic(name, id.as_ref(), &all),
                None => hidden = true,
            }
        }
        TopicFacts {
            age: self.known.note(name, described),
            metadata: sibling_offsets::next_metadata(id, partitions, assigned, &committed, hidden),
            committed: (!hidden).then_some(committed),
        }
    }

    fn committed(&self, partitions: TopicPartitionList) -> Result<GroupOffsets, String> {
        let answer = self.consumer.committed_offsets(partitions, ASK_WITHIN);
        let answer = answer.map_err(|e| e.to_string())?;
        let mut committed = GroupOffsets::new();
        for element in answer.elements() {
            element.error().map_err(|e| e.to_string())?;
            if let Offset::Offset(offset) = element.offset() {
                let name = (element.topic().to_owned(), element.partition());
                let metadata = CommitMetadata::parse(element.metadata());
                committed.insert(name, (offset, metadata));
            }
        }
        Ok(committed)
    }

    fn describe(&self, names: &[&str]) -> Result<Descriptions, String> {
        let topics = topic_admin::describe(self.consumer.client(), names, ASK_WITHIN);
        let topics = topics.map_err(|code| code.to_string())?;
        for (name, described) in &topics {
            if let Err(code) = described {
                return Err(format!("topic `{name}`: {code}"));
            }
        }
        Ok(topics)
    }

    /// Returns the ends at the configured isolation level. By default, these are the ends of the committed records.
    fn committed_ends(&self) -> Result<Offsets, String> {
        let mut asked = self.partitions.clone();
        let all = asked.set_all_offsets(Offset::End);
        all.map_err(|e| e.to_string())?;
        let answer = self.consumer.offsets_for_times(asked, ASK_WITHIN);
        let answer = answer.map_err(|e| e.to_string())?;
        let mut ends = Offsets::new();
        for element in answer.elements() {
            element.error().map_err(|e| e.to_string())?;
            if let Offset::Offset(offset) = element.offset() {
                ends.insert((element.topic().to_owned(), element.partition()), offset);
            }
        }
        Ok(ends)
    }

    /// Returns the group's offsets in all partitions of a topic, or `None` if they stay hidden.
    fn all_of(&self, topic: &str, partitions: i32) -> Option<GroupOffsets> {
        for _ in 0..TRIES {
            let mut all = TopicPartitionList::new();
            for partition in 0..partitions {
                all.add_partition(topic, partition);
            }
            match self.committed(all) {
                Ok(committed) => return Some(committed),
                Err(e) => {
                    tracing::debug!(
                        "the brokers did not return the offsets of topic `{topic}`: {e}"
                    )
                }
            }
            std::thread::sleep(BETWEEN_TRIES);
        }
        None
    }
}

/// Returns the offsets of this topic, without those of a deleted topic of the same name.
fn of_topic(name: &str, id: Option<&String>, group_offsets: &GroupOffsets) -> Committed {
    let mut committed = Committed::new();
    for ((topic, partition), (_, metadata)) in group_offsets {
        let then = metadata.as_ref().and_then(|m| m.topic_id.as_ref());
        let of_another = matches!((then, id), (Some(then), Some(now)) if then != now);
        if topic == name && !of_another {
            committed.insert(*partition, metadata.clone());
        }
    }
    committed
}
