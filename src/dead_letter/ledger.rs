//! Records which dead letters were sent, or will be sent, to which topic.

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
        let known = self.0.entry(partition).or_default();
        for (first, last) in offsets.iter() {
            known.insert(first, last);
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

    /// Returns the first offset and the one after the last for each partition.
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
        self.offsets_mut(to).add(partition, offset);
    }

    /// Adds the letters that a marker in `partition` lists.
    pub fn mark(&mut self, partition: i32, marker: &Marker) {
        self.offsets_mut(&marker.to)
            .add_all(partition, &marker.offsets);
    }

    fn offsets_mut(&mut self, to: &str) -> &mut PartitionOffsets {
        if !self.0.contains_key(to) {
            self.0.insert(to.to_owned(), PartitionOffsets::default());
        }
        self.0.get_mut(to).expect("inserted above")
    }

    pub fn contains(&self, to: &str, partition: i32, offset: i64) -> bool {
        let offsets = self.0.get(to);
        offsets.is_some_and(|offsets| offsets.contains(partition, offset))
    }

    /// Returns the topics that a letter was recorded for.
    pub fn topics_of(&self, partition: i32, offset: i64) -> Vec<&str> {
        let entered = self.0.iter();
        let entered = entered.filter(|(_, offsets)| offsets.contains(partition, offset));
        entered.map(|(to, _)| to.as_str()).collect()
    }

    /// The offsets in this one that are not in `other`.
    pub fn without(&self, other: &Ledger) -> Ledger {
        let mut left = Ledger::default();
        for (to, offsets) in &self.0 {
            let gone = other.0.get(to);
            let offsets = gone.map_or_else(|| offsets.clone(), |gone| offsets.without(gone));
            if !offsets.0.is_empty() {
                left.0.insert(to.clone(), offsets);
            }
        }
        left
    }

    /// Returns the entries of `self` without the letters at `offsets`.
    pub fn without_offsets(&self, offsets: &PartitionOffsets) -> Ledger {
        let kept = self.0.iter().map(|(to, own)| (to, own.without(offsets)));
        let kept = kept.filter(|(_, left)| !left.0.is_empty());
        Ledger(kept.map(|(to, left)| (to.clone(), left)).collect())
    }

    /// Returns the offsets of all letters, regardless of their target.
    pub fn offsets(&self) -> PartitionOffsets {
        let mut all = PartitionOffsets::default();
        for by_partition in self.0.values() {
            for (partition, offsets) in by_partition.iter() {
                all.add_all(partition, offsets);
            }
        }
        all
    }

    /// Returns the number of letters for each target topic.
    pub fn counts(&self) -> BTreeMap<&str, u64> {
        let counts = self.0.iter();
        counts
            .map(|(to, offsets)| (to.as_str(), offsets.count()))
            .collect()
    }

    pub fn count(&self) -> u64 {
        self.counts().values().sum()
    }

    /// Iterates over the offsets for each target topic and partition.
    pub fn entries(&self) -> impl Iterator<Item = (&str, i32, &Intervals)> {
        self.0.iter().flat_map(|(to, by_partition)| {
            let entries = by_partition.iter();
            entries.map(move |(partition, offsets)| (to.as_str(), partition, offsets))
        })
    }
}
