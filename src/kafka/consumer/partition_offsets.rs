//! Requests the first, last and committed offsets of partitions, on another thread because answers take time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use jiff::Timestamp;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError as ClientError;
use rdkafka::{Offset, TopicPartitionList};

use super::context::{GroupConsumer, PartitionName};

const ASK_WITHIN: Duration = Duration::from_secs(1);
/// Timeouts for asking about partitions one by one: for each request, and for all of them together.
const EACH_WITHIN: Duration = Duration::from_millis(200);
const ALL_WITHIN: Duration = Duration::from_secs(2);

/// The offsets of a partition. A field is `None` if the brokers did not answer.
#[derive(Debug, Clone)]
pub(super) struct PartitionOffsets {
    pub name: PartitionName,
    /// `Some(None)` means that the group has no committed offset.
    pub committed: Option<Option<i64>>,
    /// The offset of the oldest record.
    pub low: Option<i64>,
    /// The offset after the last record that consumers can read.
    pub end: Option<i64>,
}

/// Requests all offsets of `unknown`, and only the ends of `ends`. Returns `None` if both are empty.
pub(super) fn ask(
    consumer: &Arc<GroupConsumer>,
    unknown: &[&PartitionName],
    ends: &[&PartitionName],
) -> Option<Receiver<Vec<PartitionOffsets>>> {
    if unknown.is_empty() && ends.is_empty() {
        return None;
    }
    let own = |names: &[&PartitionName]| -> Vec<PartitionName> {
        names.iter().map(|name| (*name).clone()).collect()
    };
    let (unknown, ends) = (own(unknown), own(ends));
    let (answer, answered) = bounded(1);
    let consumer = Arc::clone(consumer);
    let ask = move || {
        let offsets = find(&consumer, &unknown, &ends);
        drop(consumer);
        let _ = answer.send(offsets);
    };
    // If no thread can be started, the caller asks again later.
    let thread = std::thread::Builder::new().name("offsets".into());
    thread.spawn(ask).ok().map(|_| answered)
}

fn find(
    consumer: &GroupConsumer,
    unknown: &[PartitionName],
    ends: &[PartitionName],
) -> Vec<PartitionOffsets> {
    let mut committed = committed(consumer, unknown);
    let mut low = offsets(consumer, unknown, Offset::Beginning);
    let all = [unknown, ends].concat();
    let mut end = offsets(consumer, &all, Offset::End);
    let offsets = all.into_iter().map(|name| PartitionOffsets {
        committed: committed.remove(&name),
        low: low.remove(&name),
        end: end.remove(&name),
        name,
    });
    offsets.collect()
}

fn committed(
    consumer: &GroupConsumer,
    names: &[PartitionName],
) -> BTreeMap<PartitionName, Option<i64>> {
    if names.is_empty() {
        return BTreeMap::new();
    }
    let answer = match consumer.committed_offsets(list(names, Offset::Invalid), ASK_WITHIN) {
        Ok(answer) => answer,
        Err(e) => {
            tracing::debug!("the brokers do not return the group's offsets: {e}");
            return BTreeMap::new();
        }
    };
    offsets_by_name(&answer, |offset| match offset {
        Offset::Offset(offset) => Some(Some(offset)),
        _ => Some(None),
    })
}

/// Requests the first or last offsets. One partition without a leader fails the request for all of them. In that case,
/// each partition is requested separately.
fn offsets(
    consumer: &GroupConsumer,
    names: &[PartitionName],
    of: Offset,
) -> BTreeMap<PartitionName, i64> {
    if names.is_empty() {
        return BTreeMap::new();
    }
    let ask = |names: &[PartitionName], within| {
        let answer = consumer.offsets_for_times(list(names, of), within)?;
        Ok::<_, ClientError>(offsets_by_name(&answer, |offset| match offset {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        }))
    };
    let mut offsets = match ask(names, ASK_WITHIN) {
        Ok(offsets) => return offsets,
        Err(e) => {
            tracing::debug!("requesting the offsets of each partition separately: {e}");
            BTreeMap::new()
        }
    };
    let deadline = Instant::now() + ALL_WITHIN;
    // Start with another partition each time, so that none is always left out.
    let first = Timestamp::now().as_millisecond() as usize % names.len();
    let (before, after) = names.split_at(first);
    for name in after.iter().chain(before) {
        if Instant::now() >= deadline {
            break;
        }
        offsets.extend(ask(std::slice::from_ref(name), EACH_WITHIN).unwrap_or_default());
    }
    offsets
}

/// Returns the offsets in an answer, without those of partitions with an error.
fn offsets_by_name<T>(
    answer: &TopicPartitionList,
    convert: impl Fn(Offset) -> Option<T>,
) -> BTreeMap<PartitionName, T> {
    let elements = answer.elements();
    let valid = elements.iter().filter(|element| element.error().is_ok());
    let offsets = valid.filter_map(|element| {
        let name = (element.topic().to_owned(), element.partition());
        Some((name, convert(element.offset())?))
    });
    offsets.collect()
}

fn list(names: &[PartitionName], offset: Offset) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(names.len());
    for (topic, partition) in names {
        list.add_partition_offset(topic, *partition, offset)
            .expect("a logical offset is valid");
    }
    list
}
