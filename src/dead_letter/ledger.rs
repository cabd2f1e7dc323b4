//! Which dead letters were sent, or are to be sent, to which topic.

use std::collections::BTreeMap;

use super::Intervals;
use super::marker::Marker;

/// Offsets by partition.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PartitionOffsets(BTreeMap<i32, Intervals>);

impl PartitionOffsets {
    pub fn add(&mut self, partition: i32, offset: i64) {
        self.0.entry(partition).or_default().insert(offset, offset);
    }

    pub fn add_all(&mut self, partition: i32, offsets: &Intervals) {
        let own = self.0.entry(partition).or_default();
        for (first, last) in offsets.iter() {
            own.insert(first, last);
        }
    }

    pub fn contains(&self, partition: i32, offset: i64) -> bool {
        let offsets = self.0.get(&partition);
        offsets.is_some_and(|offsets| offsets.contains(offset))
    }

    /// The offsets in this one that are not in `other`.
    pub fn without(&self, other: &PartitionOffsets) -> PartitionOffsets {
        let mut left = PartitionOffsets::default();
        for (&partition, offsets) in &self.0 {
            let gone = other.0.get(&partition);
            let offsets = gone.map_or_else(|| offsets.clone(), |gone| offsets.without(gone));
            if !offsets.is_empty() {
                left.0.insert(partition, offsets);
            }
        }
        left
    }

    pub fn iter(&self) -> impl Iterator<Item = (i32, &Intervals)> {
        self.0
            .iter()
            .map(|(&partition, offsets)| (partition, offsets))
    }

    /// For each partition, the first offset and the one after the last.
    pub fn ends(&self) -> BTreeMap<i32, (i64, i64)> {
        let ends = self.iter().filter_map(|(partition, offsets)| {
            let (first, last) = offsets.ends()?;
            Some((partition, (first, last + 1)))
        });
        ends.collect()
    }

    pub fn count(&self) -> u64 {
        self.0.values().map(Intervals::count).sum()
    }
}

/// Partitions and offsets of dead letters, by the topic that they are sent to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ledger(BTreeMap<String, PartitionOffsets>);

impl Ledger {
    pub fn add(&mut self, to: &str, partition: i32, offset: i64) {
        self.places_mut(to).add(partition, offset);
    }

    /// Adds the letters of a marker in `partition`.
    pub fn mark(&mut self, partition: i32, marker: &Marker) {
        self.places_mut(&marker.to)
            .add_all(partition, &marker.offsets);
    }

    fn places_mut(&mut self, to: &str) -> &mut PartitionOffsets {
        if !self.0.contains_key(to) {
            self.0.insert(to.to_owned(), PartitionOffsets::default());
        }
        self.0.get_mut(to).expect("inserted above")
    }

    pub fn contains(&self, to: &str, partition: i32, offset: i64) -> bool {
        let places = self.0.get(to);
        places.is_some_and(|places| places.contains(partition, offset))
    }

    /// The topics that a letter is recorded for.
    pub fn topics_of(&self, partition: i32, offset: i64) -> Vec<&str> {
        let entered = self.0.iter();
        let entered = entered.filter(|(_, places)| places.contains(partition, offset));
        entered.map(|(to, _)| to.as_str()).collect()
    }

    /// The offsets in this one that are not in `other`.
    pub fn without(&self, other: &Ledger) -> Ledger {
        let mut left = Ledger::default();
        for (to, places) in &self.0 {
            let gone = other.0.get(to);
            let places = gone.map_or_else(|| places.clone(), |gone| places.without(gone));
            if !places.0.is_empty() {
                left.0.insert(to.clone(), places);
            }
        }
        left
    }

    /// The letters of this one that are not at `places`.
    pub fn without_places(&self, places: &PartitionOffsets) -> Ledger {
        let kept = self.0.iter().map(|(to, own)| (to, own.without(places)));
        let kept = kept.filter(|(_, own)| !own.0.is_empty());
        Ledger(kept.map(|(to, own)| (to.clone(), own)).collect())
    }

    /// Every letter, whatever its target.
    pub fn places(&self) -> PartitionOffsets {
        let mut all = PartitionOffsets::default();
        for places in self.0.values() {
            for (partition, offsets) in places.iter() {
                all.add_all(partition, offsets);
            }
        }
        all
    }

    /// Letters by target.
    pub fn counts(&self) -> BTreeMap<&str, u64> {
        let counts = self.0.iter();
        counts
            .map(|(to, places)| (to.as_str(), places.count()))
            .collect()
    }

    pub fn count(&self) -> u64 {
        self.counts().values().sum()
    }

    /// The offsets for each target and partition.
    pub fn entries(&self) -> impl Iterator<Item = (&str, i32, &Intervals)> {
        self.0.iter().flat_map(|(to, places)| {
            let entries = places.iter();
            entries.map(move |(partition, offsets)| (to.as_str(), partition, offsets))
        })
    }
}
