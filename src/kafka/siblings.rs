//! What the group's offsets of one topic say of its partitions: whether a partition without an offset is newer than the
//! group, and what the next commits are to say.

use std::collections::{BTreeMap, BTreeSet};

use super::mark::Mark;

/// The offsets of a topic's partitions, as far as they are of this topic, with their marks.
pub(super) type Committed = BTreeMap<i32, Option<Mark>>;

/// What the group knows of a partition without an offset, by its siblings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Siblings {
    /// No more than that it is as old as they are.
    Unknown,
    /// It had an offset.
    Known,
    /// It is younger than an offset of theirs.
    Older,
}

/// `others` is `None` if their offsets are hidden. That counts as older: rather read twice than never.
pub(super) fn compare(others: Option<&Committed>, partition: i32) -> Siblings {
    let Some(others) = others else {
        return Siblings::Older;
    };
    let others = || others.iter().filter(|(other, _)| **other != partition);
    let is_older = |mark: &Option<Mark>| mark.as_ref().is_none_or(|m| m.existed <= partition);
    if others().any(|(_, mark)| is_older(mark)) {
        return Siblings::Older;
    }
    let had_offset = |mark: &Option<Mark>| mark.as_ref().is_some_and(|m| m.read > partition);
    match others().any(|(_, mark)| had_offset(mark)) {
        true => Siblings::Known,
        false => Siblings::Unknown,
    }
}

/// What commits say from now on: `assigned` start now, `committed` is everything that is known of the group.
///
/// Partitions that are added count as existing only when each of them has an offset. Otherwise a member that goes on with
/// the old ones would hide that the others are new.
pub(super) fn mark(
    id: Option<String>,
    partitions: i32,
    assigned: &BTreeSet<i32>,
    committed: &Committed,
    hidden: bool,
) -> Mark {
    let known =
        |partition: i32| assigned.contains(&partition) || committed.contains_key(&partition);
    let before = committed.values().flatten().map(|mark| mark.existed).min();
    let before = before.unwrap_or(if hidden { 0 } else { partitions });
    let all_start = (before..partitions).all(known);
    Mark {
        id,
        existed: if all_start {
            partitions
        } else {
            before.min(partitions)
        },
        read: (0..partitions).find(|p| !known(*p)).unwrap_or(partitions),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(existed: i32, read: i32) -> Option<Mark> {
        let id = Some("now".to_owned());
        Some(Mark { id, existed, read })
    }

    fn committed(marks: &[(i32, Option<Mark>)]) -> Committed {
        marks.iter().cloned().collect()
    }

    fn next(partitions: i32, assigned: &[i32], committed: &Committed) -> (i32, i32) {
        let assigned = assigned.iter().copied().collect();
        let mark = mark(None, partitions, &assigned, committed, false);
        (mark.existed, mark.read)
    }

    #[test]
    fn two_members_that_start_together_are_no_older_than_each_other() {
        assert_eq!(next(2, &[0], &Committed::new()), (2, 1));
        let first = committed(&[(0, said(2, 1))]);
        assert_eq!(compare(Some(&first), 1), Siblings::Unknown);
        assert_eq!(next(2, &[1], &first), (2, 2));
    }

    #[test]
    fn a_deleted_offset_is_told_from_a_new_partition() {
        let old = committed(&[(0, said(2, 2)), (1, said(2, 2))]);
        assert_eq!(compare(Some(&old), 2), Siblings::Older);
        let without = committed(&[(0, said(2, 2))]);
        assert_eq!(compare(Some(&without), 1), Siblings::Known);
        assert_eq!(compare(Some(&Committed::new()), 1), Siblings::Unknown);
        // By another tool, or by nobody who tells.
        assert_eq!(compare(Some(&committed(&[(0, None)])), 1), Siblings::Older);
        assert_eq!(compare(None, 1), Siblings::Older);
    }

    #[test]
    fn a_member_that_goes_on_with_the_old_ones_does_not_hide_the_new() {
        let old = committed(&[(0, said(2, 2)), (1, said(2, 2))]);
        assert_eq!(next(4, &[0, 1], &old), (2, 2));
        assert_eq!(next(4, &[2], &old), (2, 3));
        assert_eq!(next(4, &[0, 1, 2, 3], &old), (4, 4));
        let started = committed(&[
            (0, said(2, 2)),
            (1, said(2, 2)),
            (2, said(2, 3)),
            (3, said(2, 4)),
        ]);
        assert_eq!(next(4, &[0], &started), (4, 4));
    }
}
