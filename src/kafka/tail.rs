//! The end of a partition may hold no record: markers of transactions, aborted records, what compaction removed. The
//! consumer is not told of them, so a second one looks: it reads from the first offset that is not finished. If it comes
//! to the end and saw no record, everything below the end is finished. It never sees past an open transaction.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use super::progress::{Name, QUIET, Tail};
use super::quiet::Quiet;
use super::{Source, client_config};
use crate::batch::TopicPartition;
use crate::config::Kafka;

const POLL: Duration = Duration::from_millis(100);
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// How long a look may take: at first, and when many aborted records have to be read.
const LOOK_WITHIN: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// Partitions of one topic, each with the offset to look from.
struct Question {
    topic: String,
    from: BTreeMap<i32, i64>,
}

impl Question {
    fn names(&self) -> impl Iterator<Item = Name> {
        self.from
            .keys()
            .map(|partition| (self.topic.clone(), *partition))
    }
}

struct Answer {
    topic: String,
    found: BTreeMap<i32, Found>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    NoRecordBelow(i64),
    Record,
    /// It did not come to the end in time.
    Unknown,
}

/// The thread that looks, started when it is first needed.
pub(super) struct Tails {
    config: ClientConfig,
    looker: Option<Looker>,
    busy: bool,
    /// Partitions, where the look began, and the end below which no record is left.
    empty: Vec<(Name, i64, i64)>,
}

struct Looker {
    questions: Sender<Question>,
    answers: Receiver<Answer>,
}

impl Tails {
    pub fn new(kafka: &Kafka) -> Tails {
        Tails {
            config: config(kafka),
            looker: None,
            busy: false,
            empty: Vec::new(),
        }
    }

    fn ask(&mut self, question: Question) {
        if self.looker.is_none() {
            // Without a thread it is tried again later.
            self.looker = start(&self.config).ok();
        }
        let looker = self.looker.as_ref();
        self.busy = looker.is_some_and(|looker| looker.questions.try_send(question).is_ok());
    }

    fn answer(&mut self) -> Option<Answer> {
        match self.looker.as_ref()?.answers.try_recv() {
            Ok(answer) => {
                self.busy = false;
                Some(answer)
            }
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                self.looker = None;
                self.busy = false;
                None
            }
        }
    }
}

fn config(kafka: &Kafka) -> ClientConfig {
    let mut config = client_config(kafka, &kafka.consumer);
    // It is never a member of the group.
    config.remove("group.instance.id");
    config
        .set("group.id", &kafka.group_id)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "earliest")
        .set("statistics.interval.ms", "0")
        .set("queued.min.messages", "1")
        .set("queued.max.messages.kbytes", "1024");
    config
}

fn start(config: &ClientConfig) -> std::io::Result<Looker> {
    let (questions, asked) = bounded::<Question>(1);
    let (answer, answers) = bounded(1);
    let config = config.clone();
    let looks = move || {
        let mut consumer = None;
        let mut within = LOOK_WITHIN.0;
        for Question { topic, from } in asked {
            let found = look(&config, &mut consumer, &topic, &from, within);
            let found = found.unwrap_or_else(|e| {
                tracing::debug!("looking at the end of {topic}: {e}");
                from.keys().map(|&p| (p, Found::Unknown)).collect()
            });
            let all = |is: fn(&Found) -> bool| found.values().all(is);
            // What a consumer still holds of this look must not be taken for the next one's.
            if !all(|found| matches!(found, Found::NoRecordBelow(_))) {
                consumer = None;
            }
            within = match all(|found| *found != Found::Unknown) {
                true => LOOK_WITHIN.0,
                false => LOOK_WITHIN.1.min(2 * within),
            };
            if answer.send(Answer { topic, found }).is_err() {
                break;
            }
        }
    };
    std::thread::Builder::new()
        .name("tails".into())
        .spawn(looks)?;
    Ok(Looker { questions, answers })
}

fn look(
    config: &ClientConfig,
    kept: &mut Option<BaseConsumer<Quiet>>,
    topic: &str,
    from: &BTreeMap<i32, i64>,
    within: Duration,
) -> Result<BTreeMap<i32, Found>, ClientError> {
    if kept.is_none() {
        *kept = Some(config.create_with_context(Quiet("looking at the end of a partition"))?);
    }
    let consumer = kept.as_ref().expect("made above");
    // Tokens to sign in with come in a poll only.
    let _ = consumer.poll(POLL);
    // The ends are asked before the reading: what comes meanwhile is not in question.
    let mut left = BTreeMap::new();
    let mut assignment = TopicPartitionList::new();
    for (&partition, &from) in from {
        let (_, end) = consumer.fetch_watermarks(topic, partition, ASK_WITHIN)?;
        left.insert(partition, end);
        assignment.add_partition_offset(topic, partition, Offset::Offset(from))?;
    }
    consumer.assign(&assignment)?;
    let deadline = Instant::now() + within;
    let mut found = BTreeMap::new();
    while !left.is_empty() && Instant::now() < deadline {
        match consumer.poll(POLL) {
            None => {}
            Some(Err(ClientError::PartitionEOF(partition))) => {
                if let Some(end) = left.remove(&partition) {
                    found.insert(partition, Found::NoRecordBelow(end));
                }
            }
            Some(Err(e)) => tracing::debug!("looking at the end of {topic}: {e}"),
            Some(Ok(message)) => {
                let partition = message.partition();
                if left.remove(&partition).is_some() {
                    found.insert(partition, Found::Record);
                }
            }
        }
    }
    consumer.unassign()?;
    while consumer.poll(Duration::ZERO).is_some() {}
    found.extend(left.into_keys().map(|p| (p, Found::Unknown)));
    Ok(found)
}

impl Source {
    /// Has the partitions looked at that are quiet before their end, those of one topic at a time.
    pub(super) fn seek_tails(&mut self, now: Instant) {
        if self.tails.busy || self.assigning.is_some() {
            return;
        }
        let held = |name: &Name| self.is_stopped(name);
        let stopped: Vec<Name> = self.progress.names().filter(|n| held(n)).cloned().collect();
        let mut question: Option<Question> = None;
        for (name, place) in self.progress.places() {
            let (Some(finished), Some(lag)) = (place.finished, place.visible_lag()) else {
                continue;
            };
            let quiet = now.saturating_duration_since(place.quiet_since) >= QUIET;
            if lag == 0 || !quiet || place.tail != Tail::Unknown || stopped.contains(name) {
                continue;
            }
            let (topic, partition) = name;
            let question = question.get_or_insert_with(|| Question {
                topic: topic.clone(),
                from: BTreeMap::new(),
            });
            if question.topic == *topic {
                question.from.insert(*partition, finished);
                place.tail = Tail::Sought(finished);
            }
        }
        let Some(question) = question else { return };
        let asked: Vec<Name> = question.names().collect();
        self.tails.ask(question);
        if !self.tails.busy {
            for name in asked {
                if let Some(place) = self.progress.get(&name) {
                    place.tail = Tail::Unknown;
                }
            }
        }
    }

    pub(super) fn take_tails(&mut self) {
        let Some(Answer { topic, found }) = self.tails.answer() else {
            return;
        };
        for (partition, found) in found {
            let name = (topic.clone(), partition);
            let Some(place) = self.progress.get(&name) else {
                continue;
            };
            let Tail::Sought(from) = place.tail else {
                continue;
            };
            match found {
                Found::NoRecordBelow(end) if end > from => self.tails.empty.push((name, from, end)),
                Found::Record => place.tail = Tail::HasRecords(from),
                Found::NoRecordBelow(_) | Found::Unknown => {
                    place.tail = Tail::Unknown;
                    place.quiet_since = Instant::now();
                }
            }
        }
    }

    /// Partitions and offsets below which everything is finished, because no record is left there. Each is given once.
    pub fn empty_tails(&mut self) -> Vec<(TopicPartition, i64)> {
        if self.tails.empty.is_empty() {
            return Vec::new();
        }
        let read_to = self.consumer.position().unwrap_or_default();
        let mut tails = Vec::new();
        for (name, from, end) in std::mem::take(&mut self.tails.empty) {
            let Some(place) = self.progress.get(&name) else {
                continue;
            };
            // A record behind the end may be in flight: its own offset goes further.
            let element = read_to.find_partition(&name.0, name.1);
            let beyond =
                element.is_some_and(|e| matches!(e.offset(), Offset::Offset(o) if o > end));
            if place.tail != Tail::Sought(from) || place.finished != Some(from) || beyond {
                place.tail = Tail::Unknown;
                continue;
            }
            let topic = self.topics.number(&name.0);
            let partition = name.1;
            tracing::debug!(
                topic = name.0,
                partition,
                from,
                end,
                "no record is left before the end"
            );
            tails.push((TopicPartition { topic, partition }, end));
        }
        for (from, _) in &tails {
            self.got_through(*from);
        }
        tails
    }
}
