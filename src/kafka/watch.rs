//! Looks at the wanted topics again and again: which are there, and whether one was deleted and made again. librdkafka
//! tells neither.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use jiff::Timestamp;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::types::RDKafkaErrorCode;

use super::admin::{Described, Descriptions};
use super::source::Context;
use super::start::Age;
use super::topics::Topics;
use super::wanted::Wanted;
use super::{KafkaError, Source, reach, stale};
use crate::config::Kafka;
use crate::status::Status;

const INTERVAL: &str = "topic.metadata.refresh.interval.ms";
/// Where the setting switches librdkafka's own looks off.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
/// A topic that is missing is looked for once more before that is believed.
/// And so is a group whose assignments are not settled.
const LOOK_TWICE_AFTER: Duration = Duration::from_secs(1);
const LOOK_WITHIN: Duration = Duration::from_secs(2);

pub(super) struct Watch {
    wanted: Arc<Wanted>,
    pub seen: Seen,
    looks: Receiver<Descriptions>,
    look_now: Sender<()>,
    /// Some partition has to be read from another place.
    pub astray: Arc<AtomicBool>,
    missing: BTreeSet<String>,
    pub subscribed: BTreeSet<String>,
}

/// What this process has seen of the topics.
#[derive(Clone, Default)]
pub(super) struct Seen(Arc<Mutex<BTreeMap<String, Sight>>>);

struct Sight {
    id: Option<String>,
    is_there: bool,
    age: Age,
}

impl Seen {
    /// The first look: what is there now is older than this process.
    fn begin(&self, found: &Descriptions) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (topic, described) in found {
            let described = described.as_ref().ok();
            let sight = Sight {
                id: described.and_then(|d| d.id.clone()),
                is_there: described.is_some(),
                age: Age::Older,
            };
            seen.insert(topic.clone(), sight);
        }
    }

    /// Takes note of a topic that is there.
    pub fn note(&self, topic: &str, described: &Described) -> Age {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sight = seen.entry(topic.to_owned()).or_insert_with(|| Sight {
            id: None,
            is_there: false,
            age: Age::Newer,
        });
        let another = sight.id.is_some() && sight.id != described.id;
        sight.age = match (another, sight.is_there, &sight.id) {
            (true, ..) => Age::MadeAgain,
            (_, false, None) => Age::Newer,
            _ => sight.age,
        };
        sight.id.clone_from(&described.id);
        sight.is_there = true;
        sight.age
    }

    fn note_all(&self, found: &Descriptions) {
        for (topic, described) in found {
            match described {
                Ok(described) => {
                    self.note(topic, described);
                }
                Err(code) if is_missing(*code) => {
                    let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(sight) = seen.get_mut(topic) {
                        sight.is_there = false;
                    }
                }
                Err(_) => {}
            }
        }
    }
}

/// It cannot be read, and not only for a moment.
pub(super) fn is_missing(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::UnknownTopicOrPartition
            | Code::UnknownTopic
            | Code::InvalidTopic
            | Code::TopicAuthorizationFailed
    )
}

impl Watch {
    /// Looks from now on; `found` is what the first look has found.
    pub fn begin(
        consumer: &Arc<BaseConsumer<Context>>,
        wanted: Wanted,
        kafka: &Kafka,
        topics: Topics,
        found: Descriptions,
        status: Status,
    ) -> Watch {
        let seen = Seen::default();
        seen.begin(&found);
        let (look_now, asked) = bounded(1);
        let (tell, looks) = bounded(1);
        let _ = tell.send(found);
        let (wanted, astray) = (Arc::new(wanted), Arc::default());
        let looker = Looker {
            consumer: Arc::downgrade(consumer),
            wanted: Arc::clone(&wanted),
            topics,
            seen: seen.clone(),
            interval: interval(kafka),
            stale: stale::group(kafka),
            astray: Arc::clone(&astray),
            missing: BTreeMap::new(),
            servers: kafka.brokers.clone(),
            status,
            silent_since: None,
        };
        std::thread::spawn(move || looker.run(&asked, &tell));
        Watch {
            wanted,
            seen,
            looks,
            look_now,
            astray,
            missing: BTreeSet::new(),
            subscribed: BTreeSet::new(),
        }
    }

    pub fn look_now(&self) {
        // One that waits already is as good.
        let _ = self.look_now.try_send(());
    }
}

fn interval(kafka: &Kafka) -> Duration {
    let settings = [&kafka.consumer, &kafka.client];
    let set = settings.iter().find_map(|settings| settings.get(INTERVAL));
    let set = set
        .and_then(|ms| ms.parse().ok())
        .map(Duration::from_millis);
    set.map_or(DEFAULT_INTERVAL, |set| set.max(SHORTEST_INTERVAL))
}

struct Looker {
    /// Weak, so that leaving the group does not wait for this.
    consumer: Weak<BaseConsumer<Context>>,
    wanted: Arc<Wanted>,
    topics: Topics,
    seen: Seen,
    interval: Duration,
    /// The group, until it is known that its assignments are not stale.
    stale: Option<String>,
    astray: Arc<AtomicBool>,
    /// How often in a row each topic was not there.
    missing: BTreeMap<String, u32>,
    servers: String,
    status: Status,
    /// When the brokers first left a look unanswered.
    silent_since: Option<Timestamp>,
}

impl Looker {
    fn run(mut self, asked: &Receiver<()>, tell: &Sender<Descriptions>) {
        let mut wait = self.interval.min(LOOK_TWICE_AFTER);
        loop {
            if asked.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            let Some(consumer) = self.consumer.upgrade() else {
                return;
            };
            match self.wanted.look(consumer.client(), LOOK_WITHIN) {
                Ok(found) => {
                    self.is_answered();
                    self.seen.note_all(&found);
                    self.note_missing(&found);
                    self.look_for_stale(&consumer, &found);
                    // Full only while the intake waits; what is in there brings it here again.
                    let _ = tell.try_send(found);
                }
                Err(e) => self.is_unanswered(&consumer, &e.to_string()),
            }
            let unsure = self.silent_since.is_some()
                || self.stale.is_some()
                || self.missing.values().any(|looks| *looks == 1);
            wait = match unsure {
                true => LOOK_TWICE_AFTER.min(self.interval),
                false => self.interval,
            };
        }
    }

    fn is_unanswered(&mut self, consumer: &BaseConsumer<Context>, problem: &str) {
        reach::add_servers(consumer.client(), &self.servers);
        let Some(since) = self.silent_since else {
            // A single one may be chance.
            self.silent_since = Some(Timestamp::now());
            return;
        };
        if self.status.brokers_are_silent(Some(since)) {
            tracing::warn!("the brokers do not answer: {problem}; trying again");
        }
    }

    fn is_answered(&mut self) {
        self.silent_since = None;
        if self.status.brokers_are_silent(None) {
            tracing::info!("the brokers answer again");
        }
    }

    /// Not left to the intake, which may be draining: a transaction with the offsets of a topic that is gone fails.
    fn note_missing(&mut self, found: &Descriptions) {
        for (topic, described) in found {
            match described {
                Err(code) if is_missing(*code) => {
                    *self.missing.entry(topic.clone()).or_default() += 1;
                }
                Err(_) => continue,
                Ok(_) => {
                    self.missing.remove(topic);
                }
            }
            let looks = self.missing.get(topic).copied().unwrap_or_default();
            self.topics
                .set_deleted(self.topics.number(topic), looks > 1);
        }
    }

    fn look_for_stale(&mut self, consumer: &BaseConsumer<Context>, found: &Descriptions) {
        let Some(group) = &self.stale else {
            return;
        };
        let Some(stale) = stale::is_stale(consumer.client(), group, found) else {
            return;
        };
        self.stale = None;
        if stale {
            tracing::info!("topics or partitions have changed while no member of the group ran");
            self.astray.store(true, Ordering::Relaxed);
        }
    }
}

fn names<'a>(of: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    of.map(String::as_str).collect()
}

impl Source {
    /// Acts on what the last look at the topics has found.
    pub(super) fn follow_topics(&mut self) -> Result<(), KafkaError> {
        let Ok(found) = self.watch.looks.try_recv() else {
            return Ok(());
        };
        self.count_missing(&found);
        self.subscribe(&found)?;
        self.look_for_another(&found)
    }

    fn count_missing(&mut self, found: &Descriptions) {
        for (topic, described) in found {
            match described {
                Err(code) if is_missing(*code) => {
                    let new = self.watch.missing.insert(topic.clone());
                    if new && self.watch.wanted.named.contains(topic) {
                        tracing::warn!(
                            "topic `{topic}` cannot be read: {code}; the others are read on, and it is taken up as soon as it is there"
                        );
                    }
                }
                Err(_) => {}
                Ok(_) if self.watch.missing.remove(topic) => {
                    tracing::info!("topic `{topic}` is there");
                }
                Ok(_) => {}
            }
        }
        for topic in &self.watch.wanted.named {
            let missing = self.watch.missing.contains(topic);
            self.metrics.set_topic_missing(topic, missing);
        }
        for pattern in &self.watch.wanted.patterns {
            let mut there = found.iter().filter(|(_, topic)| topic.is_ok());
            let missing = !there.any(|(topic, _)| pattern.is_match(topic));
            self.metrics.set_topic_missing(pattern.as_str(), missing);
        }
    }

    /// Named topics stay subscribed, there or not; those that match a pattern as long as they are there.
    fn subscribe(&mut self, found: &Descriptions) -> Result<(), KafkaError> {
        let there = found.iter().filter(|(_, topic)| topic.is_ok());
        let mut topics: BTreeSet<String> = there.map(|(topic, _)| topic.clone()).collect();
        // What the brokers cannot tell right now stays as it is.
        let unsure = |topic: &&String| {
            let code = found.get(*topic).and_then(|topic| topic.as_ref().err());
            code.is_some_and(|code| !is_missing(*code))
        };
        topics.extend(self.watch.subscribed.iter().filter(unsure).cloned());
        topics.extend(self.watch.wanted.named.iter().cloned());
        if topics.is_empty() {
            // Nothing to do is no reason not to be ready.
            self.status.partitions_are_assigned(true);
        }
        if topics == self.watch.subscribed {
            return Ok(());
        }
        let new: Vec<&str> = names(topics.difference(&self.watch.subscribed));
        let gone: Vec<&str> = names(self.watch.subscribed.difference(&topics));
        if !new.is_empty() {
            tracing::info!(topics = %new.join(" "), "topics to read");
        }
        if !gone.is_empty() {
            tracing::warn!(topics = %gone.join(" "), "topics that matched a pattern are not there any more");
        }
        match (&mut self.resubscribe, topics.is_empty()) {
            // About to join again, with these then.
            (Some(next), _) => next.clone_from(&topics),
            (None, true) => self.consumer.unsubscribe(),
            (None, false) => self.consumer.subscribe(&names(topics.iter()))?,
        }
        self.watch.subscribed = topics;
        Ok(())
    }

    fn look_for_another(&self, found: &Descriptions) -> Result<(), KafkaError> {
        for element in self.consumer.assignment()?.elements() {
            let topic = element.topic();
            let now = found.get(topic).and_then(|topic| topic.as_ref().ok());
            let now = now.and_then(|now| now.id.as_ref());
            let then = self.topics.mark(self.topics.number(topic));
            let then = then.and_then(|then| then.id);
            if matches!((now, &then), (Some(now), Some(then)) if now != then) {
                self.watch.astray.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(id: &str) -> Described {
        Described {
            id: Some(id.to_owned()),
            partitions: 1,
            is_internal: false,
        }
    }

    #[test]
    fn a_topic_is_older_newer_or_made_again() {
        let missing = || Err(RDKafkaErrorCode::UnknownTopicOrPartition);
        let found = |topic: &str, described| Descriptions::from([(topic.to_owned(), described)]);
        let seen = Seen::default();
        seen.begin(&found("a", Ok(described("1"))));
        seen.begin(&found("b", missing()));
        assert_eq!(seen.note("a", &described("1")), Age::Older);
        assert_eq!(seen.note("b", &described("2")), Age::Newer);
        assert_eq!(seen.note("c", &described("3")), Age::Newer);
        assert_eq!(seen.note("a", &described("4")), Age::MadeAgain);
        assert_eq!(seen.note("a", &described("4")), Age::MadeAgain);
        // Out of sight for a moment, and the same topic after that.
        seen.begin(&found("d", Ok(described("5"))));
        seen.note_all(&found("d", missing()));
        assert_eq!(seen.note("d", &described("5")), Age::Older);
        seen.note_all(&found("d", missing()));
        assert_eq!(seen.note("d", &described("6")), Age::MadeAgain);
    }
}
