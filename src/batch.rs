//! A batch holds records and the offsets they came from. The records of a batch are scored, published and finished
//! together.
//!
//! A batch owns its buffers and is reused, so that copying a record into it allocates nothing.

mod incomplete;
mod scores;

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::bundle::SegmentId;
use crate::dead_letter::DeadLetter;
use crate::decode::{RowError, Skip};
use crate::image::{Finding, Load, Lost};
use crate::record::{Header, Origin, OwnedHeader, Place, Record};
pub use incomplete::{Incomplete, Restored};
pub use scores::Scores;

/// The size in bytes at which a batch is dispatched, however few records it has. The limit keeps large messages from
/// filling the memory.
const MAX_BYTES: usize = 1 << 20;

/// Headers that are copied from a record to its verdict (W3C Trace Context).
const TRACE_HEADERS: [&str; 2] = ["traceparent", "tracestate"];

/// A topic and a partition. The topic is an index into the list of topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    pub topic: usize,
    pub partition: i32,
}

/// A batch of records, in the order in which they were consumed. The number of records is bounded.
#[derive(Debug, Default)]
pub struct Batch {
    /// The sequence number of the batch. Numbers are consecutive, and verdicts are published in their order.
    pub sequence: u64,
    /// The rows, [records, features], row-major.
    pub rows: Vec<f32>,
    records: Vec<StoredRanges>,
    bytes: Vec<u8>,
    /// The bytes that its images will take. Rows are created and dropped one by one.
    image_bytes: usize,
    /// The runs that a model which works on whole images will take for its images.
    image_runs: usize,
    /// The bytes of dead letters and of kept headers.
    loose_bytes: usize,
    pub dead_letters: Vec<DeadLetter>,
    /// The numbers of records that have nothing to score, by [`Skip`].
    pub skipped: [usize; Skip::ALL.len()],
    /// The number of records in oversized batches that have no dead letter of their own.
    pub oversized: usize,
    /// For each partition, the offset to resume from once the batch is delivered.
    pub offsets: Vec<(TopicPartition, i64)>,
    opened: Option<Instant>,
    /// The weight of the batch when it left the intake.
    pub charged: usize,
    /// When the batch left the intake.
    pub dispatched: Option<Instant>,
    /// When the scoring of the batch began and ended.
    pub scoring: Option<(Instant, Instant)>,
    /// The screen's decisions, [records]. Empty without a screen: all records are scored.
    pub screened: Vec<Screened>,
    /// The scored records on which the model failed, with the reasons. A record is given by its index among the scored
    /// records.
    pub refused: Vec<(usize, String)>,
    /// The scorer's outputs, one row for each scored record. For images, only the scores.
    pub scores: Scores,
    /// The outcomes of images, [records].
    pub image_outcomes: Vec<ImageOutcome>,
    /// What is published of images, [records], if images are restored.
    pub restored_images: Vec<Option<Box<RestoredImage>>>,
    /// The records that lack something, in the order in which they were consumed. Empty if records are not restored.
    incomplete: Vec<Incomplete>,
    /// The rows of those that are dead letters, [dead letters in `incomplete`, features].
    loose_rows: Vec<f32>,
    /// The number of features, if a record lacks something.
    width: usize,
    /// What was filled in, [incomplete].
    pub restored: Vec<Restored>,
}

/// The screen's decision on a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Screened {
    /// The record is clearly normal, so it is not scored.
    Cleared,
    /// The record is scored. It has this index among the scored records.
    Passed { score_index: usize },
    /// The record is scored whatever the screen answered. `cleared` is the screen's answer.
    Audited { score_index: usize, cleared: bool },
}

/// The outcome of an image apart from its score.
#[derive(Debug, Clone)]
pub enum ImageOutcome {
    /// The image needs no explanation.
    Unexplained,
    Explained(Box<Finding>),
    /// The image could not be scored.
    Dead(RowError),
}

/// What became of an image that is restored.
#[derive(Debug, Clone, PartialEq)]
pub enum RestoredImage {
    /// There is no noise to remove.
    Unchanged,
    Denoised {
        png: Vec<u8>,
        /// The standard deviation of the noise in levels of 255.
        sigma: String,
        lost: Lost,
    },
    /// The reason why it was not denoised.
    Failed(String),
}

#[derive(Debug)]
struct StoredRanges {
    from: TopicPartition,
    offset: i64,
    index: Option<u32>,
    timestamp_ms: Option<i64>,
    key: Option<Range<usize>>,
    payload: Range<usize>,
    segment: Option<SegmentId>,
    trace: [Option<Range<usize>>; 2],
    /// All headers, if the record can still become a dead letter or is restored. Otherwise empty.
    headers: Vec<OwnedHeader>,
}

/// A record of a batch, as stored.
#[derive(Debug, Clone, Copy)]
pub struct StoredRecord<'b> {
    pub from: TopicPartition,
    pub offset: i64,
    /// The place of the record in its message, if the message may have several.
    pub index: Option<u32>,
    pub timestamp_ms: Option<i64>,
    pub key: Option<&'b [u8]>,
    pub payload: &'b [u8],
    pub segment: Option<SegmentId>,
    /// The headers `traceparent` and `tracestate`.
    pub trace: [Option<(&'static str, &'b [u8])>; 2],
    /// All headers, if they were kept.
    pub headers: &'b [OwnedHeader],
}

impl StoredRecord<'_> {
    pub fn place(self) -> Place {
        Place {
            partition: self.from.partition,
            offset: self.offset,
            index: self.index,
        }
    }

    /// Returns the origin of the record. `topic` is the name of its topic.
    pub fn source(self, topic: &str) -> Origin {
        Origin {
            topic: topic.to_owned(),
            partition: self.from.partition,
            offset: self.offset,
            index: self.index,
        }
    }

    /// Returns the record as a dead letter, with all its headers if they were kept, and otherwise with its trace
    /// headers.
    pub fn letter(self, topic: &str, error: RowError) -> DeadLetter {
        let own = |(name, value): (&str, &[u8])| (name.to_owned(), Some(value.to_vec()));
        let trace = self.trace.into_iter().flatten().map(own);
        DeadLetter {
            source: self.source(topic),
            timestamp_ms: self.timestamp_ms,
            key: self.key.map(<[u8]>::to_vec),
            payload: self.payload.to_vec(),
            headers: match self.headers {
                [] => trace.collect(),
                all => all.to_vec(),
            },
            error,
        }
    }
}

impl Batch {
    /// Returns the number of records in the batch: scored, dead letters and skipped.
    pub fn consumed(&self) -> usize {
        let skipped: usize = self.skipped.iter().sum();
        self.records.len() + self.dead_letters.len() + skipped + self.oversized
    }

    pub fn is_empty(&self) -> bool {
        self.consumed() == 0
    }

    /// Returns the number of records with a row.
    pub fn scorable(&self) -> usize {
        self.records.len()
    }

    /// Returns when the first record of the batch arrived.
    pub fn opened(&self) -> Option<Instant> {
        self.opened
    }

    /// Returns whether the batch must be dispatched, because it is full or its first record has waited for `max_wait`.
    pub fn is_due(&self, max_records: usize, max_wait: Duration, now: Instant) -> bool {
        self.consumed() >= max_records
            || self.held() >= MAX_BYTES
            || self
                .opened
                .is_some_and(|opened| now.duration_since(opened) >= max_wait)
    }

    /// Returns the bytes of the records, and of the rows that their images will become.
    fn held(&self) -> usize {
        (self.bytes.len() + self.loose_bytes).saturating_add(self.image_bytes)
    }

    /// Returns the bytes that the batch takes until it is finished: the records, the rows, and the scorer's two outputs
    /// of the same size as the rows.
    pub fn weight(&self) -> usize {
        let rows = 3 * size_of::<f32>() * self.rows.len();
        let books = size_of::<StoredRanges>() * self.records.len();
        self.held()
            .saturating_add(rows + books + self.imputation_bytes())
    }

    /// Returns the units of work of the batch that take much longer than scoring: records to fill in, and runs of a model on images.
    pub fn slow_work(&self) -> usize {
        self.incomplete.len() + self.image_runs
    }

    /// Adds a record with an image that will be decoded.
    pub fn keep_image(
        &mut self,
        record: &Record<'_>,
        from: TopicPartition,
        (segment, load): (Option<SegmentId>, Load),
        now: Instant,
    ) {
        self.keep(record, from, segment, now);
        self.image_bytes = self.image_bytes.saturating_add(load.bytes);
        self.image_runs = self.image_runs.saturating_add(load.runs);
        self.keep_headers(record);
    }

    /// Stores all headers of the record that was kept last.
    pub fn keep_headers(&mut self, record: &Record<'_>) {
        if let Some(stored) = self.records.last_mut() {
            stored.headers = record.headers.iter().map(own_header).collect();
            self.loose_bytes += headers_weigh(record);
        }
    }

    /// Adds a record whose row the decoder has just appended to `rows`.
    pub fn keep(
        &mut self,
        record: &Record<'_>,
        from: TopicPartition,
        segment: Option<SegmentId>,
        now: Instant,
    ) {
        let trace = TRACE_HEADERS.map(|name| {
            let (_, value) = record.headers.iter().find(|(n, _)| *n == name)?;
            value.map(|value| store(&mut self.bytes, value))
        });
        let stored = StoredRanges {
            from,
            offset: record.offset,
            index: record.index,
            timestamp_ms: record.timestamp_ms,
            key: record.key.map(|key| store(&mut self.bytes, key)),
            payload: store(&mut self.bytes, record.payload.unwrap_or_default()),
            segment,
            trace,
            headers: Vec::new(),
        };
        self.records.push(stored);
        self.advance(from, record.offset, now);
    }

    /// Adds a dead letter for a record that could not be decoded.
    pub fn push_dead_letter(
        &mut self,
        record: &Record<'_>,
        from: TopicPartition,
        error: RowError,
        now: Instant,
    ) {
        let parts = [record.key, record.payload].into_iter().flatten();
        self.loose_bytes += size_of::<DeadLetter>()
            + parts.map(<[u8]>::len).sum::<usize>()
            + error.detail.len()
            + headers_weigh(record);
        self.dead_letters.push(DeadLetter {
            source: record.source(),
            timestamp_ms: record.timestamp_ms,
            key: record.key.map(<[u8]>::to_vec),
            payload: record.payload.unwrap_or_default().to_vec(),
            headers: record.headers.iter().map(own_header).collect(),
            error,
        });
        self.advance(from, record.offset, now);
    }

    /// Adds one dead letter that stands for `records` records that could not be read.
    pub fn push_dead_letter_for(
        &mut self,
        last: &Record<'_>,
        records: usize,
        from: TopicPartition,
        error: RowError,
        now: Instant,
    ) {
        self.oversized += records.saturating_sub(1);
        self.push_dead_letter(last, from, error, now);
    }

    /// Counts a record that has nothing to score.
    pub fn skip(&mut self, skip: Skip, record: &Record<'_>, from: TopicPartition, now: Instant) {
        self.skipped[skip as usize] += 1;
        self.advance(from, record.offset, now);
    }

    fn advance(&mut self, from: TopicPartition, offset: i64, now: Instant) {
        self.opened.get_or_insert(now);
        // The last entry almost always matches, because records arrive in runs of one partition.
        match self.offsets.iter_mut().rev().find(|(at, _)| *at == from) {
            Some((_, next)) => *next = offset + 1,
            None => self.offsets.push((from, offset + 1)),
        }
    }

    /// Returns the records with a row, in order.
    pub fn records(&self) -> impl ExactSizeIterator<Item = StoredRecord<'_>> {
        self.records.iter().map(|stored| self.stored(stored))
    }

    /// Returns record `i` of the records with a row.
    pub fn record(&self, i: usize) -> StoredRecord<'_> {
        self.stored(&self.records[i])
    }

    fn stored<'b>(&'b self, stored: &'b StoredRanges) -> StoredRecord<'b> {
        StoredRecord {
            from: stored.from,
            offset: stored.offset,
            index: stored.index,
            timestamp_ms: stored.timestamp_ms,
            key: stored.key.clone().map(|range| &self.bytes[range]),
            payload: &self.bytes[stored.payload.clone()],
            segment: stored.segment,
            trace: std::array::from_fn(|i| {
                let range = stored.trace[i].clone()?;
                Some((TRACE_HEADERS[i], &self.bytes[range]))
            }),
            headers: &stored.headers,
        }
    }

    /// Returns the row of record `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        let width = self.rows.len() / self.records.len();
        &self.rows[i * width..(i + 1) * width]
    }

    /// Returns the index of record `i` among the scored records, if it is scored.
    pub fn score_index(&self, i: usize) -> Option<usize> {
        match self.screened.get(i) {
            None => Some(i),
            Some(Screened::Cleared) => None,
            Some(Screened::Passed { score_index } | Screened::Audited { score_index, .. }) => {
                Some(*score_index)
            }
        }
    }

    /// Returns an unbiased sample of scores: all of them or, with a screen, the scores of audited records.
    pub fn fair_scores(&self) -> impl Iterator<Item = f32> {
        let audited = self.screened.iter().filter_map(|screened| match screened {
            Screened::Audited { score_index, .. } => Some(self.scores[*score_index]),
            _ => None,
        });
        let all = if self.screened.is_empty() {
            &self.scores.scores[..]
        } else {
            &[]
        };
        let all = all.iter().copied();
        all.chain(audited).filter(|score| score.is_finite())
    }

    /// Empties the batch for reuse, and frees memory that a huge message has taken.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.records.clear();
        self.bytes.clear();
        self.bytes.shrink_to(MAX_BYTES);
        self.image_bytes = 0;
        self.image_runs = 0;
        self.loose_bytes = 0;
        self.charged = 0;
        self.dead_letters.clear();
        self.skipped = Default::default();
        self.oversized = 0;
        self.offsets.clear();
        self.opened = None;
        self.dispatched = None;
        self.scoring = None;
        self.screened.clear();
        self.refused.clear();
        self.scores.clear();
        self.image_outcomes.clear();
        self.restored_images.clear();
        self.incomplete.clear();
        self.loose_rows.clear();
        self.restored.clear();
    }
}

/// Returns the bytes of the headers as they are kept. Each name and each value is a separate allocation.
fn headers_weigh(record: &Record<'_>) -> usize {
    const EACH: usize = size_of::<OwnedHeader>() + 32;
    let headers = record.headers.iter();
    headers
        .map(|(name, value)| EACH + name.len() + value.map_or(0, <[u8]>::len))
        .sum()
}

fn own_header((name, value): &Header<'_>) -> OwnedHeader {
    ((*name).to_owned(), value.map(<[u8]>::to_vec))
}

fn store(bytes: &mut Vec<u8>, value: &[u8]) -> Range<usize> {
    let start = bytes.len();
    bytes.extend_from_slice(value);
    start..bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::Reason;

    const P0: TopicPartition = TopicPartition {
        topic: 0,
        partition: 0,
    };
    const P1: TopicPartition = TopicPartition {
        topic: 0,
        partition: 1,
    };

    fn record(partition: i32, offset: i64) -> Record<'static> {
        Record {
            topic: "t",
            partition,
            offset,
            index: None,
            timestamp_ms: Some(5),
            key: Some(b"k"),
            headers: vec![("other", None), ("traceparent", Some(b"00-ab"))],
            payload: Some(b"{}"),
        }
    }

    #[test]
    fn every_outcome_advances_the_offset() {
        let mut batch = Batch::default();
        let now = Instant::now();
        batch.keep(&record(0, 4), P0, None, now);
        batch.skip(Skip::Tombstone, &record(1, 9), P1, now);
        let error = RowError {
            reason: Reason::Malformed,
            detail: "bad".into(),
        };
        batch.push_dead_letter(&record(0, 5), P0, error, now);
        assert_eq!(batch.offsets, [(P0, 6), (P1, 10)]);
        assert_eq!((batch.scorable(), batch.consumed()), (1, 3));
        let dead = &batch.dead_letters[0];
        assert_eq!((dead.headers.len(), dead.source.offset), (2, 5));
    }

    #[test]
    fn a_kept_record_comes_back_whole() {
        let mut batch = Batch::default();
        batch.keep(&record(0, 1), P0, Some(SegmentId(3)), Instant::now());
        batch.keep(
            &Record {
                key: None,
                headers: vec![],
                ..record(0, 2)
            },
            P0,
            None,
            Instant::now(),
        );
        let kept: Vec<_> = batch.records().collect();
        assert_eq!(kept[0].key, Some(&b"k"[..]));
        assert_eq!(kept[0].trace[0], Some(("traceparent", &b"00-ab"[..])));
        assert_eq!(kept[0].trace[1], None);
        assert_eq!(kept[0].segment, Some(SegmentId(3)));
        assert_eq!(
            (kept[1].key, kept[1].payload, kept[1].offset),
            (None, &b"{}"[..], 2)
        );
    }

    #[test]
    fn due_by_size_or_by_the_clock_that_is_passed_in() {
        let mut batch = Batch::default();
        let start = Instant::now();
        let wait = Duration::from_millis(5);
        assert!(
            !batch.is_due(2, wait, start + wait),
            "an empty batch waits for ever"
        );
        batch.keep(&record(0, 1), P0, None, start);
        assert!(!batch.is_due(2, wait, start));
        assert!(batch.is_due(2, wait, start + wait));
        batch.skip(Skip::Tombstone, &record(0, 2), P0, start);
        assert!(batch.is_due(2, wait, start));
    }

    #[test]
    fn a_dead_letter_weighs_its_key_and_headers() {
        let (mut batch, now) = (Batch::default(), Instant::now());
        let large = vec![0; MAX_BYTES / 4];
        let error = || RowError {
            reason: Reason::Malformed,
            detail: "bad".into(),
        };
        let headers: Vec<Header<'_>> = vec![("a", Some(&large)), ("b", Some(&large))];
        let record = Record {
            headers,
            ..record(0, 1)
        };
        batch.push_dead_letter(&record, P0, error(), now);
        assert!(batch.weight() > MAX_BYTES / 2);
        assert!(!batch.is_due(9, Duration::MAX, now));
        let keyed = Record {
            key: Some(&large),
            ..record
        };
        batch.push_dead_letter(&keyed, P0, error(), now);
        assert!(
            batch.is_due(9, Duration::MAX, now),
            "full in headers and key"
        );
        let small = vec![("h", None); MAX_BYTES / 50];
        let many = Record {
            headers: small,
            ..keyed
        };
        batch.clear();
        batch.push_dead_letter(&many, P0, error(), now);
        assert!(
            batch.is_due(9, Duration::MAX, now),
            "empty headers take room too"
        );
    }

    #[test]
    fn an_image_counts_by_its_rows_and_runs_and_keeps_its_headers() {
        let mut batch = Batch::default();
        let now = Instant::now();
        let load = |bytes| Load { bytes, runs: 7 };
        batch.keep_image(&record(0, 1), P0, (None, load(MAX_BYTES - 1000)), now);
        assert!(!batch.is_due(9, Duration::MAX, now));
        batch.keep_image(&record(0, 2), P0, (None, load(1000)), now);
        assert!(batch.is_due(9, Duration::MAX, now), "full in rows to come");
        assert_eq!(batch.slow_work(), 14);
        let error = RowError {
            reason: Reason::TooLarge,
            detail: "large".into(),
        };
        let letter = batch.records().next().unwrap().letter("t", error);
        assert_eq!(letter.headers[0], ("other".to_owned(), None));
        assert_eq!((letter.headers.len(), letter.source.offset), (2, 1));
        batch.clear();
        assert_eq!((batch.weight(), batch.slow_work()), (0, 0));
    }

    #[test]
    fn clearing_gives_back_the_memory_of_a_huge_message() {
        let mut batch = Batch::default();
        let huge = vec![b'x'; 20 << 20];
        let record = Record {
            payload: Some(&huge),
            ..record(0, 0)
        };
        let now = Instant::now();
        batch.keep(&record, P0, None, now);
        assert!(batch.is_due(1000, Duration::MAX, now), "full in bytes");
        batch.clear();
        assert!(batch.is_empty() && batch.bytes.capacity() <= 1 << 20);
    }
}
