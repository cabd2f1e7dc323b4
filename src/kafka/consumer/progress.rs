//! Tracks the progress of each assigned partition: its finished offset, its end and its lag. Tracking begins with the
//! assignment, even if no record arrives.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};
use jiff::Timestamp;
use rdkafka::{Offset, TopicPartitionList};

use super::context::{FetchedEnd, GroupConsumer, PartitionName};
use super::partition_offsets::{self, PartitionOffsets};
use crate::metrics::Metrics;
use crate::status::{PartitionStatus, Partitions, Status, Waiting};

/// How often metrics and status are updated.
const UPDATE_EVERY: Duration = Duration::from_secs(1);
/// Fetches report the end of a partition. If none has reported it for this long, the brokers are asked.
const FRESH: Duration = Duration::from_secs(3);
/// A lag of 0 that is older than this counts as unknown.
const OUTDATED: Duration = Duration::from_secs(30);
/// A partition without progress for this long may end in offsets without records.
pub(super) const QUIET: Duration = Duration::from_secs(2);

/// The progress of all assigned partitions.
pub(super) struct ProgressTracker {
    partitions: BTreeMap<PartitionName, PartitionProgress>,
    asked: Option<Receiver<Vec<PartitionOffsets>>>,
    next_update: Instant,
    metrics: Metrics,
    status: Status,
}

pub(super) struct PartitionProgress {
    start: ReadFrom,
    pub assigned: Timestamp,
    /// Everything below this offset is finished.
    pub finished: Option<i64>,
    /// The end of the records that consumers can read.
    pub end: Option<i64>,
    end_seen: Option<(Instant, Timestamp)>,
    /// The end from the last fetch.
    fetched: Option<FetchedEnd>,
    /// When an open transaction began to hide the last offsets.
    hidden_since: Option<Timestamp>,
    /// When a record was last finished, or when the partition last had no record left to read.
    moved: Timestamp,
    pub quiet_since: Instant,
    pub tail: Tail,
}

/// What is known about the unfinished end of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tail {
    Unknown,
    /// A search for records from this offset on is in progress.
    Searched(i64),
    /// There is a record at this offset or after it.
    HasRecords(i64),
}

/// Where reading of a partition starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadFrom {
    At(i64),
    Beginning,
    End,
    Committed,
}

impl From<Offset> for ReadFrom {
    fn from(offset: Offset) -> ReadFrom {
        match offset {
            Offset::Offset(offset) => ReadFrom::At(offset),
            Offset::Beginning => ReadFrom::Beginning,
            Offset::End => ReadFrom::End,
            _ => ReadFrom::Committed,
        }
    }
}

impl PartitionProgress {
    fn new(start: ReadFrom) -> PartitionProgress {
        let now = Timestamp::now();
        PartitionProgress {
            start,
            assigned: now,
            finished: match start {
                ReadFrom::At(offset) => Some(offset),
                _ => None,
            },
            end: None,
            end_seen: None,
            fetched: None,
            hidden_since: None,
            moved: now,
            quiet_since: Instant::now(),
            tail: Tail::Unknown,
        }
    }

    /// Returns the number of unfinished offsets, including those of open transactions. Returns `None` if the brokers
    /// have not answered, or if a lag of 0 is outdated.
    pub fn lag(&self) -> Option<i64> {
        self.lag_to(self.end?.max(self.fetched.map_or(-1, |end| end.all)))
    }

    /// Returns the lag to the end that consumers see.
    pub fn visible_lag(&self) -> Option<i64> {
        self.lag_to(self.end?)
    }

    /// Returns the number of offsets that an open transaction hides, and since when, if no other offsets are left.
    pub fn hidden(&self) -> Option<(i64, Timestamp)> {
        let is_read = self.visible_lag() == Some(0) && self.quiet_since.elapsed() >= QUIET;
        let hidden = self.lag().filter(|lag| is_read && *lag > 0);
        hidden.zip(self.hidden_since)
    }

    fn lag_to(&self, end: i64) -> Option<i64> {
        let lag = (end - self.finished?).max(0);
        let (seen, _) = self.end_seen?;
        (lag > 0 || seen.elapsed() < OUTDATED).then_some(lag)
    }

    /// Returns the time since which the brokers have not reported an end.
    pub fn unknown_since(&self) -> Timestamp {
        self.end_seen.map_or(self.assigned, |(_, at)| at)
    }

    fn set_end(&mut self, end: i64) {
        self.end = Some(end);
        self.end_seen = Some((Instant::now(), Timestamp::now()));
        if self.lag() == Some(0) {
            self.moved = Timestamp::now();
        }
    }

    /// Sets the end from the last fetch. librdkafka repeats the value even if it does not fetch, so only a change
    /// counts.
    fn set_fetched_end(&mut self, end: FetchedEnd) {
        if self.fetched.replace(end) == Some(end) {
            return;
        }
        let is_hidden = end.all > end.visible;
        self.hidden_since = is_hidden.then(|| self.hidden_since.unwrap_or_else(Timestamp::now));
        self.set_end(end.visible);
    }

    fn finish(&mut self, next: i64) {
        self.finished = Some(next);
        self.moved = Timestamp::now();
        self.reset_tail();
    }

    /// Discards the result of a search of the tail, because it is no longer valid.
    fn reset_tail(&mut self) {
        self.tail = Tail::Unknown;
        self.quiet_since = Instant::now();
    }

    /// Sets the offsets that the brokers returned. `reset` is where a partition without a committed offset starts.
    fn set_offsets(&mut self, offsets: &PartitionOffsets, reset: Option<Offset>) {
        if self.finished.is_none() {
            self.finished = self.first_offset(offsets, reset);
        }
        if let Some(end) = offsets.end {
            self.set_end(end);
        }
    }

    fn first_offset(&self, offsets: &PartitionOffsets, reset: Option<Offset>) -> Option<i64> {
        let (low, end) = (offsets.low?, offsets.end?);
        let never_read = || match reset {
            Some(Offset::Beginning) => low,
            _ => end,
        };
        Some(match self.start {
            ReadFrom::At(offset) => offset,
            ReadFrom::Beginning => low,
            ReadFrom::End => end,
            ReadFrom::Committed => match offsets.committed? {
                // If the records at the offset are gone, librdkafka starts as if the group had no offset.
                Some(offset) if (low..=end).contains(&offset) => offset,
                _ => never_read(),
            },
        })
    }
}

impl ProgressTracker {
    pub fn new(metrics: Metrics, status: Status) -> ProgressTracker {
        ProgressTracker {
            partitions: BTreeMap::new(),
            asked: None,
            next_update: Instant::now(),
            metrics,
            status,
        }
    }

    /// Adds assigned partitions. A second call, with offsets, sets where they start.
    pub fn assign(&mut self, partitions: &TopicPartitionList) {
        for element in partitions.elements() {
            let name = (element.topic().to_owned(), element.partition());
            let progress = PartitionProgress::new(element.offset().into());
            self.partitions.insert(name, progress);
        }
        // An answer that is still on its way may belong to an earlier assignment.
        self.asked = None;
        self.next_update = Instant::now();
    }

    pub fn revoke(&mut self, partitions: &TopicPartitionList) {
        for element in partitions.elements() {
            let (topic, partition) = (element.topic(), element.partition());
            self.partitions.remove(&(topic.to_owned(), partition));
            self.metrics.forget_partition(topic, partition);
        }
    }

    /// Marks everything below `next` as finished.
    pub fn finish(&mut self, topic: &str, partition: i32, next: i64) {
        if let Some(progress) = self.get(&(topic.to_owned(), partition)) {
            progress.finish(next);
        }
    }

    pub fn reset_tail(&mut self, topic: &str, partition: i32) {
        if let Some(progress) = self.get(&(topic.to_owned(), partition)) {
            progress.reset_tail();
        }
    }

    pub fn count(&self) -> usize {
        self.partitions.len()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&PartitionName, &mut PartitionProgress)> {
        self.partitions.iter_mut()
    }

    pub fn get(&mut self, name: &PartitionName) -> Option<&mut PartitionProgress> {
        self.partitions.get_mut(name)
    }

    /// Sets the ends from the last fetches, except for partitions that are not being fetched.
    pub fn take_fetched_ends(
        &mut self,
        ends: Vec<(PartitionName, FetchedEnd)>,
        is_stopped: impl Fn(&PartitionName) -> bool,
    ) {
        for (name, end) in ends {
            if !is_stopped(&name)
                && let Some(progress) = self.partitions.get_mut(&name)
            {
                progress.set_fetched_end(end);
            }
        }
    }

    /// Returns whether an update is due. If so, schedules the next one.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = now >= self.next_update;
        if due {
            self.next_update = now + UPDATE_EVERY;
        }
        due
    }

    /// Requests unknown or outdated offsets from the brokers, unless an answer is still on its way.
    pub fn ask(&mut self, consumer: &Arc<GroupConsumer>, now: Instant) {
        if self.asked.is_none() {
            let (unknown, ends) = self.to_ask(now);
            self.asked = partition_offsets::ask(consumer, &unknown, &ends);
        }
    }

    /// Takes the brokers' answer, if it has arrived.
    pub fn take_answer(&mut self, reset: Option<Offset>) {
        let answer = match &self.asked {
            None => return,
            Some(asked) => asked.try_recv(),
        };
        match answer {
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Disconnected) => {}
            Ok(answer) => {
                for offsets in &answer {
                    if let Some(progress) = self.partitions.get_mut(&offsets.name) {
                        progress.set_offsets(offsets, reset);
                    }
                }
            }
        }
        self.asked = None;
    }

    /// Returns the partitions that need all offsets, and those that need only the end.
    fn to_ask(&self, now: Instant) -> (Vec<&PartitionName>, Vec<&PartitionName>) {
        let stale = |progress: &PartitionProgress| {
            let seen = progress.end_seen;
            seen.is_none_or(|(seen, _)| now.saturating_duration_since(seen) >= FRESH)
        };
        let (mut unknown, mut ends) = (Vec::new(), Vec::new());
        for (name, progress) in &self.partitions {
            if progress.finished.is_none() {
                unknown.push(name);
            } else if stale(progress) {
                ends.push(name);
            }
        }
        (unknown, ends)
    }

    /// Updates metrics and status. `waiting` returns what a partition waits for.
    pub fn publish(&self, waiting: impl Fn(&PartitionName, &PartitionProgress) -> Option<Waiting>) {
        let silent = self.status.silent_brokers().is_some();
        self.metrics.brokers_silent.set(i64::from(silent));
        let mut partitions = Partitions::new();
        for (name, progress) in &self.partitions {
            let (topic, partition) = name;
            let moved = progress.moved.as_second();
            self.metrics
                .partition_moved(topic, *partition, progress.lag(), moved);
            let status = PartitionStatus {
                lag: progress.lag(),
                finished_offset: progress.finished.unwrap_or(-1),
                end_offset: progress.end,
                waiting: waiting(name, progress),
            };
            partitions.insert(name.clone(), status);
        }
        self.status.set_partitions(partitions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(committed: Option<i64>, low: i64, end: i64) -> PartitionOffsets {
        PartitionOffsets {
            name: ("in".to_owned(), 0),
            committed: Some(committed),
            low: Some(low),
            end: Some(end),
        }
    }

    /// Returns the lag and the finished offset after the brokers' answer.
    fn after(
        start: Offset,
        offsets: &PartitionOffsets,
        reset: Option<Offset>,
    ) -> (Option<i64>, Option<i64>) {
        let mut progress = PartitionProgress::new(start.into());
        progress.set_offsets(offsets, reset);
        (progress.lag(), progress.finished)
    }

    #[test]
    fn a_partition_starts_at_its_commit_or_as_reset_says() {
        let (earliest, latest) = (Some(Offset::Beginning), Some(Offset::End));
        for (committed, reset, expected) in [
            (Some(7), earliest, (Some(3), Some(7))),
            (None, earliest, (Some(6), Some(4))),
            (None, latest, (Some(0), Some(10))),
            (Some(2), earliest, (Some(6), Some(4))),
            (Some(2), latest, (Some(0), Some(10))),
            (Some(11), earliest, (Some(6), Some(4))),
        ] {
            let offsets = offsets(committed, 4, 10);
            let found = after(Offset::Invalid, &offsets, reset);
            assert_eq!(found, expected, "{committed:?} {reset:?}");
        }
        let offsets = offsets(None, 4, 10);
        assert_eq!(after(Offset::Offset(5), &offsets, None), (Some(5), Some(5)));
        assert_eq!(after(Offset::Beginning, &offsets, None), (Some(6), Some(4)));
        assert_eq!(after(Offset::End, &offsets, None), (Some(0), Some(10)));
    }

    #[test]
    fn the_lag_is_unknown_before_the_brokers_have_answered() {
        let mut progress = PartitionProgress::new(ReadFrom::Committed);
        let silent = PartitionOffsets {
            committed: None,
            ..offsets(None, 0, 10)
        };
        progress.set_offsets(&silent, Some(Offset::Beginning));
        assert_eq!((progress.lag(), progress.end), (None, Some(10)));
    }

    #[test]
    fn offsets_finished_before_the_answer_count() {
        let mut progress = PartitionProgress::new(ReadFrom::Committed);
        progress.finish(9);
        progress.set_offsets(&offsets(Some(4), 0, 10), Some(Offset::Beginning));
        assert_eq!(progress.lag(), Some(1));
    }
}
