//! Delivers the messages of judged batches to the brokers. A batch is finished when its messages are acknowledged, or
//! committed together with its offsets. This module owns the producer and everything that is not delivered yet.

mod absent_topics;
mod open_transaction;
mod outbox;
mod pending;
mod shaper;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use crate::batch::{Batch, TopicPartition};
use crate::kafka::{self, KafkaError, Membership, Outcome, SendError, Sink, Ticket};
use crate::message::Message;
use crate::metrics::{ABORTED, COMMITTED, Metrics};
use crate::shutdown::Shutdown;

use super::PipelineError;
use super::judging::Judging;
use absent_topics::AbsentTopics;
pub use open_transaction::TransactionWindow;
use outbox::{Outbox, Outgoing};
pub use pending::Pending;
use pending::PendingBatches;
use shaper::{Shaped, Shaper, Undeliverable};

/// How often a waiting thread checks whether it should stop waiting.
pub const CHECK_EVERY: Duration = Duration::from_millis(100);
/// The number of messages sent one by one after a refusal that may concern any message of a Kafka batch.
const SENT_ALONE: usize = 1000;
/// The number of consecutive aborts after which a transaction is given up.
const ATTEMPTS: u32 = 10;
/// How long the brokers may take to accept a new producer.
const REPLACED_WITHIN: Duration = Duration::from_secs(30);
const LOG_EVERY: Duration = Duration::from_secs(10);
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

pub struct Delivery {
    sink: Sink,
    guarantee: Guarantee,
    membership: Membership,
    pending: PendingBatches,
    outbox: Outbox,
    shaper: Shaper,
    absent: AbsentTopics,
    small_batches: SmallBatches,
    /// When the log last reported that a topic refuses the time of sending.
    time_refusal_logged: Option<Instant>,
    metrics: Metrics,
    abandon: Shutdown,
}

/// When a sent message counts as delivered.
enum Guarantee {
    /// A message counts when it is acknowledged.
    AtLeastOnce,
    /// All messages of a transaction count when the transaction is committed.
    ExactlyOnce(TransactionWindow),
}

/// Whether the producer makes smaller Kafka batches, because a topic refused one for its size.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SmallBatches {
    No,
    Wanted,
    Made,
}

impl Delivery {
    /// Creates the delivery: exactly-once with a `window`, at-least-once without. `abandon` ends every wait.
    pub fn new(
        sink: Sink,
        membership: Membership,
        window: Option<TransactionWindow>,
        metrics: Metrics,
        abandon: Shutdown,
    ) -> Delivery {
        Delivery {
            absent: AbsentTopics::new(&sink, metrics.clone()),
            sink,
            guarantee: window.map_or(Guarantee::AtLeastOnce, Guarantee::ExactlyOnce),
            membership,
            pending: PendingBatches::default(),
            outbox: Outbox::default(),
            shaper: Shaper::default(),
            small_batches: SmallBatches::No,
            time_refusal_logged: None,
            metrics,
            abandon,
        }
    }

    /// Returns whether the batch's partitions belong to another member of the group by now.
    pub fn is_lost(&self, sequence: u64) -> bool {
        self.membership.is_lost(sequence)
    }

    pub fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// Returns the next batch that is completely delivered, in order.
    pub fn take_finished(&mut self) -> Option<Pending> {
        self.pending.take_finished()
    }

    /// Returns the channel of the brokers' answers. Pass each answer to [`Delivery::answered`].
    pub fn answers(&self) -> Receiver<kafka::Delivery> {
        self.sink.deliveries().clone()
    }

    /// Returns the time until the open transaction is due, if one is open.
    pub fn due_in(&self, now: Instant) -> Option<Duration> {
        match &self.guarantee {
            Guarantee::AtLeastOnce => None,
            Guarantee::ExactlyOnce(window) => window.left(now),
        }
    }

    /// Returns the producer and discards undelivered messages. Otherwise the process would wait at exit for brokers
    /// that may be gone.
    pub fn into_sink(self) -> Sink {
        if !self.pending.is_empty() {
            self.sink.abandon();
        }
        self.sink
    }

    /// Judges a batch and sends its messages.
    ///
    /// # Errors
    /// When the model failed, or Kafka failed for good.
    pub fn publish(&mut self, judging: &mut Judging, batch: Batch) -> Result<(), PipelineError> {
        let sequence = batch.sequence;
        if self.membership.is_lost(sequence) {
            self.pending.skip(batch);
            return Ok(());
        }
        self.open_transaction()?;
        self.pending.open(sequence);
        let judged = judging.judge(&batch)?;
        for (topic, message) in judged.messages {
            self.send(sequence, topic, message);
        }
        let pending = self.pending.of(sequence);
        (pending.batch, pending.tally) = (batch, judged.tally);
        if let Guarantee::AtLeastOnce = self.guarantee {
            pending.outstanding -= 1;
        }
        self.commit_if_due(judging)
    }

    /// Adds a message to the outbox, in the shape that its topic accepts.
    fn send(&mut self, sequence: u64, topic: String, message: Message) {
        let shaped = self.shaper.shape(self.sink.limits(), &topic, message);
        let Some(message) = self.record_losses(sequence, shaped) else {
            return;
        };
        match &mut self.guarantee {
            Guarantee::AtLeastOnce => self.pending.of(sequence).outstanding += 1,
            Guarantee::ExactlyOnce(window) => window.sent(),
        }
        self.outbox.put(Outgoing {
            sequence,
            topic,
            message,
        });
    }

    /// Records in the batch's losses which parts a message leaves out, or that the message cannot be sent.
    fn record_losses(
        &mut self,
        sequence: u64,
        shaped: Result<Shaped, Undeliverable>,
    ) -> Option<Message> {
        let losses = &mut self.pending.of(sequence).losses;
        match shaped {
            Ok(Shaped { message, left_out }) => {
                for part in left_out {
                    *losses.omitted.entry(part).or_default() += 1;
                }
                Some(message)
            }
            Err(Undeliverable(about)) => {
                losses.lose(&about);
                None
            }
        }
    }

    /// Notes that a sent message needs no further answer.
    fn settle(&mut self, sequence: u64) {
        match &mut self.guarantee {
            Guarantee::AtLeastOnce => self.pending.of(sequence).outstanding -= 1,
            Guarantee::ExactlyOnce(window) => window.acknowledged(),
        }
    }

    /// Handles a message that cannot be delivered. With at-least-once this ends the daemon, with exactly-once only the
    /// transaction.
    fn fail(&mut self, topic: String, problem: String) -> Result<(), PipelineError> {
        match &mut self.guarantee {
            Guarantee::AtLeastOnce => Err(KafkaError::Delivery { topic, problem }.into()),
            Guarantee::ExactlyOnce(window) => {
                window.fails(format!("topic {topic}: {problem}"));
                Ok(())
            }
        }
    }

    /// Hands waiting messages to the producer if they are due.
    ///
    /// # Errors
    /// When a message can never be delivered.
    pub fn hand_over_if_due(&mut self) -> Result<(), PipelineError> {
        match self.outbox.is_due(Instant::now()) {
            true => self.hand_over(),
            false => Ok(()),
        }
    }

    /// Hands the waiting messages to the producer, until its queue is full.
    fn hand_over(&mut self) -> Result<(), PipelineError> {
        if self.absent.block(&self.sink) {
            return Ok(());
        }
        while let Some(mut outgoing) = self.outbox.take() {
            let Outgoing {
                sequence,
                topic,
                message,
            } = &outgoing;
            let sequence = *sequence;
            let ticket = Ticket {
                sequence,
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
                    match self.shrink_for_client(sequence, topic, message) {
                        Some(slim) => {
                            outgoing.message = slim;
                            self.outbox.put_back(outgoing);
                        }
                        None => self.settle(sequence),
                    }
                }
                Err(SendError::NoTopic { topic, problem, .. }) => {
                    self.outbox.put_back(outgoing);
                    self.note_absent_topic(&topic, &problem);
                    break;
                }
                Err(
                    SendError::Failed { topic, problem }
                    | SendError::Invalid { topic, problem, .. },
                ) => self.fail(topic, problem)?,
            }
        }
        Ok(())
    }

    /// Handles the brokers' answer to one message.
    ///
    /// # Errors
    /// When the message can never be delivered.
    pub fn answered(&mut self, answer: kafka::Delivery) -> Result<(), PipelineError> {
        self.outbox.answered();
        let ticket = answer.ticket;
        match answer.result {
            Ok(()) => self.settle(ticket.sequence),
            Err(SendError::TooLarge { topic, message }) => {
                self.handle_too_large(ticket, topic, *message);
            }
            Err(SendError::Invalid {
                topic,
                message,
                problem,
            }) => self.handle_invalid(ticket, topic, *message, problem)?,
            Err(SendError::NoTopic {
                topic,
                message,
                problem,
            }) => {
                self.note_absent_topic(&topic, &problem);
                if let Guarantee::AtLeastOnce = self.guarantee {
                    self.send_in_place(ticket.sequence, topic, *message);
                }
            }
            Err(SendError::Failed { topic, problem }) => self.fail(topic, problem)?,
            Err(SendError::QueueFull) => {
                unreachable!("a message in the queue is not refused by the queue")
            }
        }
        Ok(())
    }

    /// With at-least-once: sends this message instead of the one that was refused.
    fn send_in_place(&mut self, sequence: u64, topic: String, message: Message) {
        self.send(sequence, topic, message);
        self.settle(sequence);
    }

    fn note_absent_topic(&mut self, topic: &str, problem: &str) {
        self.absent.add(topic, problem);
        if let Guarantee::ExactlyOnce(window) = &mut self.guarantee {
            window.fails(format!("topic {topic}: {problem}"));
        }
    }

    /// Shrinks a message that the client found too large before sending it.
    fn shrink_for_client(
        &mut self,
        sequence: u64,
        topic: &str,
        message: &Message,
    ) -> Option<Message> {
        let (size, client) = (message.size(), self.sink.limits().client());
        let fit = if client < size { client } else { size / 2 };
        self.shrink(sequence, topic, message, fit)
    }

    fn shrink(
        &mut self,
        sequence: u64,
        topic: &str,
        message: &Message,
        fit: usize,
    ) -> Option<Message> {
        let (limits, size) = (self.sink.limits(), message.size());
        let slim = self.shaper.slim(limits, topic, message, size, fit);
        self.record_losses(sequence, slim)
    }

    /// Handles a message that the brokers found too large.
    fn handle_too_large(&mut self, ticket: Ticket, topic: String, message: Message) {
        let size = message.size();
        if let Guarantee::ExactlyOnce(window) = &mut self.guarantee {
            window.fails_for_message(format!("a message is too large for topic {topic}"));
            match self.smaller_size(&topic, size, self.small_batches == SmallBatches::Made) {
                None => self.small_batches = SmallBatches::Wanted,
                Some(fit) => self.shaper.refuses_size(topic, size, fit),
            }
            return;
        }
        let mut fit = self.smaller_size(&topic, size, ticket.alone);
        if fit.is_none() && !self.outbox.is_alone() {
            self.sink.ask_limits();
            fit = self.smaller_size(&topic, size, ticket.alone);
        }
        let again = match fit {
            None => {
                self.outbox.go_alone(SENT_ALONE);
                Some(message)
            }
            Some(fit) => self.shrink(ticket.sequence, &topic, &message, fit),
        };
        match again {
            Some(again) => self.send_in_place(ticket.sequence, topic, again),
            None => self.settle(ticket.sequence),
        }
    }

    /// Returns the size that a topic may accept after it refused `size`. Returns `None` if the refusal may concern
    /// another message of the same Kafka batch.
    fn smaller_size(&self, topic: &str, size: usize, alone: bool) -> Option<usize> {
        match self.sink.limits().topic(topic) {
            Some(limit) if limit < size => Some(limit),
            _ if alone => Some(size / 2),
            _ => None,
        }
    }

    /// Handles a rejection that an invalid timestamp or a missing key caused, in this message or in another one of the same
    /// Kafka batch. The message is sent again in the shape that the topic's current settings require.
    fn handle_invalid(
        &mut self,
        ticket: Ticket,
        topic: String,
        message: Message,
        problem: String,
    ) -> Result<(), PipelineError> {
        self.sink.ask_limits();
        let limits = self.sink.limits();
        let needs_key = message.key.is_none() && limits.needs_key(&topic);
        match message.timestamp_ms {
            _ if needs_key => {}
            Some(time) if self.shaper.takes_time(limits, &topic, time) => {
                self.shaper.refuses_times(&topic);
            }
            Some(_) => {}
            None => {
                self.handle_refused_send_time(ticket, topic, message, &problem);
                return Ok(());
            }
        }
        match &mut self.guarantee {
            Guarantee::AtLeastOnce => self.send_in_place(ticket.sequence, topic, message),
            // The batch is judged again, and its messages get their new shape then.
            Guarantee::ExactlyOnce(window) => {
                window.fails_for_message(format!("topic {topic}: {problem}"));
            }
        }
        Ok(())
    }

    /// Handles a topic's refusal of a message that librdkafka had stamped with the time of sending. The message is sent
    /// again with a new time.
    fn handle_refused_send_time(
        &mut self,
        ticket: Ticket,
        topic: String,
        message: Message,
        problem: &str,
    ) {
        let limits = self.sink.limits().of_time(&topic);
        let problem = format!(
            "{problem}, although the message got its timestamp when it was sent: it waited longer than the topic allows ({limits}), or the clock of this host is wrong"
        );
        match &mut self.guarantee {
            Guarantee::ExactlyOnce(window) => window.fails(format!("topic {topic}: {problem}")),
            Guarantee::AtLeastOnce => {
                if self
                    .time_refusal_logged
                    .is_none_or(|logged| logged.elapsed() >= LOG_EVERY)
                {
                    self.time_refusal_logged = Some(Instant::now());
                    tracing::warn!("topic {topic}: {problem}; trying again");
                }
                std::thread::sleep(CHECK_EVERY);
                self.send_in_place(ticket.sequence, topic, message);
            }
        }
    }

    fn open_transaction(&mut self) -> Result<(), KafkaError> {
        if let Guarantee::AtLeastOnce = self.guarantee {
            return Ok(());
        }
        if !self.window().is_open() {
            if self.sink.must_be_replaced() {
                tracing::info!(
                    "the brokers were slow to end a transaction; a new producer makes the next one, so that no late request touches it"
                );
                self.replace_sink()?;
            }
            self.sink.begin()?;
            self.window().open();
        }
        self.window().add_batch();
        Ok(())
    }

    /// Commits the open transaction if it is due. If it is aborted, its batches are judged again, which gives the same
    /// messages, and are sent in another transaction. Batches whose partitions are lost are left out.
    ///
    /// # Errors
    /// When Kafka fails for good, or the transaction is aborted too often.
    pub fn commit_if_due(&mut self, judging: &mut Judging) -> Result<(), PipelineError> {
        match &self.guarantee {
            Guarantee::ExactlyOnce(window) if window.is_due(Instant::now()) => self.commit(judging),
            _ => Ok(()),
        }
    }

    fn commit(&mut self, judging: &mut Judging) -> Result<(), PipelineError> {
        let mut backoff = FIRST_BACKOFF;
        let mut attempts = 0;
        while attempts < ATTEMPTS {
            let problem = match self.try_commit()? {
                Outcome::Committed => {
                    self.count(COMMITTED);
                    self.finish_transaction();
                    return Ok(());
                }
                // The process ends, so nothing is sent again.
                Outcome::GivenUp => return Ok(()),
                _ if self.abandon.is_requested() => return Ok(()),
                Outcome::Aborted(problem) => problem,
                Outcome::Stuck => {
                    tracing::warn!(
                        "a transaction is stuck; a new producer replaces the one that opened it"
                    );
                    self.replace_sink()?;
                    "a call of librdkafka did not return".to_owned()
                }
            };
            self.count(ABORTED);
            tracing::warn!(
                "transaction aborted: {problem}; its messages are sent again in another transaction"
            );
            // A transaction with other messages is not another attempt at the same transaction, and one that lacked a
            // topic has waited for it. Each refusal may cost a second abort, in which librdkafka finds that messages
            // are missing.
            let next_differs = self.window().failed().is_some_and(|f| f.next_differs);
            if next_differs || self.await_topics() {
                (attempts, backoff) = (0, FIRST_BACKOFF);
            } else {
                attempts += 1;
                std::thread::sleep(backoff);
                backoff = LONGEST_BACKOFF.min(2 * backoff);
            }
            self.make_small_batches()?;
            if self.abandon.is_requested() || !self.send_again(judging)? {
                return Ok(());
            }
        }
        let problem = format!("aborted {ATTEMPTS} times in a row, see the log");
        Err(KafkaError::Transaction(problem).into())
    }

    fn try_commit(&mut self) -> Result<Outcome, PipelineError> {
        self.await_acknowledgements()?;
        if let Some(failed) = self.window().failed() {
            let problem = failed.problem.clone();
            return Ok(self.sink.abort(problem, &self.abandon)?);
        }
        // The offsets of later batches replace those of earlier batches.
        let mut offsets: BTreeMap<TopicPartition, i64> = BTreeMap::new();
        let mut first = None;
        for pending in self.pending.unfinished() {
            first.get_or_insert(pending.batch.sequence);
            offsets.extend(pending.batch.offsets.iter().copied());
        }
        let first = first.expect("a transaction holds a batch");
        let offsets: Vec<_> = offsets.into_iter().collect();
        let committed = self
            .sink
            .commit(&self.membership, first, &offsets, &self.abandon);
        Ok(committed?)
    }

    fn finish_transaction(&mut self) {
        self.window().reset();
        for pending in self.pending.unfinished() {
            pending.outstanding = 0;
        }
    }

    /// Waits until every message of the transaction is acknowledged, or one has failed. The commit would fail as well,
    /// but would not show which message failed.
    fn await_acknowledgements(&mut self) -> Result<(), PipelineError> {
        let answers = self.answers();
        self.hand_over()?;
        while self.window().awaits_acknowledgements() {
            if self.abandon.is_requested() {
                self.window()
                    .fails("the daemon stops without waiting for it".to_owned());
            } else if let Ok(answer) = answers.recv_timeout(CHECK_EVERY) {
                self.answered(answer)?;
                self.hand_over()?;
            }
        }
        Ok(())
    }

    /// Opens another transaction with the batches of the aborted one that this member still owns. Returns `false` if
    /// there are none.
    fn send_again(&mut self, judging: &mut Judging) -> Result<bool, PipelineError> {
        // Since the abort, all answers have arrived. They show which messages were refused.
        while let Ok(answer) = self.sink.deliveries().try_recv() {
            self.answered(answer)?;
        }
        self.outbox.clear();
        self.window().reset();
        let mut ours = Vec::new();
        for pending in self.pending.unfinished() {
            match self.membership.is_lost(pending.sequence()) {
                true => pending.give_up(),
                false => ours.push(pending.sequence()),
            }
        }
        for &sequence in &ours {
            self.open_transaction()?;
            let pending = self.pending.of(sequence);
            pending.losses = Default::default();
            let judged = judging.judge(&pending.batch)?;
            for (topic, message) in judged.messages {
                self.send(sequence, topic, message);
            }
        }
        Ok(!ours.is_empty())
    }

    /// Waits for missing topics until they exist or the wait is abandoned. Returns `false` if none was missing.
    fn await_topics(&mut self) -> bool {
        self.absent.look_for_all(&self.sink);
        let mut waited = false;
        while self.absent.block(&self.sink) && !self.abandon.is_requested() {
            waited = true;
            std::thread::sleep(CHECK_EVERY);
        }
        waited
    }

    /// Replaces the producer by one with smaller Kafka batches, if a transaction failed because a batch was too large.
    fn make_small_batches(&mut self) -> Result<(), KafkaError> {
        if self.small_batches != SmallBatches::Wanted {
            return Ok(());
        }
        self.small_batches = SmallBatches::No;
        if !self.abandon.is_requested() {
            self.sink.shrink_batches(REPLACED_WITHIN, &self.abandon)?;
            self.small_batches = SmallBatches::Made;
        }
        Ok(())
    }

    fn replace_sink(&mut self) -> Result<(), KafkaError> {
        let replaced = self.sink.replace(REPLACED_WITHIN, &self.abandon);
        replaced.map_err(|error| match error {
            KafkaError::Stopped => {
                KafkaError::Transaction("stopped before its producer was replaced".to_owned())
            }
            error => error,
        })
    }

    /// # Panics
    /// With at-least-once, which has no transactions to commit.
    fn window(&mut self) -> &mut TransactionWindow {
        match &mut self.guarantee {
            Guarantee::ExactlyOnce(window) => window,
            Guarantee::AtLeastOnce => unreachable!("only exactly-once commits"),
        }
    }

    fn count(&self, outcome: &str) {
        self.metrics
            .transactions
            .with_label_values(&[outcome])
            .inc();
    }
}
