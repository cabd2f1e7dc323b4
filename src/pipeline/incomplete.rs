//! Finds the records that lack something while they are consumed, and bounds how many of them are in flight.

use std::time::Duration;

use crate::batch::{Batch, TopicPartition};
use crate::bundle::Feature;
use crate::decode::{Decoder, Reason, RecordFormat, RowError};
use crate::imputation::{is_incomplete, optional};
use crate::record::Record;

/// The share of the time for a drain that filling in the records in flight may take. The rest is for scoring and delivery.
const SHARE_OF_DRAIN: f64 = 0.25;

/// Notes in each batch which of its records lack something.
pub struct Incompletes {
    features: Vec<Feature>,
    /// Reads records of which any feature may be missing.
    decoder: Decoder,
    row: Vec<f32>,
    /// The maximum number of records in flight that lack something. Others wait in Kafka.
    pub most: usize,
    /// The number of them with which a batch leaves, so that every worker has its part.
    pub most_in_batch: usize,
}

impl Incompletes {
    /// `each` is how long one record takes on one of the `workers`.
    pub fn new(
        features: &[Feature],
        input: RecordFormat,
        each: Duration,
        workers: usize,
        drain_timeout: Duration,
    ) -> Incompletes {
        let most = most_in_flight(each, workers, drain_timeout);
        Incompletes {
            features: features.to_vec(),
            decoder: Decoder::new(&optional(features), input, None),
            row: Vec::new(),
            most,
            most_in_batch: (most / (2 * workers)).max(1),
        }
    }

    /// Looks at the record that was kept last.
    pub fn kept(&self, batch: &mut Batch, record: &Record<'_>) {
        batch.keep_headers(record);
        let width = self.features.len();
        let row = &batch.rows[batch.rows.len() - width..];
        if is_incomplete(&self.features, row) {
            batch.last_is_incomplete();
        }
    }

    /// Looks at the record that became the last dead letter because of `reason`.
    fn refused(&mut self, batch: &mut Batch, record: &Record<'_>, reason: Reason) {
        if reason != Reason::Missing {
            return;
        }
        self.row.clear();
        let payload = record.payload.unwrap_or_default();
        let decoded = self.decoder.decode(payload, record.key, &mut self.row);
        if decoded.is_ok() && is_incomplete(&self.features, &self.row) {
            batch.last_dead_letter_is_incomplete(&self.row);
        }
    }
}

/// Adds a dead letter for a record that could not be decoded, and notes whether it only lacks something.
pub fn push_dead_letter(
    incompletes: Option<&mut Incompletes>,
    batch: &mut Batch,
    record: &Record<'_>,
    from: TopicPartition,
    error: RowError,
    now: std::time::Instant,
) {
    let reason = error.reason;
    batch.push_dead_letter(record, from, error, now);
    if let Some(incompletes) = incompletes {
        incompletes.refused(batch, record, reason);
    }
}

/// Returns the number of records that `workers` fill in within their share of the time for a drain, at least one for each.
fn most_in_flight(each: Duration, workers: usize, drain_timeout: Duration) -> usize {
    let seconds = drain_timeout.as_secs_f64() * SHARE_OF_DRAIN;
    let per_worker = seconds / each.as_secs_f64().max(1e-6);
    // A cast from a float saturates.
    (per_worker as usize).max(1).saturating_mul(workers.max(1))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;
    use crate::batch::Incomplete;

    #[test]
    fn what_is_in_flight_is_filled_in_within_a_quarter_of_a_drain() {
        let drain = Duration::from_secs(20);
        let most = |each| most_in_flight(each, 2, drain);
        assert_eq!(most(Duration::from_millis(10)), 1000);
        assert_eq!(most(Duration::from_secs(60)), 2);
        assert!(most(Duration::ZERO) >= 1_000_000);
    }

    #[test]
    fn a_record_that_only_lacks_something_is_found() {
        let features: Vec<Feature> = serde_json::from_value(json!([
            {"name": "a", "path": "a", "type": "number"},
            {"name": "b", "path": "b", "type": "number", "missing": "impute"},
        ]))
        .unwrap();
        let (each, drain) = (Duration::from_secs(1), Duration::from_secs(4));
        let mut incompletes = Incompletes::new(&features, RecordFormat::Json, each, 1, drain);
        let mut decoder = Decoder::new(&features, RecordFormat::Json, None);
        let from = TopicPartition {
            topic: 0,
            partition: 0,
        };
        let (mut batch, now) = (Batch::default(), Instant::now());
        for (offset, payload) in (0..).zip([
            r#"{"a": 1, "b": 2}"#,
            r#"{"a": 1}"#,
            r#"{"b": 2}"#,
            "{}",
            r#"{"a": "x"}"#,
        ]) {
            let record = Record {
                topic: "in",
                partition: 0,
                offset,
                index: None,
                timestamp_ms: None,
                key: None,
                headers: vec![("h", None)],
                payload: Some(payload.as_bytes()),
            };
            match decoder.decode(payload.as_bytes(), None, &mut batch.rows) {
                Ok(_) => {
                    batch.keep(&record, from, None, now);
                    incompletes.kept(&mut batch, &record);
                }
                Err(crate::decode::DecodeError::Row(error)) => {
                    let incompletes = Some(&mut incompletes);
                    push_dead_letter(incompletes, &mut batch, &record, from, error, now);
                }
                Err(other) => panic!("{other}"),
            }
        }
        let found: Vec<_> = batch.incomplete().map(|(of, _)| of).collect();
        // A record without any feature is not known to be one of these records, so it stays a dead letter.
        let expected = [Incomplete::Record(1), Incomplete::DeadLetter(0)];
        assert_eq!(found, expected);
        assert_eq!(batch.record(0).headers.len(), 1);
    }
}
