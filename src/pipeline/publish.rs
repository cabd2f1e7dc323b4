//! Judges scored batches in order, produces what there is to say, and finishes a batch when all of it is delivered:
//! acknowledged by the brokers, or, with exactly-once, committed together with its offsets.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select};

use super::PipelineError;
use super::drift::{Drift, QUANTILE};
use super::media::Blocked;
use super::outbox::{Outbox, Outgoing};
use super::oversize::{Omissions, Refusal};
use super::refused::Refusals;
use super::tally::{Losses, Tally};
use super::traces::{Published, Traces};
use super::window::Window;
use crate::batch::{Batch, Kept, Screened, Sighting};
use crate::config;
use crate::dead_letter::DeadLetter;
use crate::decode::{Input, Reason, RowError};
use crate::kafka::{Delivery, KafkaError, Membership, SendError, Sink, Ticket, Topics};
use crate::message::{Message, Model, OMITTED, dead_letter_message, unreadable, verdict_message};
use crate::metrics::Metrics;
use crate::onnx::Nearest;
use crate::recent::{Anomaly, Recent};
use crate::shutdown::Shutdown;
use crate::verdict::{Judge, Scored, Severity, Verdict, is_score};

/// How often a wait looks whether it still makes sense.
pub(super) const LOOK_UP: Duration = Duration::from_millis(100);

pub struct Publisher {
    pub(super) sink: Sink,
    pub(super) judge: Judge,
    nearest: Option<Nearest>,
    pub(super) model: Model,
    /// Says records in JSON.
    input: Input,
    pub(super) output: config::Output,
    /// Names by [`crate::batch::TopicPartition::topic`].
    pub(super) topics: Topics,
    pub(super) metrics: Metrics,
    recent: Recent,
    pub(super) abandon: Shutdown,
    pub(super) membership: Membership,
    /// Only with exactly-once.
    pub(super) window: Option<Window>,
    traces: Option<Arc<Traces>>,
    drift: Drift,
    pub(super) outbox: Outbox,
    next: u64,
    /// Scored before their turn.
    early: BTreeMap<u64, Batch>,
    /// Judged and on their way, by consecutive sequence.
    pub(super) pending: VecDeque<Pending>,
    /// By topic, with exactly-once.
    pub(super) too_large: HashMap<String, Refusal>,
    /// With exactly-once, since the last commit: a batch was refused for its size, and the producer now makes smaller ones.
    pub(super) wants_small_batches: bool,
    pub(super) has_small_batches: bool,
    pub(super) omissions: Omissions,
    pub(super) refusals: Refusals,
    pub(super) blocked: Blocked,
}

pub(super) struct Pending {
    pub sequence: u64,
    pub batch: Batch,
    /// What it waits for: each message not delivered yet, or the one transaction it is in.
    pub outstanding: usize,
    pub tally: Tally,
    pub losses: Losses,
    pub published: Instant,
}

/// A record about which there is something to say.
struct Told {
    i: usize,
    /// Among those that are scored.
    place: usize,
    flagged: Option<Severity>,
}

impl Publisher {
    #[allow(clippy::too_many_arguments, reason = "called once, by the wiring")]
    pub fn new(
        sink: Sink,
        judge: Judge,
        nearest: Option<Nearest>,
        model: Model,
        input: Input,
        output: config::Output,
        topics: Topics,
        metrics: Metrics,
        recent: Recent,
        abandon: Shutdown,
        membership: Membership,
        window: Option<Window>,
        traces: Option<Arc<Traces>>,
    ) -> Publisher {
        Publisher {
            drift: Drift::new(judge.normal_quantile(QUANTILE)),
            sink,
            judge,
            nearest,
            model,
            input,
            output,
            topics,
            metrics,
            recent,
            abandon,
            membership,
            window,
            traces,
            outbox: Outbox::default(),
            next: 0,
            early: BTreeMap::new(),
            pending: VecDeque::new(),
            too_large: HashMap::new(),
            wants_small_batches: false,
            has_small_batches: false,
            omissions: Omissions::default(),
            refusals: Refusals::default(),
            blocked: Blocked::default(),
        }
    }

    /// Runs until the workers are gone and everything is delivered, or until that is given up. Gives the producer back.
    ///
    /// # Errors
    /// When a message can never be delivered.
    pub fn run(
        mut self,
        scored: &Receiver<Batch>,
        give_back: &Sender<Batch>,
    ) -> Result<Sink, PipelineError> {
        for topic in self.sink.topics() {
            self.metrics.set_topic_missing(&topic, false);
        }
        let result = self.publish_all(scored, give_back);
        if !self.pending.is_empty() {
            self.sink.abandon();
        }
        result.map(|()| self.sink)
    }

    fn publish_all(
        &mut self,
        scored: &Receiver<Batch>,
        give_back: &Sender<Batch>,
    ) -> Result<(), PipelineError> {
        let (mut scored, nothing_more) = (scored.clone(), never());
        let mut open = true;
        while (open || !self.pending.is_empty()) && !self.abandon.is_requested() {
            let deliveries = self.sink.deliveries().clone();
            let patience = self.window.as_ref().and_then(|w| w.left(Instant::now()));
            select! {
                recv(scored) -> batch => match batch {
                    Ok(batch) => {
                        self.early.insert(batch.sequence, batch);
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
                default(patience.map_or(LOOK_UP, |left| left.min(LOOK_UP))) => {}
            }
            self.publish_in_order()?;
            if self.outbox.is_due(Instant::now()) {
                self.hand_over()?;
            }
            self.commit_if_due()?;
            self.finish(give_back);
        }
        Ok(())
    }

    /// Publishes what is next, as far as the folder for maps takes them.
    fn publish_in_order(&mut self) -> Result<(), PipelineError> {
        while let Some(batch) = self.early.remove(&self.next) {
            if !self.membership.is_lost(batch.sequence) && !self.shelve(&batch) {
                self.early.insert(batch.sequence, batch);
                break;
            }
            self.next += 1;
            self.publish(batch)?;
        }
        Ok(())
    }

    fn publish(&mut self, batch: Batch) -> Result<(), PipelineError> {
        if self.membership.is_lost(batch.sequence) {
            let tally = Tally::lost(&batch);
            self.pending.push_back(Pending {
                sequence: batch.sequence,
                batch,
                outstanding: 0,
                tally,
                losses: Losses::default(),
                published: Instant::now(),
            });
            return Ok(());
        }
        self.open_window()?;
        self.pending.push_back(Pending {
            sequence: batch.sequence,
            batch: Batch::default(),
            outstanding: 1,
            tally: Tally::default(),
            losses: Losses::default(),
            published: Instant::now(),
        });
        let tally = self.emit(&batch)?;
        let in_transaction = self.window.is_some();
        let pending = self.pending.back_mut().expect("pushed above");
        pending.batch = batch;
        pending.tally = tally;
        if !in_transaction {
            pending.outstanding -= 1;
        }
        self.commit_if_due()
    }

    /// Sends everything there is to say of a batch.
    pub(super) fn emit(&mut self, batch: &Batch) -> Result<Tally, PipelineError> {
        let tally = self.judge(batch)?;
        for letter in &batch.dead_letters {
            self.bury(batch.sequence, letter.clone());
        }
        Ok(tally)
    }

    fn judge(&mut self, batch: &Batch) -> Result<Tally, PipelineError> {
        let mut tally = Tally {
            dead: batch.dead_letters.iter().map(|l| l.error.reason).collect(),
            tombstones: batch.skipped,
            oversized: batch.oversized,
            ..Tally::default()
        };
        let mut told = Vec::new();
        for (i, record) in batch.records().enumerate() {
            let Some(place) = batch.place(i) else {
                tally.scored += 1;
                continue;
            };
            let score = batch.scores[place];
            if let Some(Sighting::Dead(error)) = batch.sightings.get(i) {
                let letter = record.letter(&self.topics[record.from.topic], error.clone());
                tally.dead.push(error.reason);
                self.bury(batch.sequence, letter);
                continue;
            }
            if let Some(flaw) = flaw(batch, i, place) {
                self.bury(batch.sequence, self.unscorable(record, flaw));
                tally.dead.push(Reason::Unscorable);
                continue;
            }
            tally.scored += 1;
            let flagged = self.judge.severity(score, record.segment);
            tally.anomalies.extend(flagged);
            if let (Some(Screened::Audited { cleared, .. }), Some(_)) =
                (batch.screened.get(i), flagged)
            {
                tally.audited_anomalies[usize::from(*cleared)] += 1;
            }
            if flagged.is_some() || self.output.scores_topic.is_some() {
                told.push(Told { i, place, flagged });
            }
        }
        let nearest = self.nearest(batch, &told)?;
        for (Told { i, place, flagged }, nearest) in told.into_iter().zip(nearest) {
            let record = batch.record(i);
            let sighting = batch.sightings.get(i);
            let mut message = match sighting {
                Some(Sighting::Explained(finding)) => {
                    self.picture_message(batch.sequence, record, batch.scores[place], finding)
                }
                // A picture that nobody asks about was seen to above.
                Some(_) => continue,
                None => self.row_message(batch, (i, place), record, nearest),
            };
            if message.headers.iter().any(|(name, _)| name == OMITTED) {
                *tally.omitted.entry("record").or_default() += 1;
            }
            if let Some(traces) = &self.traces {
                let topic = &self.topics[record.from.topic];
                if traces.hand_on(&mut message, topic, record) {
                    tally.published.push(Published {
                        record: i,
                        severity: flagged,
                    });
                }
            }
            if let Some(severity) = flagged {
                tally.shown.push(Anomaly {
                    severity,
                    judged_ms: jiff::Timestamp::now().as_millisecond(),
                    verdict: message.payload.as_slice().into(),
                    picture: sighting.map(|_| record.payload.into()),
                });
                let anomalies = self.output.anomalies_topic.clone();
                self.send(batch.sequence, anomalies, message.clone());
            }
            if let Some(scores) = self.output.scores_topic.clone() {
                self.send(batch.sequence, scores, message);
            }
        }
        Ok(tally)
    }

    /// For each of `told` the number of the normal record that it is most like, if it is an anomaly. Asked for all of a batch at
    /// once, because most of the cost is one a call.
    fn nearest(
        &mut self,
        batch: &Batch,
        told: &[Told],
    ) -> Result<Vec<Option<usize>>, PipelineError> {
        let mut found = vec![None; told.len()];
        let Some(nearest) = &mut self.nearest else {
            return Ok(found);
        };
        let anomalies = || (0..).zip(told).filter(|(_, told)| told.flagged.is_some());
        let rows: Vec<f32> = anomalies()
            .flat_map(|(_, told)| batch.row(told.i))
            .copied()
            .collect();
        for ((at, _), number) in anomalies().zip(nearest.ask(&rows)?) {
            found[at] = number;
        }
        Ok(found)
    }

    fn row_message(
        &self,
        batch: &Batch,
        (i, place): (usize, usize),
        record: Kept<'_>,
        nearest: Option<usize>,
    ) -> Message {
        let verdict = self.judge.judge(
            scored(batch, i, place),
            record.segment,
            nearest.and_then(|n| Some(self.nearest.as_ref()?.record(n))),
            self.output.attributions,
        );
        self.message(record, &verdict)
    }

    pub(super) fn message(&self, record: Kept<'_>, verdict: &Verdict<'_>) -> Message {
        let topic = &self.topics[record.from.topic];
        let carried = self.output.include_record;
        let json = carried
            .then(|| self.input.to_json(record.payload))
            .flatten();
        let omitted = match json.as_deref() {
            Some(json) => unreadable(json.get()),
            None if carried && self.input.is_json_or_typed() => {
                Some("it is too long in JSON".to_owned())
            }
            _ => None,
        };
        let json = json.as_deref().filter(|_| omitted.is_none());
        let mut message = verdict_message(&self.model, topic, record, verdict, json);
        if let Some(why) = omitted {
            message.omit(&["record"], &why);
        }
        message
    }

    fn unscorable(&self, record: Kept<'_>, flaw: String) -> DeadLetter {
        let error = RowError {
            reason: Reason::Unscorable,
            detail: flaw.into(),
        };
        record.letter(&self.topics[record.from.topic], error)
    }

    fn bury(&mut self, sequence: u64, letter: DeadLetter) {
        let topic = self.output.dead_letter_topic.clone();
        self.send(sequence, topic, dead_letter_message(letter));
    }

    /// Has a message sent after those that wait already.
    pub(super) fn send(&mut self, sequence: u64, topic: String, message: Message) {
        let message = self.shaped(sequence, &topic, message);
        let Some(message) = self.fitted(sequence, &topic, message) else {
            return;
        };
        match &mut self.window {
            Some(window) => window.sent(),
            None => self.pending_of(sequence).outstanding += 1,
        }
        self.outbox.put(Outgoing {
            sequence,
            topic,
            message,
        });
    }

    /// Gives the producer all that waits, or as much as its queue takes.
    pub(super) fn hand_over(&mut self) -> Result<(), PipelineError> {
        if !self.topics_are_there() {
            return Ok(());
        }
        while let Some(mut outgoing) = self.outbox.take() {
            let Outgoing {
                sequence,
                topic,
                message,
            } = &outgoing;
            let ticket = Ticket {
                sequence: *sequence,
                alone: self.outbox.is_alone(),
                timestamp_ms: message.timestamp_ms,
            };
            match self.sink.send(ticket, topic, message) {
                Ok(()) => self.outbox.handed_over(Instant::now()),
                Err(SendError::QueueFull) => {
                    self.outbox.put_back(outgoing);
                    break;
                }
                Err(SendError::TooLarge { .. }) => {
                    match self.is_too_large_here(*sequence, topic, message) {
                        Some(slim) => {
                            outgoing.message = slim;
                            self.outbox.put_back(outgoing);
                        }
                        None => self.is_given_up(*sequence),
                    }
                }
                Err(SendError::NoTopic { topic, problem, .. }) => {
                    self.is_absent(&topic, &problem);
                    if let Some(window) = &mut self.window {
                        window.fails(format!("topic {topic}: {problem}"));
                    }
                    self.outbox.put_back(outgoing);
                    break;
                }
                Err(
                    SendError::Failed { topic, problem }
                    | SendError::Invalid { topic, problem, .. },
                ) => match &mut self.window {
                    Some(window) => window.fails(problem),
                    None => return Err(undeliverable(topic, problem)),
                },
            }
        }
        Ok(())
    }

    pub(super) fn delivered(&mut self, delivery: Delivery) -> Result<(), PipelineError> {
        self.outbox.answered();
        if self.window.is_some() {
            return self.delivered_in_window(delivery);
        }
        match delivery.result {
            Ok(()) => {}
            Err(SendError::TooLarge { topic, message }) => {
                self.is_refused(&delivery.ticket, topic, *message);
            }
            Err(SendError::Invalid {
                topic,
                message,
                problem,
            }) => self.is_invalid(delivery.ticket, topic, *message, problem)?,
            Err(SendError::NoTopic {
                topic,
                message,
                problem,
            }) => {
                self.is_absent(&topic, &problem);
                self.send(delivery.ticket.sequence, topic, *message);
            }
            Err(SendError::Failed { topic, problem }) => return Err(undeliverable(topic, problem)),
            Err(SendError::QueueFull) => {
                unreachable!("a queued message is not refused for the queue")
            }
        }
        self.pending_of(delivery.ticket.sequence).outstanding -= 1;
        Ok(())
    }

    fn delivered_in_window(&mut self, delivery: Delivery) -> Result<(), PipelineError> {
        let problem = match delivery.result {
            Ok(()) => None,
            Err(SendError::TooLarge { topic, message }) => {
                self.is_refused(&delivery.ticket, topic, *message);
                return Ok(());
            }
            Err(SendError::Invalid {
                topic,
                message,
                problem,
            }) => return self.is_invalid(delivery.ticket, topic, *message, problem),
            Err(SendError::NoTopic { topic, problem, .. }) => {
                self.is_absent(&topic, &problem);
                Some(format!("topic {topic}: {problem}"))
            }
            Err(SendError::Failed { topic, problem }) => Some(format!("topic {topic}: {problem}")),
            Err(SendError::QueueFull) => {
                unreachable!("a queued message is not refused for the queue")
            }
        };
        let window = self.window.as_mut().expect("asked by the caller");
        match problem {
            None => window.acknowledged(),
            Some(problem) => window.fails(problem),
        }
        Ok(())
    }

    pub(super) fn pending_of(&mut self, sequence: u64) -> &mut Pending {
        let first = self.pending[0].sequence;
        &mut self.pending[(sequence - first) as usize]
    }

    /// Gives back, in order, the batches that are delivered whole.
    fn finish(&mut self, give_back: &Sender<Batch>) {
        while self.pending.front().is_some_and(|p| p.outstanding == 0) {
            let Pending {
                batch,
                mut tally,
                losses,
                published,
                ..
            } = self.pending.pop_front().expect("seen above");
            if tally.lost == 0 {
                if let Some(traces) = &self.traces {
                    traces.send(&batch, &tally, published, &self.topics);
                }
                let drift = self.drift.see(batch.fair_scores());
                self.metrics.score_drift_ratio.set(drift);
            }
            let (records, anomalies) = (batch.consumed(), tally.anomalies.len());
            tracing::debug!(
                sequence = batch.sequence,
                records,
                anomalies,
                "batch delivered"
            );
            tally.lose(losses);
            tally.count(&batch, &self.metrics, &self.recent);
            // The intake may be gone after a drain that did not end in time.
            let _ = give_back.send(batch);
        }
    }
}

/// What the model says of record `i`, which is a row.
fn scored(batch: &Batch, i: usize, place: usize) -> Scored<'_> {
    Scored::at(&batch.scores, place, batch.row(i))
}

/// Why there can be no verdict on record `i`, if there can be none.
fn flaw(batch: &Batch, i: usize, place: usize) -> Option<String> {
    // They are in the order of their places.
    if let Ok(at) = batch.refused.binary_search_by_key(&place, |(at, _)| *at) {
        return Some(format!("the model fails on it: {}", batch.refused[at].1));
    }
    if batch.sightings.is_empty() {
        return scored(batch, i, place).flaw();
    }
    let score = batch.scores[place];
    (!is_score(score)).then(|| format!("the model's score is {score}"))
}

pub(super) fn undeliverable(topic: String, problem: String) -> PipelineError {
    KafkaError::Delivery { topic, problem }.into()
}
