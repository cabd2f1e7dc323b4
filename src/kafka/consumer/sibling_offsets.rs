//! Uses the group's offsets in the other partitions of a topic to find out whether a partition without an offset is
//! newer than the group, and to build the metadata of the next commits.

use std::collections::{BTreeMap, BTreeSet};

use super::commit_metadata::CommitMetadata;

/// The partitions of one topic in which the group has an offset, with the metadata of that commit.
pub(super) type Committed = BTreeMap<i32, Option<CommitMetadata>>;

/// What the offsets of the other partitions reveal about a partition without an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SiblingEvidence {
    /// The partition is as old as the others. Nothing else is known.
    NoEvidence,
    HadOffset,
    /// The group's offset in another partition was committed before this partition existed.
    IsNew,
}

/// Compares a partition without an offset with the other partitions of its topic. `others` is `None` if their offsets
/// are hidden. Then the partition counts as new, because reading a record twice is better than skipping it.
pub(super) fn compare(others: Option<&Committed>, partition: i32) -> SiblingEvidence {
    let Some(others) = others else {
        return SiblingEvidence::IsNew;
    };
    let others = || others.iter().filter(|(other, _)| **other != partition);
    let is_older = |metadata: &Option<CommitMetadata>| {
        let metadata = metadata.as_ref();
        metadata.is_none_or(|m| m.partitions <= partition)
    };
    if others().any(|(_, metadata)| is_older(metadata)) {
        return SiblingEvidence::IsNew;
    }
    let had_offset = |metadata: &Option<CommitMetadata>| {
        let metadata = metadata.as_ref();
        metadata.is_some_and(|m| m.committed_below > partition)
    };
    match others().any(|(_, metadata)| had_offset(metadata)) {
        true => SiblingEvidence::HadOffset,
        false => SiblingEvidence::NoEvidence,
    }
}

/// Returns the metadata of the next commits. The `assigned` partitions start now; `committed` holds all known offsets
/// of the group.
///
/// Partitions that were added count only once each of them has an offset. Otherwise the next commit to an old partition
/// would hide that the others are new.
pub(super) fn next_metadata(
    topic_id: Option<String>,
    partitions: i32,
    assigned: &BTreeSet<i32>,
    committed: &Committed,
    hidden: bool,
) -> CommitMetadata {
    let known =
        |partition: i32| assigned.contains(&partition) || committed.contains_key(&partition);
    let before = committed.values().flatten().map(|m| m.partitions).min();
    let before = before.unwrap_or(if hidden { 0 } else { partitions });
    let all_start = (before..partitions).all(known);
    CommitMetadata {
        topic_id,
        partitions: match all_start {
            true => partitions,
            false => before.min(partitions),
        },
        committed_below: (0..partitions).find(|p| !known(*p)).unwrap_or(partitions),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(partitions: i32, committed_below: i32) -> Option<CommitMetadata> {
        Some(CommitMetadata {
            topic_id: Some("now".to_owned()),
            partitions,
            committed_below,
        })
    }

    fn committed(offsets: &[(i32, Option<CommitMetadata>)]) -> Committed {
        offsets.iter().cloned().collect()
    }

    fn next(partitions: i32, assigned: &[i32], committed: &Committed) -> (i32, i32) {
        let assigned = assigned.iter().copied().collect();
        let next = next_metadata(None, partitions, &assigned, committed, false);
        (next.partitions, next.committed_below)
    }

    #[test]
    fn two_members_that_start_together_are_equally_old() {
        assert_eq!(next(2, &[0], &Committed::new()), (2, 1));
        let first = committed(&[(0, metadata(2, 1))]);
        assert_eq!(compare(Some(&first), 1), SiblingEvidence::NoEvidence);
        assert_eq!(next(2, &[1], &first), (2, 2));
    }

    #[test]
    fn a_deleted_offset_differs_from_a_new_partition() {
        let old = committed(&[(0, metadata(2, 2)), (1, metadata(2, 2))]);
        assert_eq!(compare(Some(&old), 2), SiblingEvidence::IsNew);
        let without = committed(&[(0, metadata(2, 2))]);
        assert_eq!(compare(Some(&without), 1), SiblingEvidence::HadOffset);
        assert_eq!(
            compare(Some(&Committed::new()), 1),
            SiblingEvidence::NoEvidence
        );
        // Committed by another tool, or hidden.
        assert_eq!(
            compare(Some(&committed(&[(0, None)])), 1),
            SiblingEvidence::IsNew
        );
        assert_eq!(compare(None, 1), SiblingEvidence::IsNew);
    }

    #[test]
    fn a_commit_to_an_old_partition_does_not_hide_new_ones() {
        let old = committed(&[(0, metadata(2, 2)), (1, metadata(2, 2))]);
        assert_eq!(next(4, &[0, 1], &old), (2, 2));
        assert_eq!(next(4, &[2], &old), (2, 3));
        assert_eq!(next(4, &[0, 1, 2, 3], &old), (4, 4));
        let started = committed(&[
            (0, metadata(2, 2)),
            (1, metadata(2, 2)),
            (2, metadata(2, 3)),
            (3, metadata(2, 4)),
        ]);
        assert_eq!(next(4, &[0], &started), (4, 4));
    }
}
