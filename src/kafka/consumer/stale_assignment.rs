//! Detects stale assignments, so that the consumer can rejoin. A static member that returns gets its previous
//! assignment without a rebalance. That assignment lacks topics and partitions that were added, and still has those
//! that were deleted, while no member ran.

use std::collections::BTreeSet;
use std::time::Duration;

use rdkafka::client::{Client, ClientContext};

use super::super::topic_admin::Descriptions;
use crate::config::KafkaSettings;

const ASK_WITHIN: Duration = Duration::from_secs(2);
const STABLE: &str = "Stable";

/// Returns the group id if the group's assignments may be stale.
pub(super) fn group_to_check(kafka: &KafkaSettings) -> Option<String> {
    let get = |name| kafka.consumer.get(name).or(kafka.client.get(name));
    let is_static = get("group.instance.id").is_some();
    // With the new protocol, the brokers assign the partitions.
    let classic = get("group.protocol").is_none_or(|protocol| protocol == "classic");
    (is_static && classic).then(|| kafka.group_id.clone())
}

/// Returns whether the partitions assigned to all members of the group differ from those that exist, or `None` while
/// this is unknown.
pub(super) fn is_stale<C: ClientContext>(
    client: &Client<C>,
    group: &str,
    found: &Descriptions,
) -> Option<bool> {
    let groups = client.fetch_group_list(Some(group), ASK_WITHIN).ok()?;
    let group = groups.groups().iter().find(|g| g.name() == group)?;
    if group.state() != STABLE {
        return None;
    }
    let mut assigned = BTreeSet::new();
    for member in group.members() {
        read_assignment(member.assignment()?, &mut assigned)?;
    }
    Some(assigned != partitions(found))
}

fn partitions(found: &Descriptions) -> BTreeSet<(String, i32)> {
    let there = found
        .iter()
        .filter_map(|(topic, described)| Some((topic, described.as_ref().ok()?)));
    let all = there.flat_map(|(topic, described)| {
        (0..described.partitions).map(|partition| (topic.clone(), partition))
    });
    all.collect()
}

/// Reads a ConsumerProtocolAssignment: a version, then topics with their partitions.
fn read_assignment(mut bytes: &[u8], all: &mut BTreeSet<(String, i32)>) -> Option<()> {
    take::<2>(&mut bytes)?;
    for _ in 0..i32::from_be_bytes(take(&mut bytes)?) {
        let length = u16::from_be_bytes(take(&mut bytes)?);
        let (name, rest) = bytes.split_at_checked(usize::from(length))?;
        bytes = rest;
        let name = std::str::from_utf8(name).ok()?;
        for _ in 0..i32::from_be_bytes(take(&mut bytes)?) {
            all.insert((name.to_owned(), i32::from_be_bytes(take(&mut bytes)?)));
        }
    }
    Some(())
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_is_read_and_a_broken_one_is_refused() {
        let bytes = b"\0\x03\0\0\0\x02\0\x01a\0\0\0\x02\0\0\0\0\0\0\0\x05\0\x02bc\0\0\0\x01\0\0\0\x01\0\0\0\0";
        let read = |bytes: &[u8]| {
            let mut all = BTreeSet::new();
            read_assignment(bytes, &mut all).map(|()| all)
        };
        let expected = [("a", 0), ("a", 5), ("bc", 1)];
        let expected = expected.map(|(topic, partition)| (topic.to_owned(), partition));
        assert_eq!(read(bytes), Some(expected.into()));
        for length in 0..bytes.len() - 4 {
            assert_eq!(read(&bytes[..length]), None, "{length}");
        }
        let endless = b"\0\0\x7f\xff\xff\xff\0\x01a\x7f\xff\xff\xff\0\0\0\0";
        assert_eq!(read(endless), None);
    }
}
