//! Reads which records a daemon flagged from its verdicts in the anomalies topic.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;

use jiff::Timestamp;
use serde::Deserialize;

use crate::cli::shared::connection::Connection;
use crate::failure::Failure;
use crate::kafka::history::{Bound, History, Range, Span};
use crate::record::Place;
use crate::shutdown::Shutdown;

/// The flagged records of a range.
#[derive(Default)]
pub struct Flagged {
    /// The place of each flagged record within the range.
    records: HashSet<Place>,
    /// The highest p-value of a flagged record, which is also the share of normal records that is flagged.
    pub rate: f64,
    /// Number of records in the anomalies topic that are not verdicts.
    pub unreadable: u64,
}

/// The fields of a verdict that are used here.
#[derive(Deserialize)]
struct Verdict {
    source: Source,
    p_value: f64,
}

#[derive(Deserialize)]
struct Source {
    topic: String,
    partition: i32,
    offset: i64,
    index: Option<u32>,
}

impl Flagged {
    /// Reads the whole topic `verdicts` and keeps the verdicts about `topic` within `spans`.
    pub fn read(
        connection: &Connection,
        verdicts: &str,
        topic: &str,
        spans: &BTreeMap<i32, Span>,
        stop: &Shutdown,
    ) -> Result<Flagged, Failure> {
        let range = Range {
            from: Bound::Beginning,
            to: Bound::End,
            now: Timestamp::now(),
            all_committed: false,
        };
        let history = History::open(&connection.kafka, verdicts, &range, stop)?;
        let mut flagged = Flagged::default();
        history.read::<Failure>(stop, |record, _| {
            if let Some(payload) = record.payload {
                flagged.take(payload, topic, spans);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(flagged)
    }

    fn take(&mut self, payload: &[u8], topic: &str, spans: &BTreeMap<i32, Span>) {
        let Ok(Verdict { source, p_value }) = serde_json::from_slice(payload) else {
            self.unreadable += 1;
            return;
        };
        let place = Place {
            partition: source.partition,
            offset: source.offset,
            index: source.index,
        };
        let span = spans
            .get(&place.partition)
            .filter(|_| source.topic == topic);
        if span.is_some_and(|span| (span.start..span.end).contains(&place.offset)) {
            self.records.insert(place);
            // At most one half, because no threshold flags more normal records.
            self.rate = self.rate.max(p_value.clamp(0.0, 0.5));
        }
    }

    pub fn contains(&self, place: Place) -> bool {
        self.records.contains(&place)
    }
}

/// Returns the indices of the flagged records to leave out. The lowest-scoring ones are kept, as many as the threshold flags
/// among normal records.
pub fn left_out(scores: &[f32], flagged: &[usize], rate: f64) -> Vec<usize> {
    let normal = scores.len() - flagged.len();
    let false_alarms = (rate / (1.0 - rate) * normal as f64).round() as usize;
    let mut ascending = flagged.to_vec();
    ascending.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    ascending.split_off(false_alarms.min(ascending.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_stay_as_there_are_false_alarms() {
        let scores: Vec<f32> = (0..1100_u16).map(f32::from).collect();
        let flagged: Vec<usize> = (1000..1100).collect();
        assert_eq!(
            left_out(&scores, &flagged, 0.01),
            (1010..1100).collect::<Vec<_>>()
        );
        assert_eq!(left_out(&scores, &flagged, 0.0), flagged);
        assert!(left_out(&scores, &flagged, 0.5).is_empty());
    }

    #[test]
    fn only_verdicts_about_the_range_count() {
        let span = Span {
            oldest: 0,
            start: 10,
            end: 20,
        };
        let spans = BTreeMap::from([(0, span)]);
        let mut flagged = Flagged::default();
        for payload in [
            r#"{"source": {"topic": "t", "partition": 0, "offset": 12}, "p_value": 0.0008}"#,
            r#"{"source": {"topic": "t", "partition": 0, "offset": 20}, "p_value": 0.3}"#,
            r#"{"source": {"topic": "t", "partition": 1, "offset": 12}, "p_value": 0.3}"#,
            r#"{"source": {"topic": "u", "partition": 0, "offset": 12}, "p_value": 0.3}"#,
            "no verdict",
        ] {
            flagged.take(payload.as_bytes(), "t", &spans);
        }
        let at = |offset| Place {
            partition: 0,
            offset,
            index: None,
        };
        assert!(flagged.contains(at(12)) && !flagged.contains(at(20)));
        assert_eq!((flagged.records.len(), flagged.unreadable), (1, 1));
        assert_eq!(flagged.rate, 0.0008);
    }
}
