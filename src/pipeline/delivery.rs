//! Brings the messages of judged batches to the brokers, and each batch to its end: acknowledged, or committed together with
//! its offsets. Owns the producer and everything that is not delivered yet.

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

/// How often a wait checks whether it is still wanted.
pub const LOOK_UP: Duration = Duration::from_millis(100);
/// After a refusal that may be about any message of a batch, so many messages are sent one by one.
const ALONE: usize = 1000;
/// A transaction that is aborted this often in a row will not go through.
const ATTEMPTS: u32 = 10;
/// How long the brokers may take to let another producer in.
const REPLACED_WITHIN: Duration = Duration::from_secs(30);
const SAY_EVERY: Duration = Duration::from_secs(10);
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
    /// When it was last logged that a topic refuses the time of sending.
    said_time: Option<Instant>,
    metrics: Metrics,
    abandon: Shutdown,
}

/// When what was sent counts as delivered.
enum Guarantee {
    /// Each message when it is acknowledged.
    AtLeastOnce,
    /// All messages of a transaction when that is committed.
    ExactlyOnce(TransactionWindow),
}

/// Whether the producer makes smaller batches, because one was refused for its size.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SmallBatches {
    No,
    Wanted,
    Made,
}

impl Delivery {
    /// Exactly-once with a `window`, else at-least-once. `abandon` ends every wait.
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
            said_time: None,
            metrics,
            abandon,
        }
    }

    /// Whether the batch's partitions belong to another member of the group by now.
    pub fn is_lost(&self, sequence: u64) -> bool {
        self.membership.is_lost(sequence)
    }

    pub fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// The next batch that is delivered whole, in order.
    pub fn take_finished(&mut self) -> Option<Pending> {
        self.pending.take_finished()
    }

    /// The brokers' answers, for [`Delivery::answered`].
    pub fn answers(&self) -> Receiver<kafka::Delivery> {
        self.sink.deliveries().clone()
    }

    /// The time until the open transaction is due, if there is one.
    pub fn due_in(&self, now: Instant) -> Option<Duration> {
        match &self.guarantee {
            Guarantee::AtLeastOnce => None,
            Guarantee::ExactlyOnce(window) => window.left(now),
        }
    }

    /// Gives the producer back. What is not delivered is thrown away: without that, ending the process waits for brokers that
    /// may be gone.
    pub fn into_sink(self) -> Sink {
        if !self.pending.is_empty() {
            self.sink.abandon();
        }
        self.sink
    }

    /// Judges a batch and sends what there is to say about it.
    ///
    /// # Errors
    /// The model failed, or Kafka cannot go on.
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

    /// Puts a message behind those that wait already.
    fn send(&mut self, sequence: u64, topic: String, message: Message) {
        let shaped = self.shaper.shape(self.sink.limits(), &topic, message);
        let Some(message) = self.booked(sequence, shaped) else {
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

    /// Enters into the batch's books what a message leaves out, or that there is none.
    fn booked(&mut self, sequence: u64, shaped: Result<Shaped, Undeliverable>) -> Option<Message> {
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

    /// A message that was sent needs no further answer.
    fn settle(&mut self, sequence: u64) {
        match &mut self.guarantee {
            Guarantee::AtLeastOnce => self.pending.of(sequence).outstanding -= 1,
            Guarantee::ExactlyOnce(window) => window.acknowledged(),
        }
    }

    /// A message cannot be delivered: that ends the daemon, or only the transaction.
    fn fail(&mut self, topic: String, problem: String) -> Result<(), PipelineError> {
        match &mut self.guarantee {
            Guarantee::AtLeastOnce => Err(KafkaError::Delivery { topic, problem }.into()),
            Guarantee::ExactlyOnce(window) => {
                window.fails(format!("topic {topic}: {problem}"));
                Ok(())
            }
        }
    }

    /// Hands messages over if some may go now.
    ///
    /// # Errors
    /// A message can never be delivered.
    pub fn hand_over_if_due(&mut self) -> Result<(), PipelineError> {
        match self.outbox.is_due(Instant::now()) {
            true => self.hand_over(),
            false => Ok(()),
        }
    }

    /// Gives the producer all that waits, or as much as its queue takes.
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
                    match self.made_smaller_for_client(sequence, topic, message) {
                        Some(slim) => {
                            outgoing.message = slim;
                            self.outbox.put_back(outgoing);
                        }
                        None => self.settle(sequence),
                    }
                }
                Err(SendError::NoTopic { topic, problem, .. }) => {
                    self.outbox.put_back(outgoing);
                    self.is_absent(&topic, &problem);
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

    /// Takes the brokers' answer to one message.
    ///
    /// # Errors
    /// The message can never be delivered.
    pub fn answered(&mut self, answer: kafka::Delivery) -> Result<(), PipelineError> {
        self.outbox.answered();
        let ticket = answer.ticket;
        match answer.result {
            Ok(()) => self.settle(ticket.sequence),
            Err(SendError::TooLarge { topic, message }) => {
                self.is_too_large(ticket, topic, *message);
            }
            Err(SendError::Invalid {
                topic,
                message,
                problem,
            }) => self.is_invalid(ticket, topic, *message, problem)?,
            Err(SendError::NoTopic {
                topic,
                message,
                problem,
            }) => {
                self.is_absent(&topic, &problem);
                if let Guarantee::AtLeastOnce = self.guarantee {
                    self.send_in_place(ticket.sequence, topic, *message);
                }
            }
            Err(SendError::Failed { topic, problem }) => self.fail(topic, problem)?,
            Err(SendError::QueueFull) => {
                unreachable!("a queued message is not refused for the queue")
            }
        }
        Ok(())
    }

    /// At-least-once: sends this message in place of the one that was refused.
    fn send_in_place(&mut self, sequence: u64, topic: String, message: Message) {
        self.send(sequence, topic, message);
        self.settle(sequence);
    }

    fn is_absent(&mut self, topic: &str, problem: &str) {
        self.absent.add(topic, problem);
        if let Guarantee::ExactlyOnce(window) = &mut self.guarantee {
            window.fails(format!("topic {topic}: {problem}"));
        }
    }

    /// The client found a message too large: it was not even sent.
    fn made_smaller_for_client(
        &mut self,
        sequence: u64,
        topic: &str,
        message: &Message,
    ) -> Option<Message> {
        let (size, client) = (message.size(), self.sink.limits().client());
        let fit = if client < size { client } else { size / 2 };
        self.made_smaller(sequence, topic, message, fit)
    }

    fn made_smaller(
        &mut self,
        sequence: u64,
        topic: &str,
        message: &Message,
        fit: usize,
    ) -> Option<Message> {
        let (limits, size) = (self.sink.limits(), message.size());
        let slim = self.shaper.slim(limits, topic, message, size, fit);
        self.booked(sequence, slim)
    }

    /// The brokers found a message too large.
    fn is_too_large(&mut self, ticket: Ticket, topic: String, message: Message) {
        let size = message.size();
        if let Guarantee::ExactlyOnce(window) = &mut self.guarantee {
            window.fails_for_message(format!("a message is too large for topic {topic}"));
            match self.fit(&topic, size, self.small_batches == SmallBatches::Made) {
                None => self.small_batches = SmallBatches::Wanted,
                Some(fit) => self.shaper.refuses_size(topic, size, fit),
            }
            return;
        }
        let mut fit = self.fit(&topic, size, ticket.alone);
        if fit.is_none() && !self.outbox.is_alone() {
            self.sink.ask_limits();
            fit = self.fit(&topic, size, ticket.alone);
        }
        let again = match fit {
            None => {
                self.outbox.go_alone(ALONE);
                Some(message)
            }
            Some(fit) => self.made_smaller(ticket.sequence, &topic, &message, fit),
        };
        match again {
            Some(again) => self.send_in_place(ticket.sequence, topic, again),
            None => self.settle(ticket.sequence),
        }
    }

    /// The size that a topic may take in place of `size`, which it refused; `None` if the refusal may be about another message of
    /// the same batch.
    fn fit(&self, topic: &str, size: usize, alone: bool) -> Option<usize> {
        match self.sink.limits().topic(topic) {
            Some(limit) if limit < size => Some(limit),
            _ if alone => Some(size / 2),
            _ => None,
        }
    }

    /// The brokers refused a message for its timestamp or its lack of a key, or its batch for that of another message. It is
    /// sent again in the shape that the topic's settings want by now.
    fn is_invalid(
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
                self.refuses_now(ticket, topic, message, &problem);
                return Ok(());
            }
        }
        match &mut self.guarantee {
            Guarantee::AtLeastOnce => self.send_in_place(ticket.sequence, topic, message),
            // Its batch is judged again, and its messages are shaped again.
            Guarantee::ExactlyOnce(window) => {
                window.fails_for_message(format!("topic {topic}: {problem}"));
            }
        }
        Ok(())
    }

    /// A topic refused a message that librdkafka had stamped with the time of its sending. Sent again it has another time.
    fn refuses_now(&mut self, ticket: Ticket, topic: String, message: Message, problem: &str) {
        let limits = self.sink.limits().of_time(&topic);
        let problem = format!(
            "{problem}, although the message was stamped when it was sent: it waited longer than the topic takes ({limits}), or the clock of this host is wrong"
        );
        match &mut self.guarantee {
            Guarantee::ExactlyOnce(window) => window.fails(format!("topic {topic}: {problem}")),
            Guarantee::AtLeastOnce => {
                if self
                    .said_time
                    .is_none_or(|said| said.elapsed() >= SAY_EVERY)
                {
                    self.said_time = Some(Instant::now());
                    tracing::warn!("topic {topic}: {problem}; trying again");
                }
                std::thread::sleep(LOOK_UP);
                self.send_in_place(ticket.sequence, topic, message);
            }
        }
    }

    fn open_transaction(&mut self) -> Result<(), KafkaError> {
        if let Guarantee::ExactlyOnce(window) = &mut self.guarantee {
            if !window.is_open() {
                self.sink.begin()?;
                window.open();
            }
            window.add_batch();
        }
        Ok(())
    }

    /// Commits the open transaction if it is due. One that is aborted is sent again, without the batches whose partitions are
    /// lost, from the batches themselves: judging them again gives the same messages.
    ///
    /// # Errors
    /// Kafka cannot go on, or the transaction does not go through.
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
                    self.is_committed();
                    return Ok(());
                }
                Outcome::Aborted(problem) => problem,
                Outcome::Stuck => {
                    self.replace_sink()?;
                    "librdkafka does not come back from it".to_owned()
                }
            };
            self.count(ABORTED);
            tracing::warn!("transaction aborted: {problem}; its records are sent again in another");
            // A transaction with other messages is no further attempt at the same, and one that lacked a topic waits for it.
            // Each refusal may cost a second abort, in which librdkafka finds that messages are missing.
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
        // Later batches overwrite the offsets of earlier ones.
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

    fn is_committed(&mut self) {
        self.window().reset();
        for pending in self.pending.unfinished() {
            pending.outstanding = 0;
        }
    }

    /// Waits until every message of the transaction is acknowledged, or one has failed. librdkafka would tell at the commit as
    /// well, but not which message failed.
    fn await_acknowledgements(&mut self) -> Result<(), PipelineError> {
        let answers = self.answers();
        self.hand_over()?;
        while self.window().awaits_acknowledgements() {
            if self.abandon.is_requested() {
                self.window().fails("given up".to_owned());
            } else if let Ok(answer) = answers.recv_timeout(LOOK_UP) {
                self.answered(answer)?;
                self.hand_over()?;
            }
        }
        Ok(())
    }

    /// Opens another transaction with the batches of the aborted one that are still ours; `false` if there are none.
    fn send_again(&mut self, judging: &mut Judging) -> Result<bool, PipelineError> {
        // All answers are here since the abort; they tell which messages were refused.
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

    /// Waits for topics that are missing, unless the wait is abandoned; `false` if none is missing.
    fn await_topics(&mut self) -> bool {
        self.absent.look_for_all(&self.sink);
        let mut waited = false;
        while self.absent.block(&self.sink) && !self.abandon.is_requested() {
            waited = true;
            std::thread::sleep(LOOK_UP);
        }
        waited
    }

    /// A transaction failed for the size of a batch: another producer makes smaller ones.
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
        if self.abandon.is_requested() {
            return Ok(());
        }
        tracing::warn!("a transaction is stuck; another producer takes its place");
        self.sink.replace(REPLACED_WITHIN, &self.abandon)
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
