//! The records of a batch that lack something, and what is filled in.

use super::Batch;
use crate::imputation::{Imputation, Imputed};

/// A record that lacks a value which can be filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Incomplete {
    /// The index of a record with a row. It is scored although it lacks something.
    Record(usize),
    /// The index of a dead letter. It lacks a feature that the bundle requires.
    DeadLetter(usize),
}

/// What was filled in, or why nothing was.
#[derive(Debug, Clone, PartialEq)]
pub struct Restored {
    pub of: Incomplete,
    /// The seed of the record's draws.
    pub seed: u64,
    pub outcome: Result<Imputation, String>,
}

impl Batch {
    /// Notes that the record which was kept last lacks something.
    pub fn last_is_incomplete(&mut self) {
        let index = self.records.len() - 1;
        self.incomplete.push(Incomplete::Record(index));
        self.width = self.rows.len() / self.records.len();
    }

    /// Notes that the last dead letter only lacks something. `row`, [features], has what is there.
    pub fn last_dead_letter_is_incomplete(&mut self, row: &[f32]) {
        let index = self.dead_letters.len() - 1;
        self.incomplete.push(Incomplete::DeadLetter(index));
        self.loose_rows.extend_from_slice(row);
        self.width = row.len();
    }

    /// Returns the records that lack something, each with its row, in the order in which they were consumed.
    pub fn incomplete(&self) -> impl Iterator<Item = (Incomplete, &[f32])> {
        let mut loose = self.loose_rows.chunks_exact(self.width.max(1));
        self.incomplete.iter().map(move |of| match of {
            Incomplete::Record(i) => (*of, self.row(*i)),
            Incomplete::DeadLetter(_) => (*of, loose.next().unwrap_or_default()),
        })
    }

    /// Returns the maximum number of bytes of what is filled in.
    pub(super) fn imputation_bytes(&self) -> usize {
        let each = size_of::<Restored>() + self.width * size_of::<(usize, Imputed)>();
        self.incomplete.len() * each + size_of_val(&self.loose_rows[..])
    }

    /// Returns the number of records that lack something.
    pub fn incomplete_count(&self) -> usize {
        self.incomplete.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::batch::TopicPartition;
    use crate::decode::{Reason, RowError};
    use crate::record::Record;

    #[test]
    fn incomplete_records_come_with_their_rows_in_the_order_of_the_topic() {
        let from = TopicPartition {
            topic: 0,
            partition: 0,
        };
        let record = |offset| Record {
            topic: "in",
            partition: 0,
            offset,
            index: None,
            timestamp_ms: None,
            key: None,
            headers: Vec::new(),
            payload: Some(b"{}"),
        };
        let now = Instant::now();
        let mut batch = Batch::default();
        let keep = |batch: &mut Batch, offset, row: [f32; 2]| {
            batch.rows.extend(row);
            batch.keep(&record(offset), from, None, now);
        };
        let refuse = |batch: &mut Batch, offset| {
            let error = RowError {
                reason: Reason::Missing,
                detail: "a".into(),
            };
            batch.push_dead_letter(&record(offset), from, error, now);
        };
        keep(&mut batch, 0, [1.0, 2.0]);
        refuse(&mut batch, 1);
        batch.last_dead_letter_is_incomplete(&[3.0, 4.0]);
        keep(&mut batch, 2, [5.0, 6.0]);
        batch.last_is_incomplete();
        refuse(&mut batch, 3);
        refuse(&mut batch, 4);
        let before = batch.weight();
        batch.last_dead_letter_is_incomplete(&[7.0, 8.0]);
        assert!(batch.weight() > before);
        let found: Vec<_> = batch.incomplete().collect();
        let expected: [(Incomplete, &[f32]); 3] = [
            (Incomplete::DeadLetter(0), &[3.0, 4.0]),
            (Incomplete::Record(1), &[5.0, 6.0]),
            (Incomplete::DeadLetter(2), &[7.0, 8.0]),
        ];
        assert_eq!(found, expected);
        batch.clear();
        assert_eq!((batch.incomplete_count(), batch.weight()), (0, 0));
    }
}
