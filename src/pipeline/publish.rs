//! Judges scored batches in order, produces what there is to say, and finishes a batch when all of it is delivered.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, never, select};

use super::PipelineError;
use crate::batch::{Batch, DeadLetter, Kept};
use crate::config;
use crate::decode::{Input, Reason, RowError};
use crate::kafka::{Delivery, KafkaError, SendError, Sink};
use crate::message::{Message, Model, dead_letter_message, verdict_message, without_bulk};
use crate::metrics::{Metrics, SKIP_TOMBSTONE};
use crate::record::Source;
use crate::shutdown::Shutdown;
use crate::verdict::{Judge, Scored, Severity};

/// How often a wait looks whether it still makes sense.
const LOOK_UP: Duration = Duration::from_millis(100);

pub struct Publisher {
    sink: Sink,
    judge: Judge,
    model: Model,
    /// Says records in JSON.
    input: Input,
    output: config::Output,
    /// Names by [`crate::batch::TopicPartition::topic`].
    topics: Vec<String>,
    metrics: Metrics,
    abandon: Shutdown,
    next: u64,
    /// Scored before their turn.
    early: BTreeMap<u64, Batch>,
    /// Judged and on their way, by consecutive sequence.
    pending: VecDeque<Pending>,
}

struct Pending {
    batch: Batch,
    /// Messages not delivered yet; one more while the batch is still being judged.
    outstanding: usize,
    tally: Tally,
}

/// The outcomes of a batch, counted when they are delivered.
#[derive(Default)]
struct Tally {
    scored: usize,
    dead: Vec<Reason>,
    anomalies: Vec<Severity>,
}

impl Publisher {
    #[allow(clippy::too_many_arguments, reason = "called once, by the wiring")]
    pub fn new(
        sink: Sink,
        judge: Judge,
        model: Model,
        input: Input,
        output: config::Output,
        topics: Vec<String>,
        metrics: Metrics,
        abandon: Shutdown,
    ) -> Publisher {
        Publisher {
            sink,
            judge,
            model,
            input,
            output,
            topics,
            metrics,
            abandon,
            next: 0,
            early: BTreeMap::new(),
            pending: VecDeque::new(),
        }
    }

    /// Runs until the workers are gone and everything is delivered, or until that is given up.
    ///
    /// # Errors
    /// When a message can never be delivered.
    pub fn run(
        mut self,
        scored: &Receiver<Batch>,
        give_back: &Sender<Batch>,
    ) -> Result<(), PipelineError> {
        let result = self.publish_all(scored, give_back);
        if !self.pending.is_empty() {
            self.sink.abandon();
        }
        result
    }

    fn publish_all(
        &mut self,
        scored: &Receiver<Batch>,
        give_back: &Sender<Batch>,
    ) -> Result<(), PipelineError> {
        let (mut scored, nothing_more) = (scored.clone(), never());
        let mut open = true;
        let deliveries = self.sink.deliveries().clone();
        while (open || !self.pending.is_empty()) && !self.abandon.is_requested() {
            select! {
                recv(scored) -> batch => match batch {
                    Ok(batch) => {
                        self.early.insert(batch.sequence, batch);
                        while let Some(batch) = self.early.remove(&self.next) {
                            self.next += 1;
                            self.publish(batch)?;
                        }
                    }
                    Err(_) => {
                        open = false;
                        scored = nothing_more.clone();
                    }
                },
                recv(deliveries) -> delivery => {
                    if let Ok(delivery) = delivery {
                        self.delivered(delivery)?;
                    }
                }
                default(LOOK_UP) => {}
            }
            self.finish(give_back);
        }
        Ok(())
    }

    fn publish(&mut self, batch: Batch) -> Result<(), PipelineError> {
        let sequence = batch.sequence;
        self.pending.push_back(Pending {
            batch: Batch::default(),
            outstanding: 1,
            tally: Tally::default(),
        });
        let tally = self.judge(&batch)?;
        for letter in &batch.dead_letters {
            self.bury(sequence, letter.clone())?;
        }
        let pending = self.pending.back_mut().expect("pushed above");
        pending.batch = batch;
        pending.outstanding -= 1;
        pending.tally = tally;
        Ok(())
    }

    fn judge(&mut self, batch: &Batch) -> Result<Tally, PipelineError> {
        let mut tally = Tally {
            dead: batch.dead_letters.iter().map(|l| l.error.reason).collect(),
            ..Tally::default()
        };
        let histogram = self.metrics.score.local();
        let width = batch.rows.len() / batch.scorable().max(1);
        for (i, record) in batch.records().enumerate() {
            let score = batch.scores[i];
            if !score.is_finite() {
                self.bury(batch.sequence, self.unscorable(record, score))?;
                tally.dead.push(Reason::Unscorable);
                continue;
            }
            tally.scored += 1;
            histogram.observe(f64::from(score));
            let flagged = self.judge.severity(score);
            tally.anomalies.extend(flagged);
            if flagged.is_none() && self.output.scores_topic.is_none() {
                continue;
            }
            let columns = i * width..(i + 1) * width;
            let verdict = self.judge.judge(
                Scored {
                    score,
                    row: &batch.rows[columns.clone()],
                    residual: &batch.residuals[columns.clone()],
                    reconstruction: &batch.reconstructions[columns],
                },
                self.output.attributions,
            );
            let topic = &self.topics[record.from.topic];
            let carried = self.output.include_record;
            let json = carried
                .then(|| self.input.to_json(record.payload))
                .flatten();
            let message = verdict_message(&self.model, topic, record, &verdict, json.as_deref());
            if flagged.is_some() {
                let anomalies = self.output.anomalies_topic.clone();
                self.send(batch.sequence, &anomalies, message.clone())?;
            }
            if let Some(scores) = self.output.scores_topic.clone() {
                self.send(batch.sequence, &scores, message)?;
            }
        }
        Ok(tally)
    }

    fn unscorable(&self, record: Kept<'_>, score: f32) -> DeadLetter {
        let own = |(name, value): (&str, &[u8])| (name.to_owned(), Some(value.to_vec()));
        DeadLetter {
            source: Source {
                topic: self.topics[record.from.topic].clone(),
                partition: record.from.partition,
                offset: record.offset,
            },
            timestamp_ms: record.timestamp_ms,
            key: record.key.map(<[u8]>::to_vec),
            payload: record.payload.to_vec(),
            headers: record.trace.into_iter().flatten().map(own).collect(),
            error: RowError {
                reason: Reason::Unscorable,
                detail: format!("the model's score is {score}"),
            },
        }
    }

    fn bury(&mut self, sequence: u64, letter: DeadLetter) -> Result<(), PipelineError> {
        let topic = self.output.dead_letter_topic.clone();
        self.send(sequence, &topic, dead_letter_message(letter))
    }

    /// Hands a message to the producer, waiting while its queue is full.
    fn send(&mut self, sequence: u64, topic: &str, message: Message) -> Result<(), PipelineError> {
        self.pending_of(sequence).outstanding += 1;
        let mut message = message;
        loop {
            match self.sink.send(sequence, topic, &message) {
                Ok(()) => return Ok(()),
                Err(SendError::QueueFull) => {
                    if self.abandon.is_requested() {
                        return Ok(());
                    }
                    if let Ok(delivery) = self.sink.deliveries().recv_timeout(LOOK_UP) {
                        self.delivered(delivery)?;
                    }
                }
                Err(SendError::TooLarge { .. }) => message = self.slim(topic, &message)?,
                Err(SendError::Failed { topic, problem }) => {
                    return Err(undeliverable(topic, problem));
                }
            }
        }
    }

    fn delivered(&mut self, delivery: Delivery) -> Result<(), PipelineError> {
        match delivery.result {
            Ok(()) => {}
            Err(SendError::TooLarge { topic, message }) => {
                let slim = self.slim(&topic, &message)?;
                self.send(delivery.sequence, &topic, slim)?;
            }
            Err(SendError::Failed { topic, problem }) => return Err(undeliverable(topic, problem)),
            Err(SendError::QueueFull) => {
                unreachable!("a queued message is not refused for the queue")
            }
        }
        self.pending_of(delivery.sequence).outstanding -= 1;
        Ok(())
    }

    /// The message without its bulk, if it had any left.
    fn slim(&self, topic: &str, message: &Message) -> Result<Message, PipelineError> {
        let slim = without_bulk(message, "the message is too large for the topic");
        if slim.payload.len() >= message.payload.len() {
            let problem = "too large even without the record: raise the topic's max.message.bytes";
            return Err(undeliverable(topic.to_owned(), problem.to_owned()));
        }
        Ok(slim)
    }

    fn pending_of(&mut self, sequence: u64) -> &mut Pending {
        let first = self.next - self.pending.len() as u64;
        &mut self.pending[(sequence - first) as usize]
    }

    /// Gives back, in order, the batches that are delivered whole.
    fn finish(&mut self, give_back: &Sender<Batch>) {
        while self.pending.front().is_some_and(|p| p.outstanding == 0) {
            let Pending { batch, tally, .. } = self.pending.pop_front().expect("seen above");
            self.count(&batch, &tally);
            // The intake may be gone after a drain that did not end in time.
            let _ = give_back.send(batch);
        }
    }

    fn count(&self, batch: &Batch, tally: &Tally) {
        let metrics = &self.metrics;
        metrics.records_in_flight.sub(batch.consumed() as i64);
        metrics.records_scored.inc_by(tally.scored as u64);
        for reason in &tally.dead {
            metrics
                .dead_letters
                .with_label_values(&[reason.as_str()])
                .inc();
        }
        metrics
            .records_skipped
            .with_label_values(&[SKIP_TOMBSTONE])
            .inc_by(batch.skipped as u64);
        for severity in &tally.anomalies {
            metrics
                .anomalies
                .with_label_values(&[severity.as_str()])
                .inc();
        }
        let accounted = tally.scored + tally.dead.len() + batch.skipped;
        metrics
            .records_unaccounted
            .add(batch.consumed() as i64 - accounted as i64);
        let now_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as i64);
        let latency = metrics.end_to_end_seconds.local();
        for timestamp in batch.records().filter_map(|record| record.timestamp_ms) {
            latency.observe((now_ms - timestamp).max(0) as f64 / 1e3);
        }
    }
}

fn undeliverable(topic: String, problem: String) -> PipelineError {
    KafkaError::Delivery { topic, problem }.into()
}
