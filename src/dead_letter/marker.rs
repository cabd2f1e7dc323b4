//! The records of a dead letter topic: letters, and markers for letters that were replayed or discarded.
//!
//! A marker is a record in the same partition as its letters. It has no key, the header `residuald.replayed`, and the value
//! `{"replayed": {"to": "payments", "offsets": [[3, 17], [19, 19]]}}` with the first and last offset of each range. A marker of
//! discarded letters has the header `residuald.discarded` and the value `{"discarded": {"offsets": [[3, 17]]}}`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::Intervals;
use super::headers::{ERRORS_PREFIX, FailureHeaders, last_header};
use super::replay::ReplayRecord;
use crate::record::{OwnedHeader, Record};

const REPLAYED: &str = "residuald.replayed";
const DISCARDED: &str = "residuald.discarded";
/// Maximum number of offset ranges in one marker of discarded letters, about half a megabyte.
const MOST_RUNS: usize = 10_000;

/// A record of a dead letter topic.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry<'m> {
    Letter(FailureHeaders<'m>),
    Marker(Marker),
    /// Letters of the same partition that must not be replayed.
    Discarded(Intervals),
}

/// Letters of the marker's own partition that were sent to a topic.
#[derive(Debug, Clone, PartialEq)]
pub struct Marker {
    pub to: String,
    pub offsets: Intervals,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "the marker of replayed or discarded letters at {partition}:{offset} cannot be read: {problem}. The letters that it covers are unknown: \
     use --from to begin after it"
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
    /// Parses a record of a dead letter topic.
    ///
    /// # Errors
    /// [`BadMarker`]: an unreadable marker must not be ignored.
    pub fn of(record: &Record<'m>) -> Result<Entry<'m>, BadMarker> {
        let errors = |(name, _): &(&str, _)| name.starts_with(ERRORS_PREFIX);
        // A source record may have any header, but a letter also has the headers of its failure.
        let marks = [REPLAYED, DISCARDED];
        let is_marker = marks.iter().any(|mark| last_header(record, mark).is_some())
            && record.key.is_none()
            && !record.headers.iter().any(errors);
        if is_marker {
            return Entry::marker(record);
        }
        Ok(Entry::Letter(FailureHeaders::of(record)))
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
                // A marker can only refer to earlier letters.
                if first > last || first < 0 || last >= record.offset {
                    return Err(bad(format!(
                        "[{first}, {last}] is not a range of earlier offsets"
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

impl Marker {
    /// Returns the marker as a record for the letters' partition.
    pub fn replay_record(&self, topic: &str, partition: i32) -> ReplayRecord {
        let body = Body::Replayed {
            to: Cow::Borrowed(&self.to),
            offsets: self.offsets.iter().map(|(a, b)| [a, b]).collect(),
        };
        let header = (REPLAYED.to_owned(), Some(self.to.clone().into_bytes()));
        marker_record(topic, partition, header, &body)
    }
}

/// Returns the markers for discarded letters of one partition.
pub fn discarded(topic: &str, partition: i32, offsets: &Intervals) -> Vec<ReplayRecord> {
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
    header: OwnedHeader,
    body: &Body<'_>,
) -> ReplayRecord {
    ReplayRecord {
        topic: topic.to_owned(),
        partition: Some(partition),
        key: None,
        payload: Some(serde_json::to_vec(body).expect("strings and numbers always serialise")),
        headers: vec![header],
        timestamp_ms: None,
    }
}
