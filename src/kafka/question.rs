//! What has to be known of partitions before they are read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::admin::{self, Described, Descriptions, Offsets};
use super::mark::Mark;
use super::siblings::{self, Committed};
use super::source::Context;
use super::start::{Age, Found, Reset};
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
type Told = BTreeMap<(String, i32), (i64, Option<Mark>)>;

/// A topic of which partitions are asked for.
struct Topic {
    age: Age,
    mark: Mark,
    /// `None` if the other members' transactions hide them.
    committed: Option<Committed>,
}

impl Question {
    /// Fails with the reason if something is not known yet.
    pub fn ask(&self) -> Result<Vec<Found>, String> {
        let told = self.committed(self.partitions.clone())?;
        let topics = self.topics(&told)?;
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
        let mut all = Vec::with_capacity(self.partitions.count());
        for element in self.partitions.elements() {
            let place = (element.topic().to_owned(), element.partition());
            let offset = |of: &Offsets| of.get(&place).copied().ok_or("an offset is missing");
            let topic = &topics[&place.0];
            let (committed, committed_mark) = told.get(&place).cloned().unzip();
            all.push(Found {
                committed,
                committed_mark: committed_mark.flatten(),
                mark: topic.mark.clone(),
                low: offset(&low)?,
                high: offset(&high)?,
                end: offset(&end)?,
                age: topic.age,
                siblings: siblings::compare(topic.committed.as_ref(), place.1),
                topic: place.0,
                partition: place.1,
            });
        }
        Ok(all)
    }

    fn topics(&self, told: &Told) -> Result<BTreeMap<String, Topic>, String> {
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
                return Err(format!("topic `{name}` is not described"));
            };
            let topic = self.topic(&name, &described, &assigned, told);
            topics.insert(name, topic);
        }
        Ok(topics)
    }

    fn topic(
        &self,
        name: &str,
        described: &Described,
        assigned: &BTreeSet<i32>,
        told: &Told,
    ) -> Topic {
        let (id, partitions) = (described.id.clone(), described.partitions);
        let mut committed = of_topic(name, id.as_ref(), told);
        let own = |partition| committed.get(partition).and_then(Option::as_ref);
        let up_to_date = |mark: &Mark| mark.existed == partitions && mark.read == partitions;
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
        Topic {
            age: self.seen.note(name, described),
            mark: siblings::mark(id, partitions, assigned, &committed, hidden),
            committed: (!hidden).then_some(committed),
        }
    }

    fn committed(&self, partitions: TopicPartitionList) -> Result<Told, String> {
        let told = self.consumer.committed_offsets(partitions, ASK_WITHIN);
        let told = told.map_err(|e| e.to_string())?;
        let mut committed = Told::new();
        for element in told.elements() {
            element.error().map_err(|e| e.to_string())?;
            if let Offset::Offset(offset) = element.offset() {
                let place = (element.topic().to_owned(), element.partition());
                committed.insert(place, (offset, Mark::parse(element.metadata())));
            }
        }
        Ok(committed)
    }

    fn describe(&self, names: &[&str]) -> Result<Descriptions, String> {
        let topics = admin::describe(self.consumer.client(), names, ASK_WITHIN);
        let topics = topics.map_err(|code| code.to_string())?;
        for (name, described) in &topics {
            if let Err(code) = described {
                return Err(format!("topic `{name}`: {code}"));
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
    fn all_of(&self, topic: &str, partitions: i32) -> Option<Told> {
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

/// Those offsets that are of this very topic, not of another that had its name.
fn of_topic(name: &str, id: Option<&String>, told: &Told) -> Committed {
    let mut committed = Committed::new();
    for ((topic, partition), (_, mark)) in told {
        let then = mark.as_ref().and_then(|mark| mark.id.as_ref());
        let of_another = matches!((then, id), (Some(then), Some(now)) if then != now);
        if topic == name && !of_another {
            committed.insert(*partition, mark.clone());
        }
    }
    committed
}
