//! Consumes records from Kafka, decodes them into batches, and commits their offsets once the batches are delivered.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::incomplete::{Incompletes, push_dead_letter};
use super::serving::PendingModel;
use super::slow_work::SlowWork;
use super::{PipelineError, RunContext, Stop};
use crate::batch::Batch;
use crate::batch::TopicPartition;
use crate::config;
use crate::decode::{DecodeError, Decoder, Reason, RowError, Skip, Split};
use crate::kafka::decompression::Oversized;
use crate::kafka::{Event, Rebalance, RebalanceKind, Source, Topics};
use crate::metrics::{Metrics, SKIP_LOST};
use crate::record::Record;
use crate::status::Status;

/// How long a poll waits when nothing is due. This bounds the delay until a stop is noticed.
const IDLE_POLL: Duration = Duration::from_millis(100);
/// How long a poll waits while partitions are held.
const HOLDING_POLL: Duration = Duration::from_millis(10);
/// How long to wait for another record before a partial batch leaves, if no other batch waits to be scored. A longer
/// wait would only add latency.
const GAP: Duration = Duration::from_millis(1);
/// How long to wait for a free batch before pausing. Short delays are waited out, because pausing discards the records
/// that librdkafka has fetched.
const PATIENCE: Duration = Duration::from_millis(500);
/// The least time for closing the consumer, even if the drain has used up its own time.
const CLOSE_AT_LEAST: Duration = Duration::from_secs(1);
/// The number of records taken before the clock and finished batches are checked again. A check at each record would
/// cost as much as decoding a few fields.
const TURN: usize = 32;
/// One record in this many is timed. This is enough for a histogram, and timing costs about as much as decoding a small
/// field.
const TIME_ONE_IN: u64 = 16;
/// The maximum number of bytes that the key and the headers of a message may take, once each of its records has its own.
const COPIES: usize = 32 << 20;
/// The maximum number of bytes of in-flight images and their rows, however much memory there is. Other images wait in
/// Kafka. Images of this size take a few seconds to score, so a drain takes no longer than that.
const IMAGES_IN_FLIGHT: usize = 16 << 20;

pub struct Channels {
    pub to_score: Sender<Batch>,
    pub finished: Receiver<Batch>,
}

/// The reason why consuming ended.
enum Ended {
    Stopped,
    /// Everything is delivered, and another model takes over.
    MakesRoom,
}

pub struct Intake {
    source: Source,
    decoder: Decoder,
    /// Set only if records are restored.
    incompletes: Option<Incompletes>,
    /// Set if there is work that takes much longer than scoring.
    slow: Option<SlowWork>,
    limits: config::BatchSettings,
    /// The maximum number of bytes of in-flight batches. Other records wait in Kafka.
    share: usize,
    drain_timeout: Duration,
    metrics: Metrics,
    status: Status,
    channels: Channels,
    pending_model: PendingModel,
    stop: Stop,
    current: Batch,
    free: Vec<Batch>,
    sequence: u64,
    records: u64,
    /// Bytes of the batches in flight.
    in_flight_bytes: usize,
    /// The units of slow work in flight.
    in_flight_slow: usize,
    /// Batches with a lower sequence contain revoked partitions, so their offsets are not stored.
    disowned_below: u64,
}

impl Intake {
    pub fn new(
        source: Source,
        (decoder, incompletes, slow): (Decoder, Option<Incompletes>, Option<SlowWork>),
        channels: Channels,
        context: &RunContext,
        stop: Stop,
    ) -> Intake {
        let (limits, share) = (context.batch.clone(), context.in_flight_share);
        // Sequence numbers restart with each model.
        source.lose_below(0);
        Intake {
            share: match decoder.reads_images() {
                true => share.min(IMAGES_IN_FLIGHT),
                false => share,
            },
            source,
            decoder,
            incompletes,
            slow,
            drain_timeout: context.drain_timeout,
            metrics: context.metrics.clone(),
            status: context.status.clone(),
            channels,
            pending_model: context.pending_model.clone(),
            stop,
            current: Batch::default(),
            free: (0..limits.in_flight).map(|_| Batch::default()).collect(),
            limits,
            sequence: 0,
            records: 0,
            in_flight_bytes: 0,
            in_flight_slow: 0,
            disowned_below: 0,
        }
    }

    pub fn topics(&self) -> Topics {
        self.source.topics().clone()
    }

    /// Consumes until a stop is requested, drains, commits and leaves the group. If another model takes over, returns
    /// the drained consumer, which is still in its group.
    ///
    /// # Errors
    /// When Kafka fails for good, or the drain did not end in time.
    pub fn run(mut self) -> Result<Option<Source>, PipelineError> {
        let consumed = self.consume();
        if let Ok(Ended::MakesRoom) = consumed {
            return Ok(Some(self.source));
        }
        self.status.is_draining();
        let deadline = Instant::now() + self.drain_timeout;
        // After a failure, only at-least-once drains. With exactly-once, the transaction is aborted and its records are
        // judged again.
        let drained = (consumed.is_ok() || !self.source.is_exactly_once()) && self.drain();
        if drained {
            tracing::info!("drained: the outcome of every consumed record is delivered");
        } else {
            self.stop.abandon.request();
        }
        // This ends the workers and, after them, the publisher.
        drop(self.channels.to_score);
        let left = deadline.saturating_duration_since(Instant::now());
        let closed = self.source.close(left.max(CLOSE_AT_LEAST));
        consumed?;
        let records = self.metrics.records_in_flight.get();
        match (drained, closed) {
            (true, true) => Ok(None),
            (true, false) => Err(PipelineError::NotCommitted),
            (false, _) => Err(PipelineError::NotDrained { records }),
        }
    }

    fn consume(&mut self) -> Result<Ended, PipelineError> {
        while !self.stop.drain.is_requested() {
            // A drain that does not end in time is retried after the next poll.
            if self.pending_model.is_there() && self.drain() {
                return Ok(Ended::MakesRoom);
            }
            while let Ok(batch) = self.channels.finished.try_recv() {
                self.finish(batch);
            }
            let now = Instant::now();
            self.source.update_progress(now);
            self.pass_tails();
            let due = self.is_due(now);
            if due && self.is_full() {
                self.wait_for_room()?;
            } else {
                if due {
                    self.dispatch();
                }
                self.source.resume(now)?;
                let decoder = &self.decoder;
                self.source
                    .release(now, |id| decoder.waits_for_schema(id))?;
                self.take_turn(now)?;
            }
        }
        Ok(Ended::Stopped)
    }

    fn is_due(&self, now: Instant) -> bool {
        let config::BatchSettings {
            max_records,
            max_wait,
            ..
        } = self.limits;
        let due = self.current.is_due(max_records, max_wait, now);
        // A large batch of wide rows could exceed the share alone.
        let slow = self.current.slow_work();
        due || self.current.weight() >= self.share
            || self.slow.is_some_and(|all| slow >= all.most_in_batch)
    }

    /// Returns whether no batch is free, or the in-flight batches fill their share of memory, or as much slow work is in flight as can
    /// be done during a drain.
    fn is_full(&self) -> bool {
        self.free.is_empty()
            || self.in_flight_bytes >= self.share
            || self.slow.is_some_and(|all| self.in_flight_slow >= all.most)
    }

    fn poll_timeout(&self, now: Instant) -> Duration {
        let opened = self.current.opened();
        let waited = opened.map(|opened| now.saturating_duration_since(opened));
        let idle = match self.source.is_holding() {
            true => HOLDING_POLL,
            false => IDLE_POLL,
        };
        waited.map_or(idle, |waited| {
            self.limits.max_wait.saturating_sub(waited).min(GAP)
        })
    }

    /// Waits for an event, then takes the records that are ready, at most [`TURN`].
    fn take_turn(&mut self, now: Instant) -> Result<(), PipelineError> {
        if !self.take(self.poll_timeout(now))? {
            self.leave_early();
            return Ok(());
        }
        for _ in 1..TURN {
            if self.is_due(now) || !self.take(Duration::ZERO)? {
                break;
            }
        }
        Ok(())
    }

    /// Dispatches a partial batch when Kafka has no more records and no batch waits for a scorer. This is not done with
    /// exactly-once, because a transaction takes longer than the wait and holds a limited number of batches.
    fn leave_early(&mut self) {
        let waits = self.current.is_empty() || self.source.is_exactly_once();
        if !waits && !self.is_full() && self.channels.to_score.is_empty() {
            self.dispatch();
        }
    }

    /// Takes one event from Kafka, usually a record for the current batch. Returns `false` if there is none.
    fn take(&mut self, timeout: Duration) -> Result<bool, PipelineError> {
        let message = match self.source.poll(timeout)? {
            Event::Message(message) => message,
            Event::Rebalance(rebalance) => {
                self.rebalance(&rebalance)?;
                return Ok(true);
            }
            Event::Idle => return Ok(false),
        };
        let (record, from) = self.source.record(&message);
        if self.source.is_held(from) {
            // This record will be fetched again. For now, it only shows which schema it needs.
            let payload = record.payload.unwrap_or_default();
            self.decoder.ask_for_schema(payload, record.timestamp_ms);
            let size = payload.len();
            drop(message);
            self.source.looked_ahead(from, size)?;
            return Ok(true);
        }
        self.records += 1;
        let timed = self.records.is_multiple_of(TIME_ONE_IN);
        let opened = self.current.opened().filter(|_| !timed);
        let now = opened.unwrap_or_else(Instant::now);
        let (batch, incompletes) = (&mut self.current, &mut self.incompletes);
        let mut taken = 1;
        match record.payload {
            None | Some([]) => match Oversized::of(&record) {
                Some(oversized) => {
                    taken = push_oversized_batch(batch, &record, from, oversized, now);
                }
                None => batch.skip(Skip::Tombstone, &record, from, now),
            },
            Some(payload) => match self.decoder.split(payload) {
                Err(error) => batch.push_dead_letter(&record, from, error, now),
                Ok(Split::Empty) => batch.skip(Skip::EmptyList, &record, from, now),
                Ok(Split::Many(payloads)) => {
                    let size = copied_bytes(&record).saturating_mul(payloads.len());
                    if size > COPIES {
                        let error = too_much_to_copy(payloads.len(), size);
                        batch.push_dead_letter(&record, from, error, now);
                    } else {
                        taken = payloads.len() as u64;
                        for (index, payload) in (0..).zip(&payloads) {
                            let one = Record {
                                index: Some(index),
                                payload: Some(payload),
                                ..record.clone()
                            };
                            let decoder = &mut self.decoder;
                            take_unwrapped(decoder, incompletes, batch, &one, from, now);
                        }
                    }
                }
                Ok(Split::One) => {
                    let decoded = self.decoder.decode(payload, record.key, &mut batch.rows);
                    // `images` decodes and times images.
                    if timed && !self.decoder.reads_images() {
                        let seconds = now.elapsed().as_secs_f64();
                        self.metrics.decode_seconds.observe(seconds);
                    }
                    match decoded {
                        Ok(segment) => match self.decoder.image_load(payload) {
                            None => {
                                batch.keep(&record, from, segment, now);
                                if let Some(incompletes) = incompletes {
                                    incompletes.kept(batch, &record);
                                }
                            }
                            Some(load) => batch.keep_image(&record, from, (segment, load), now),
                        },
                        Err(DecodeError::Row(error)) => {
                            let incompletes = incompletes.as_mut();
                            push_dead_letter(incompletes, batch, &record, from, error, now);
                        }
                        Err(DecodeError::Nothing(skip)) => batch.skip(skip, &record, from, now),
                        Err(DecodeError::SchemaPending(id)) => {
                            self.decoder.ask_for_schema(payload, record.timestamp_ms);
                            let offset = record.offset;
                            drop(message);
                            self.source.hold(from, offset, id);
                            return Ok(true);
                        }
                    }
                }
            },
        }
        drop(message);
        self.source.taken(from);
        self.metrics.records_consumed.inc_by(taken);
        self.metrics.records_in_flight.add(taken as i64);
        Ok(true)
    }

    fn rebalance(&mut self, rebalance: &Rebalance) -> Result<(), PipelineError> {
        match rebalance.kind {
            RebalanceKind::Assign => {}
            RebalanceKind::Revoke => {
                if self.drain() {
                    self.source.commit();
                } else if self.source.is_exactly_once() {
                    // Continuing could publish records that the next owner publishes too.
                    let records = self.metrics.records_in_flight.get();
                    return Err(PipelineError::NotDrained { records });
                } else {
                    tracing::warn!(
                        "partitions were revoked before their verdicts were delivered; the new owner judges these records again"
                    );
                    self.dispatch_if_possible();
                    // The records that are not dispatched yet leave with the next sequence number.
                    self.disowned_below = self.sequence + u64::from(!self.current.is_empty());
                }
            }
            RebalanceKind::Lost => self.lose(),
        }
        self.source.complete(rebalance)?;
        Ok(())
    }

    /// Drops in-flight records, because other members already own their partitions and judge these records.
    fn lose(&mut self) {
        let dropped = self.current.consumed() as u64;
        let skipped = &self.metrics.records_skipped;
        skipped.with_label_values(&[SKIP_LOST]).inc_by(dropped);
        self.metrics.records_in_flight.sub(dropped as i64);
        self.current.clear();
        self.disowned_below = self.sequence;
        self.source.lose_below(self.sequence);
        tracing::warn!(
            "partitions were lost; their new owner judges the records that were in flight here"
        );
    }

    /// Waits under backpressure: every batch is in use because the workers or the brokers are behind.
    fn wait_for_room(&mut self) -> Result<(), PipelineError> {
        match self.channels.finished.recv_timeout(PATIENCE) {
            Ok(batch) => {
                self.finish(batch);
                Ok(())
            }
            Err(_) => {
                self.source.pause()?;
                // Polling keeps the group membership alive. A record that still arrives goes into the current batch.
                self.take(Duration::ZERO)?;
                Ok(())
            }
        }
    }

    fn dispatch(&mut self) {
        let next = self
            .free
            .pop()
            .expect("the caller has checked for a free batch");
        let batch = std::mem::replace(&mut self.current, next);
        self.send(batch);
    }

    /// Sends offsets without records as an empty batch, so that they are finished in order with all others.
    fn pass_tails(&mut self) {
        if self.free.is_empty() {
            return;
        }
        let tails = self.source.empty_tails();
        if !tails.is_empty() {
            let mut batch = self.free.pop().expect("checked above");
            batch.offsets = tails;
            self.send(batch);
        }
    }

    fn send(&mut self, mut batch: Batch) {
        batch.sequence = self.sequence;
        batch.dispatched = Some(Instant::now());
        self.sequence += 1;
        batch.charged = batch.weight();
        self.in_flight_slow += batch.slow_work();
        self.weigh(self.in_flight_bytes.saturating_add(batch.charged));
        // This fails only if all workers have ended, and then a stop is in progress.
        let _ = self.channels.to_score.send(batch);
    }

    fn dispatch_if_possible(&mut self) {
        if !self.current.is_empty() && !self.free.is_empty() {
            self.dispatch();
        }
    }

    fn finish(&mut self, mut batch: Batch) {
        self.in_flight_slow -= batch.slow_work();
        self.weigh(self.in_flight_bytes.saturating_sub(batch.charged));
        if batch.sequence >= self.disowned_below {
            self.source.finish(&batch.offsets);
        }
        batch.clear();
        self.free.push(batch);
    }

    fn weigh(&mut self, in_flight_bytes: usize) {
        self.in_flight_bytes = in_flight_bytes;
        self.metrics
            .memory_in_flight_bytes
            .set(in_flight_bytes as i64);
    }

    /// Waits until everything in flight is delivered. Returns `false` if that takes too long.
    fn drain(&mut self) -> bool {
        let deadline = Instant::now() + self.drain_timeout;
        loop {
            self.dispatch_if_possible();
            if self.current.is_empty() && self.free.len() == self.limits.in_flight {
                return true;
            }
            let next = deadline.min(Instant::now() + IDLE_POLL);
            match self.channels.finished.recv_deadline(next) {
                Ok(batch) => self.finish(batch),
                Err(_) if self.stop.abandon.is_requested() || Instant::now() >= deadline => {
                    return false;
                }
                Err(_) => {}
            }
        }
    }
}

/// Adds one of the records of a message to the batch. They all go into the same batch, because a transaction must not contain a
/// part of them.
fn take_unwrapped(
    decoder: &mut Decoder,
    incompletes: &mut Option<Incompletes>,
    batch: &mut Batch,
    record: &Record<'_>,
    from: TopicPartition,
    now: Instant,
) {
    let payload = record.payload.unwrap_or_default();
    match decoder.decode(payload, record.key, &mut batch.rows) {
        Ok(segment) => {
            batch.keep(record, from, segment, now);
            if let Some(incompletes) = incompletes {
                incompletes.kept(batch, record);
            }
        }
        Err(DecodeError::Nothing(skip)) => batch.skip(skip, record, from, now),
        Err(DecodeError::Row(mut error)) => {
            let index = record.index.unwrap_or_default();
            error.detail = format!("record {index} of the message: {}", error.detail).into();
            push_dead_letter(incompletes.as_mut(), batch, record, from, error, now);
        }
        Err(DecodeError::SchemaPending(_)) => unreachable!("JSON needs no schema"),
    }
}

/// Returns the bytes of a message that each of its records has as well.
fn copied_bytes(record: &Record<'_>) -> usize {
    let headers = record.headers.iter();
    let headers = headers.map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len));
    record.key.map_or(0, <[u8]>::len) + headers.sum::<usize>()
}

fn too_much_to_copy(records: usize, bytes: usize) -> RowError {
    RowError {
        reason: Reason::TooLarge,
        detail: format!(
            "the key and the headers of the message, once for each of its {records} records, take {bytes} bytes, and at most {COPIES} are allowed: none of the records is judged. Let the producer send fewer records a message"
        )
        .into(),
    }
}

/// Adds one dead letter for a compressed batch that is too large to decompress. Returns the number of records in the
/// compressed batch.
fn push_oversized_batch(
    batch: &mut Batch,
    last: &Record<'_>,
    from: TopicPartition,
    oversized: Oversized,
    now: Instant,
) -> u64 {
    let Oversized {
        first,
        last: end,
        records,
        bytes,
        share,
    } = oversized;
    let detail = format!(
        "a compressed batch of {records} records, offsets {first} to {end}, takes {bytes} bytes of memory, but one batch may take only {share}, so none of these records is judged. Let the producer make smaller batches, or raise memory.limit"
    );
    let (topic, partition) = (last.topic, last.partition);
    tracing::warn!(topic, partition, "{detail}");
    let error = RowError {
        reason: Reason::TooLarge,
        detail: detail.into(),
    };
    let letter = Record {
        headers: Vec::new(),
        ..last.clone()
    };
    let count = usize::try_from(records).unwrap_or(usize::MAX);
    batch.push_dead_letter_for(&letter, count, from, error, now);
    records
}
