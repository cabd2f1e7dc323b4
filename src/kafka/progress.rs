//! Where each assigned partition stands: what is finished, where it ends, and what it waits for. This is known from the
//! assignment on, whether or not a record comes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};
use jiff::Timestamp;
use rdkafka::consumer::Consumer;
use rdkafka::{Offset, TopicPartitionList};

use super::Source;
use super::decompression;
use super::edges::{self, Edges};
use crate::metrics::Metrics;
use crate::status::{PartitionStatus, Partitions, Status, Waiting};

/// How often metrics and status are brought up to date.
const EVERY: Duration = Duration::from_secs(1);
/// Fetches tell where a partition ends. The brokers are asked where none told anything new for so long.
const FRESH: Duration = Duration::from_secs(3);
/// After so long it is not known any more that nothing is left.
const OUTDATED: Duration = Duration::from_secs(30);
/// A partition without news for so long may end in offsets that hold no record.
pub(super) const QUIET: Duration = Duration::from_secs(2);

/// A topic and a partition.
pub(super) type Name = (String, i32);

pub(super) struct Progress {
    places: BTreeMap<Name, Place>,
    asked: Option<Receiver<Vec<Edges>>>,
    next: Instant,
    metrics: Metrics,
    status: Status,
}

pub(super) struct Place {
    start: Start,
    assigned: Timestamp,
    /// Everything below it is finished.
    pub finished: Option<i64>,
    /// What readers may see ends here.
    pub end: Option<i64>,
    end_seen: Option<(Instant, Timestamp)>,
    /// What the fetches told last.
    fetched: Option<FetchedEnd>,
    /// Since when an open transaction hides its last offsets.
    hidden_since: Option<Timestamp>,
    /// When a record was finished last, or none was left.
    moved: Timestamp,
    pub quiet_since: Instant,
    pub tail: Tail,
}

/// Where a partition ends, as its last fetch told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FetchedEnd {
    /// Readers see what is below.
    pub visible: i64,
    /// Behind an open transaction this is larger.
    pub all: i64,
}

/// Whether only offsets without records are left in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tail {
    Unknown,
    /// A look at the offsets from this one on is in progress.
    Sought(i64),
    /// There is a record at this offset or behind it.
    HasRecords(i64),
}

/// Where the reading of a partition begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    At(i64),
    Beginning,
    End,
    Committed,
}

impl From<Offset> for Start {
    fn from(offset: Offset) -> Start {
        match offset {
            Offset::Offset(offset) => Start::At(offset),
            Offset::Beginning => Start::Beginning,
            Offset::End => Start::End,
            _ => Start::Committed,
        }
    }
}

impl Place {
    fn new(start: Start) -> Place {
        let now = Timestamp::now();
        Place {
            start,
            assigned: now,
            finished: match start {
                Start::At(offset) => Some(offset),
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

    /// Records that are not finished, those behind an open transaction too; `None` if the brokers have not told, or told long
    /// ago that there are none.
    pub fn lag(&self) -> Option<i64> {
        self.up_to(self.end?.max(self.fetched.map_or(-1, |end| end.all)))
    }

    /// The part of the lag that readers see.
    pub fn visible_lag(&self) -> Option<i64> {
        self.up_to(self.end?)
    }

    /// Offsets at the end that an open transaction hides, if nothing else is left.
    fn hidden(&self) -> Option<(i64, Timestamp)> {
        let waits = self.visible_lag() == Some(0) && self.quiet_since.elapsed() >= QUIET;
        let hidden = self.lag().filter(|lag| waits && *lag > 0);
        hidden.zip(self.hidden_since)
    }

    fn up_to(&self, end: i64) -> Option<i64> {
        let lag = (end - self.finished?).max(0);
        let (seen, _) = self.end_seen?;
        (lag > 0 || seen.elapsed() < OUTDATED).then_some(lag)
    }

    /// Since when the brokers tell nothing.
    fn unknown_since(&self) -> Timestamp {
        self.end_seen.map_or(self.assigned, |(_, at)| at)
    }

    fn ends_at(&mut self, end: i64) {
        self.end = Some(end);
        self.end_seen = Some((Instant::now(), Timestamp::now()));
        if self.lag() == Some(0) {
            self.moved = Timestamp::now();
        }
    }

    /// What fetches told: librdkafka repeats it, whether or not it fetches. So only a change is news.
    fn fetches_tell(&mut self, end: FetchedEnd) {
        if self.fetched.replace(end) == Some(end) {
            return;
        }
        let is_hidden = end.all > end.visible;
        self.hidden_since = is_hidden.then(|| self.hidden_since.unwrap_or_else(Timestamp::now));
        self.ends_at(end.visible);
    }

    fn finishes(&mut self, next: i64) {
        self.finished = Some(next);
        self.moved = Timestamp::now();
        self.is_disturbed();
    }

    /// What was found out of its tail does not hold any more.
    fn is_disturbed(&mut self) {
        self.tail = Tail::Unknown;
        self.quiet_since = Instant::now();
    }

    /// Takes what the brokers said of its edges.
    fn learn(&mut self, edges: &Edges, reset: Option<Offset>) {
        if self.finished.is_none() {
            self.finished = self.begins_at(edges, reset);
        }
        if let Some(end) = edges.end {
            self.ends_at(end);
        }
    }

    fn begins_at(&self, edges: &Edges, reset: Option<Offset>) -> Option<i64> {
        let (low, end) = (edges.low?, edges.end?);
        let never_read = || match reset {
            Some(Offset::Beginning) => low,
            _ => end,
        };
        Some(match self.start {
            Start::At(offset) => offset,
            Start::Beginning => low,
            Start::End => end,
            Start::Committed => match edges.committed? {
                // The records at the offset may be gone: librdkafka then starts over as where nothing was read.
                Some(offset) if (low..=end).contains(&offset) => offset,
                _ => never_read(),
            },
        })
    }
}

impl Progress {
    pub fn new(metrics: Metrics, status: Status) -> Progress {
        Progress {
            places: BTreeMap::new(),
            asked: None,
            next: Instant::now(),
            metrics,
            status,
        }
    }

    /// These are ours from now on. Asked again with offsets, they begin there.
    pub fn assigned(&mut self, partitions: &TopicPartitionList) {
        for element in partitions.elements() {
            let name = (element.topic().to_owned(), element.partition());
            let place = Place::new(element.offset().into());
            self.places.insert(name, place);
        }
        // An answer that is on its way may be of an assignment before.
        self.asked = None;
        self.next = Instant::now();
    }

    pub fn revoked(&mut self, partitions: &TopicPartitionList) {
        for element in partitions.elements() {
            let (topic, partition) = (element.topic(), element.partition());
            self.places.remove(&(topic.to_owned(), partition));
            self.metrics.forget_partition(topic, partition);
        }
    }

    pub fn finished(&mut self, topic: &str, partition: i32, next: i64) {
        if let Some(place) = self.place(topic, partition) {
            place.finishes(next);
        }
    }

    pub fn disturbed(&mut self, topic: &str, partition: i32) {
        if let Some(place) = self.place(topic, partition) {
            place.is_disturbed();
        }
    }

    fn place(&mut self, topic: &str, partition: i32) -> Option<&mut Place> {
        self.places.get_mut(&(topic.to_owned(), partition))
    }

    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.places.keys()
    }

    pub fn places(&mut self) -> impl Iterator<Item = (&Name, &mut Place)> {
        self.places.iter_mut()
    }

    pub fn get(&mut self, name: &Name) -> Option<&mut Place> {
        self.places.get_mut(name)
    }

    fn take_answer(&mut self, reset: Option<Offset>) {
        let answer = match &self.asked {
            None => return,
            Some(asked) => asked.try_recv(),
        };
        match answer {
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Disconnected) => {}
            Ok(answer) => {
                for edges in &answer {
                    if let Some(place) = self.places.get_mut(&edges.name) {
                        place.learn(edges, reset);
                    }
                }
            }
        }
        self.asked = None;
    }

    /// Partitions of which nothing is known yet, and those of which only the end is to be asked.
    fn to_ask(&self, now: Instant) -> (Vec<&Name>, Vec<&Name>) {
        let stale = |place: &Place| {
            let seen = place.end_seen;
            seen.is_none_or(|(seen, _)| now.saturating_duration_since(seen) >= FRESH)
        };
        let (mut unknown, mut ends) = (Vec::new(), Vec::new());
        for (name, place) in &self.places {
            if place.finished.is_none() {
                unknown.push(name);
            } else if stale(place) {
                ends.push(name);
            }
        }
        (unknown, ends)
    }

    fn publish(&self, waiting: impl Fn(&Name, &Place) -> Option<Waiting>) {
        let mut partitions = Partitions::new();
        for (name, place) in &self.places {
            let (topic, partition) = name;
            self.metrics
                .partition_moved(topic, *partition, place.lag(), place.moved.as_second());
            let status = PartitionStatus {
                lag: place.lag(),
                finished_offset: place.finished.unwrap_or(-1),
                end_offset: place.end,
                waiting: waiting(name, place),
            };
            partitions.insert(name.clone(), status);
        }
        self.status.set_partitions(partitions);
    }
}

impl Source {
    /// Brings up to date, now and then, where the partitions stand. Never waits for the brokers.
    pub fn look(&mut self, now: Instant) {
        self.progress.take_answer(self.reset.offset());
        self.take_ends();
        self.take_tails();
        if now < self.progress.next {
            return;
        }
        self.progress.next = now + EVERY;
        if self.progress.asked.is_none() {
            let (unknown, ends) = self.progress.to_ask(now);
            self.progress.asked = edges::ask(&self.consumer, &unknown, &ends);
        }
        self.seek_tails(now);
        self.show();
        let held = i64::try_from(decompression::held()).unwrap_or(i64::MAX);
        self.metrics.memory_decompressed_bytes.set(held);
    }

    /// What the last fetches told.
    fn take_ends(&mut self) {
        let Some(ends) = self.consumer.context().take_ends() else {
            return;
        };
        for (name, end) in ends {
            if !self.is_stopped(&name)
                && let Some(place) = self.progress.places.get_mut(&name)
            {
                place.fetches_tell(end);
            }
        }
    }

    /// Whether nothing is fetched of a partition.
    pub(super) fn is_stopped(&self, name: &Name) -> bool {
        self.paused.is_some() || self.is_held_still(name)
    }

    /// Tells metrics and status where the partitions stand.
    pub(super) fn show(&self) {
        let silent = self.status.silent_brokers().is_some();
        self.metrics.brokers_silent.set(i64::from(silent));
        self.progress
            .publish(|name, place| self.waiting(name, place));
    }

    fn waiting(&self, name: &Name, place: &Place) -> Option<Waiting> {
        let (what, since) = if let Some(held) = self.held_at(name) {
            (held.what.clone(), held.since)
        } else if self.is_assigning(name) {
            let what = "the group's offsets: the last owner's transaction may be open";
            (what.to_owned(), place.assigned)
        } else if let Some(since) = self.paused {
            let what = "the scorers or the delivery of verdicts, which are behind";
            (what.to_owned(), since)
        } else if place.lag().is_none() {
            (
                "its offsets from the brokers".to_owned(),
                place.unknown_since(),
            )
        } else if let Some((offsets, since)) = place.hidden() {
            let what = format!(
                "the end of an open transaction, at offset {}, that hides {offsets} offsets",
                place.end.unwrap_or(-1)
            );
            (what, since)
        } else {
            return None;
        };
        Some(Waiting { what, since })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edges(committed: Option<i64>, low: i64, end: i64) -> Edges {
        Edges {
            name: ("in".to_owned(), 0),
            committed: Some(committed),
            low: Some(low),
            end: Some(end),
        }
    }

    /// Lag and finished offset once the brokers have told.
    fn told(start: Offset, edges: &Edges, reset: Option<Offset>) -> (Option<i64>, Option<i64>) {
        let mut place = Place::new(start.into());
        place.learn(edges, reset);
        (place.lag(), place.finished)
    }

    #[test]
    fn a_partition_begins_at_its_commit_or_as_reset_says() {
        let (earliest, latest) = (Some(Offset::Beginning), Some(Offset::End));
        for (committed, reset, expected) in [
            (Some(7), earliest, (Some(3), Some(7))),
            (None, earliest, (Some(6), Some(4))),
            (None, latest, (Some(0), Some(10))),
            (Some(2), earliest, (Some(6), Some(4))),
            (Some(2), latest, (Some(0), Some(10))),
            (Some(11), earliest, (Some(6), Some(4))),
        ] {
            let edges = edges(committed, 4, 10);
            let told = told(Offset::Invalid, &edges, reset);
            assert_eq!(told, expected, "{committed:?} {reset:?}");
        }
        let edges = edges(None, 4, 10);
        assert_eq!(told(Offset::Offset(5), &edges, None), (Some(5), Some(5)));
        assert_eq!(told(Offset::Beginning, &edges, None), (Some(6), Some(4)));
        assert_eq!(told(Offset::End, &edges, None), (Some(0), Some(10)));
    }

    #[test]
    fn no_lag_is_made_up_before_the_brokers_have_told() {
        let mut place = Place::new(Start::Committed);
        let silent = Edges {
            committed: None,
            ..edges(None, 0, 10)
        };
        place.learn(&silent, Some(Offset::Beginning));
        assert_eq!((place.lag(), place.end), (None, Some(10)));
    }

    #[test]
    fn what_is_finished_meanwhile_counts() {
        let mut place = Place::new(Start::Committed);
        place.finishes(9);
        place.learn(&edges(Some(4), 0, 10), Some(Offset::Beginning));
        assert_eq!(place.lag(), Some(1));
    }
}
