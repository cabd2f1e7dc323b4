//! Where partitions begin, end and were read to, as the brokers say. A thread of its own asks: an answer takes time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use jiff::Timestamp;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::{Offset, TopicPartitionList};

use super::progress::Name;
use super::source::Context;

const ASK_WITHIN: Duration = Duration::from_secs(1);
/// Where one partition has no leader, each is asked alone: for so long each, and all together.
const ALONE_WITHIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// What the brokers say of a partition; `None` where they do not answer.
#[derive(Debug, Clone)]
pub(super) struct Edges {
    pub name: Name,
    /// What the group has committed, or that it has committed nothing.
    pub committed: Option<Option<i64>>,
    /// The offset of the oldest record.
    pub low: Option<i64>,
    /// The offset behind the last record that may be seen.
    pub end: Option<i64>,
}

/// Asks everything of `unknown` and the ends of `ends`; `None` if there is nothing to ask.
pub(super) fn ask(
    consumer: &Arc<BaseConsumer<Context>>,
    unknown: &[&Name],
    ends: &[&Name],
) -> Option<Receiver<Vec<Edges>>> {
    if unknown.is_empty() && ends.is_empty() {
        return None;
    }
    let own = |names: &[&Name]| -> Vec<Name> { names.iter().map(|name| (*name).clone()).collect() };
    let (unknown, ends) = (own(unknown), own(ends));
    let (answer, answered) = bounded(1);
    let consumer = Arc::clone(consumer);
    let ask = move || {
        let edges = find(&consumer, &unknown, &ends);
        drop(consumer);
        let _ = answer.send(edges);
    };
    // Without a thread it is tried again later.
    let thread = std::thread::Builder::new().name("edges".into()).spawn(ask);
    thread.ok().map(|_| answered)
}

fn find(consumer: &BaseConsumer<Context>, unknown: &[Name], ends: &[Name]) -> Vec<Edges> {
    let mut committed = committed(consumer, unknown);
    let mut low = offsets(consumer, unknown, Offset::Beginning);
    let all = [unknown, ends].concat();
    let mut end = offsets(consumer, &all, Offset::End);
    let edges = all.into_iter().map(|name| Edges {
        committed: committed.remove(&name),
        low: low.remove(&name),
        end: end.remove(&name),
        name,
    });
    edges.collect()
}

fn committed(consumer: &BaseConsumer<Context>, names: &[Name]) -> BTreeMap<Name, Option<i64>> {
    if names.is_empty() {
        return BTreeMap::new();
    }
    let told = match consumer.committed_offsets(list(names, Offset::Invalid), ASK_WITHIN) {
        Ok(told) => told,
        Err(e) => {
            tracing::debug!("the group does not tell its offsets: {e}");
            return BTreeMap::new();
        }
    };
    each(&told, |offset| match offset {
        Offset::Offset(offset) => Some(Some(offset)),
        _ => Some(None),
    })
}

/// The first or last offsets. One partition without a leader spoils an answer for all: then each is asked alone.
fn offsets(consumer: &BaseConsumer<Context>, names: &[Name], of: Offset) -> BTreeMap<Name, i64> {
    if names.is_empty() {
        return BTreeMap::new();
    }
    let ask = |names: &[Name], within| {
        let told = consumer.offsets_for_times(list(names, of), within)?;
        Ok::<_, ClientError>(each(&told, |offset| match offset {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        }))
    };
    let mut offsets = match ask(names, ASK_WITHIN) {
        Ok(offsets) => return offsets,
        Err(e) => {
            tracing::debug!("offsets are asked of each partition alone: {e}");
            BTreeMap::new()
        }
    };
    let deadline = Instant::now() + ALONE_WITHIN.1;
    // Another one is the first each time, so that none is left out for ever.
    let turn = Timestamp::now().as_millisecond() as usize % names.len();
    let (before, after) = names.split_at(turn);
    for name in after.iter().chain(before) {
        if Instant::now() >= deadline {
            break;
        }
        offsets.extend(ask(std::slice::from_ref(name), ALONE_WITHIN.0).unwrap_or_default());
    }
    offsets
}

fn each<T>(told: &TopicPartitionList, of: impl Fn(Offset) -> Option<T>) -> BTreeMap<Name, T> {
    let elements = told.elements();
    let sound = elements.iter().filter(|element| element.error().is_ok());
    let told = sound.filter_map(|element| {
        let name = (element.topic().to_owned(), element.partition());
        Some((name, of(element.offset())?))
    });
    told.collect()
}

fn list(names: &[Name], offset: Offset) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(names.len());
    for (topic, partition) in names {
        list.add_partition_offset(topic, *partition, offset)
            .expect("a logical offset is valid");
    }
    list
}
