//! Finds the records that lack something while they are consumed.

use crate::batch::{Batch, TopicPartition};
use crate::bundle::Feature;
use crate::decode::{Decoder, Reason, RecordFormat, RowError};
use crate::imputation::{is_incomplete, optional};
use crate::record::Record;

/// Notes in each batch which of its records lack something.
pub struct Incompletes {
    features: Vec<Feature>,
    /// Reads records of which any feature may be missing.
    decoder: Decoder,
    row: Vec<f32>,
}

impl Incompletes {
    pub fn new(features: &[Feature], input: RecordFormat) -> Incompletes {
        Incompletes {
            features: features.to_vec(),
            decoder: Decoder::new(&optional(features), input, None),
            row: Vec::new(),
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;
    use crate::batch::Incomplete;

    #[test]
    fn a_record_that_only_lacks_something_is_found() {
        let features: Vec<Feature> = serde_json::from_value(json!([
            {"name": "a", "path": "a", "type": "number"},
            {"name": "b", "path": "b", "type": "number", "missing": "impute"},
        ]))
        .unwrap();
        let mut incompletes = Incompletes::new(&features, RecordFormat::Json);
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
