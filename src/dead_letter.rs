//! Dead letters as they lie in their topic, the markers of those that were replayed or discarded, and what is left to replay.
//!
//! A marker is a record in the partition of its letters: no key, the header `residuald.replayed`, and the value
//! `{"replayed": {"to": "payments", "offsets": [[3, 17], [19, 19]]}}`, first and last offset of each run.
//! That of discarded letters has the header `residuald.discarded` and the value `{"discarded": {"offsets": [[3, 17]]}}`.

mod intervals;

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use intervals::Intervals;

use crate::message::{ERRORS_PREFIX, OMITTED};
use crate::record::Record;

const REPLAYED: &str = "residuald.replayed";
const DISCARDED: &str = "residuald.discarded";
/// A marker of discarded letters has so many runs of offsets at most, which is half a megabyte.
const MOST_RUNS: usize = 10_000;

/// What a record of a dead letter topic is.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry<'m> {
    Letter(Letter<'m>),
    Marker(Marker),
    /// Letters of the same partition that are not to be replayed.
    Discarded(Intervals),
}

/// A record that could not be scored, by what its headers say of it; other producers than residuald may say less.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Letter<'m> {
    pub topic: Option<Cow<'m, str>>,
    pub partition: Option<i32>,
    pub offset: Option<i64>,
    /// The last part of the exception's name: `missing` of `residuald.decode.missing`.
    pub reason: Option<Cow<'m, str>>,
    pub message: Option<Cow<'m, str>>,
    /// Its value, headers or key were left out. A time that the topic does not take is not missed: a replay gives it a new one.
    pub omitted: bool,
}

/// Letters of the marker's own partition that were sent to a topic.
#[derive(Debug, Clone, PartialEq)]
pub struct Marker {
    pub to: String,
    pub offsets: Intervals,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "the marker of replayed or discarded letters at {partition}:{offset} cannot be read: {problem}. What it stands for is unknown; \
     begin after it, with --from"
)]
pub struct BadMarker {
    partition: i32,
    offset: i64,
    problem: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Body<'a> {
    Replayed {
        to: Cow<'a, str>,
        offsets: Vec<[i64; 2]>,
    },
    Discarded {
        offsets: Vec<[i64; 2]>,
    },
}

impl<'m> Entry<'m> {
    /// # Errors
    /// [`BadMarker`]: a marker that nobody understands must not be taken for nothing.
    pub fn of(record: &Record<'m>) -> Result<Entry<'m>, BadMarker> {
        let errors = |(name, _): &(&str, _)| name.starts_with(ERRORS_PREFIX);
        // A source record may have any header; as a letter it has those of its error, too.
        let marks = [REPLAYED, DISCARDED];
        let is_marker = marks.iter().any(|mark| header(record, mark).is_some())
            && record.key.is_none()
            && !record.headers.iter().any(errors);
        if is_marker {
            return Entry::marker(record);
        }
        let said = |name: &str| {
            let value = header(record, &format!("{ERRORS_PREFIX}{name}"))??;
            Some(String::from_utf8_lossy(value))
        };
        let number = |name| said(name)?.parse::<i64>().ok();
        Ok(Entry::Letter(Letter {
            topic: said("topic").filter(|topic| !topic.is_empty()),
            partition: number("partition").and_then(|p| p.try_into().ok()),
            offset: number("offset"),
            reason: said("exception.class.name").map(last_part),
            message: said("exception.message"),
            omitted: header(record, OMITTED).is_some_and(|note| lacks_more_than_its_time(note)),
        }))
    }

    fn marker(record: &Record<'_>) -> Result<Entry<'m>, BadMarker> {
        let bad = |problem: String| BadMarker {
            partition: record.partition,
            offset: record.offset,
            problem,
        };
        let body: Body<'_> = serde_json::from_slice(record.payload.unwrap_or_default())
            .map_err(|e| bad(e.to_string()))?;
        let intervals = |runs: Vec<[i64; 2]>| {
            let mut offsets = Intervals::default();
            for [first, last] in runs {
                // It can only tell of letters that were there before it.
                if first > last || first < 0 || last >= record.offset {
                    return Err(bad(format!(
                        "[{first}, {last}] is no run of earlier offsets"
                    )));
                }
                offsets.insert(first, last);
            }
            Ok(offsets)
        };
        Ok(match body {
            Body::Discarded { offsets } => Entry::Discarded(intervals(offsets)?),
            Body::Replayed { to, offsets } => Entry::Marker(Marker {
                to: to.into_owned(),
                offsets: intervals(offsets)?,
            }),
        })
    }
}

/// The last one of a name: who fails last has the last word.
fn header<'m>(record: &Record<'m>, name: &str) -> Option<Option<&'m [u8]>> {
    let mut named = record.headers.iter().rev();
    named.find(|(n, _)| *n == name).map(|(_, value)| *value)
}

fn last_part(name: Cow<'_, str>) -> Cow<'_, str> {
    match name {
        Cow::Borrowed(name) => Cow::Borrowed(name.rsplit('.').next().unwrap_or(name)),
        Cow::Owned(name) => Cow::Owned(name.rsplit('.').next().unwrap_or(&name).to_owned()),
    }
}

impl Marker {
    /// The record that is written into the letters' partition.
    pub fn revived(&self, topic: &str, partition: i32) -> Revived {
        let body = Body::Replayed {
            to: Cow::Borrowed(&self.to),
            offsets: self.offsets.iter().map(|(a, b)| [a, b]).collect(),
        };
        let header = (REPLAYED.to_owned(), Some(self.to.clone().into_bytes()));
        marker_record(topic, partition, header, &body)
    }
}

/// The markers of letters of one partition that are discarded.
pub fn discarded(topic: &str, partition: i32, offsets: &Intervals) -> Vec<Revived> {
    let runs: Vec<[i64; 2]> = offsets.iter().map(|(a, b)| [a, b]).collect();
    let markers = runs.chunks(MOST_RUNS).map(|runs| {
        let offsets = runs.to_vec();
        let header = (DISCARDED.to_owned(), None);
        marker_record(topic, partition, header, &Body::Discarded { offsets })
    });
    markers.collect()
}

fn marker_record(
    topic: &str,
    partition: i32,
    header: (String, Option<Vec<u8>>),
    body: &Body<'_>,
) -> Revived {
    Revived {
        topic: topic.to_owned(),
        partition: Some(partition),
        key: None,
        payload: Some(serde_json::to_vec(body).expect("strings and numbers always serialise")),
        headers: vec![header],
        timestamp_ms: None,
    }
}

/// A record on its way to where it belongs.
#[derive(Debug, Clone, PartialEq)]
pub struct Revived {
    pub topic: String,
    /// `None` leaves it to the partitioner.
    pub partition: Option<i32>,
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    pub timestamp_ms: Option<i64>,
}

impl Revived {
    /// The record of a letter as it was before it failed. Without a key it goes back to its own partition, if it goes to
    /// its own topic and that still has it.
    pub fn of(record: &Record<'_>, letter: &Letter<'_>, to: &str, partitions: usize) -> Revived {
        let has = |partition: &i32| (0..partitions as i32).contains(partition);
        let home = letter.topic.as_deref() == Some(to) && record.key.is_none();
        let kept = record.headers.iter();
        let kept = kept.filter(|(name, _)| !name.starts_with(ERRORS_PREFIX));
        Revived {
            topic: to.to_owned(),
            partition: letter.partition.filter(|_| home).filter(has),
            key: record.key.map(<[u8]>::to_vec),
            payload: record.payload.map(<[u8]>::to_vec),
            headers: kept
                .map(|(name, value)| ((*name).to_owned(), value.map(<[u8]>::to_vec)))
                .collect(),
            timestamp_ms: record.timestamp_ms,
        }
    }

    /// Roughly what it takes in memory and on the wire.
    pub fn bytes(&self) -> usize {
        let size = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let headers = self.headers.iter().map(|(n, v)| n.len() + size(v));
        size(&self.key) + size(&self.payload) + headers.sum::<usize>()
    }
}

/// Why a letter cannot be sent anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// Its value, headers or key were left out, because it was too large: it cannot come back as it was.
    ValueOmitted,
    /// Its headers name no topic to go back to.
    NoSourceTopic,
    /// It would go to where it lies.
    SourceIsDeadLetterTopic,
}

impl Obstacle {
    pub fn as_str(self) -> &'static str {
        match self {
            Obstacle::ValueOmitted => "value_omitted",
            Obstacle::NoSourceTopic => "no_source_topic",
            Obstacle::SourceIsDeadLetterTopic => "source_is_dead_letter_topic",
        }
    }
}

/// Whether a note of what was left out (`value, headers: why; timestamp: why`) names anything but the time.
fn lacks_more_than_its_time(note: Option<&[u8]>) -> bool {
    let note = String::from_utf8_lossy(note.unwrap_or_default());
    note.split("; ").any(|part| {
        let names = part.split_once(": ").map(|(names, _)| names);
        names != Some("timestamp")
    })
}

/// Which letters a person means, and where they are to go.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Empty for all.
    pub reasons: Vec<String>,
    /// For all letters; otherwise each goes back to the topic that it came from.
    pub to_topic: Option<String>,
}

impl Filter {
    pub fn matches(&self, letter: &Letter<'_>) -> bool {
        let reason = letter.reason.as_deref();
        self.reasons.is_empty() || self.reasons.iter().any(|r| Some(r.as_str()) == reason)
    }

    /// Where a letter of the topic `lies_in` goes.
    ///
    /// # Errors
    /// Why it cannot go anywhere.
    pub fn target<'l>(
        &'l self,
        letter: &'l Letter<'_>,
        lies_in: &str,
    ) -> Result<&'l str, Obstacle> {
        if letter.omitted {
            return Err(Obstacle::ValueOmitted);
        }
        let asked = self.to_topic.as_deref();
        match asked.or(letter.topic.as_deref()) {
            None => Err(Obstacle::NoSourceTopic),
            Some(to) if to == lies_in => Err(Obstacle::SourceIsDeadLetterTopic),
            Some(to) => Ok(to),
        }
    }
}

/// Offsets by partition.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Places(BTreeMap<i32, Intervals>);

impl Places {
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

    /// What is in this one and not in `other`.
    pub fn without(&self, other: &Places) -> Places {
        let mut left = Places::default();
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

    /// For each partition the first offset and the one after the last.
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

/// Where letters lie, by the topic that they went to or are to go to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ledger(BTreeMap<String, Places>);

impl Ledger {
    pub fn add(&mut self, to: &str, partition: i32, offset: i64) {
        self.places_mut(to).add(partition, offset);
    }

    /// Takes over the letters of a marker in `partition`.
    pub fn mark(&mut self, partition: i32, marker: &Marker) {
        self.places_mut(&marker.to)
            .add_all(partition, &marker.offsets);
    }

    fn places_mut(&mut self, to: &str) -> &mut Places {
        if !self.0.contains_key(to) {
            self.0.insert(to.to_owned(), Places::default());
        }
        self.0.get_mut(to).expect("inserted above")
    }

    pub fn contains(&self, to: &str, partition: i32, offset: i64) -> bool {
        let places = self.0.get(to);
        places.is_some_and(|places| places.contains(partition, offset))
    }

    /// The topics that a letter is entered for.
    pub fn topics_of(&self, partition: i32, offset: i64) -> Vec<&str> {
        let entered = self.0.iter();
        let entered = entered.filter(|(_, places)| places.contains(partition, offset));
        entered.map(|(to, _)| to.as_str()).collect()
    }

    /// What is in this one and not in `other`.
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

    /// The letters of this one that are at none of `places`.
    pub fn without_places(&self, places: &Places) -> Ledger {
        let kept = self.0.iter().map(|(to, own)| (to, own.without(places)));
        let kept = kept.filter(|(_, own)| !own.0.is_empty());
        Ledger(kept.map(|(to, own)| (to.clone(), own)).collect())
    }

    /// Every letter, whatever its target.
    pub fn places(&self) -> Places {
        let mut all = Places::default();
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

    /// For each target and partition what is entered.
    pub fn entries(&self) -> impl Iterator<Item = (&str, i32, &Intervals)> {
        self.0.iter().flat_map(|(to, places)| {
            let entries = places.iter();
            entries.map(move |(partition, offsets)| (to.as_str(), partition, offsets))
        })
    }
}

#[cfg(test)]
mod tests;
