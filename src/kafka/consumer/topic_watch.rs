//! Watches the selected topics: which exist, and whether one was deleted and recreated. librdkafka reports neither.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use jiff::Timestamp;
use rdkafka::consumer::Consumer;

use super::super::client::reconnect;
use super::super::error::{KafkaError, is_topic_missing};
use super::super::topic_admin::Descriptions;
use super::context::GroupConsumer;
use super::known_topics::KnownTopics;
use super::stale_assignment;
use super::topic_selection::TopicSelection;
use super::topics::Topics;
use crate::config::KafkaSettings;
use crate::metrics::Metrics;
use crate::status::Status;

const INTERVAL: &str = "topic.metadata.refresh.interval.ms";
/// The interval if the settings switch off librdkafka's own refresh of metadata.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
/// How many times a missing topic is rechecked in quick succession, because it may be recreated at once.
const RECHECKS: u32 = 10;
/// How long to wait before rechecking a missing topic, silent brokers, or a group whose assignments may be stale.
const RECHECK_AFTER: Duration = Duration::from_secs(1);
const LOOK_WITHIN: Duration = Duration::from_secs(2);

/// The intake's side of the watch. Another thread looks at the topics.
pub(super) struct TopicWatch {
    selection: Arc<TopicSelection>,
    pub known: KnownTopics,
    looks: Receiver<Descriptions>,
    look_now: Sender<()>,
    /// Set when a partition must be read from another offset, so that the consumer leaves and rejoins the group.
    pub must_rejoin: Arc<AtomicBool>,
    missing: BTreeSet<String>,
    pub subscribed: BTreeSet<String>,
}

impl TopicWatch {
    /// Starts the watch. `found` is the result of the first look.
    pub fn begin(
        consumer: &Arc<GroupConsumer>,
        selection: TopicSelection,
        kafka: &KafkaSettings,
        topics: Topics,
        found: Descriptions,
        status: Status,
    ) -> TopicWatch {
        let known = KnownTopics::default();
        known.begin(&found);
        let (look_now, asked) = bounded(1);
        let (results, looks) = bounded(1);
        let _ = results.send(found);
        let (selection, must_rejoin) = (Arc::new(selection), Arc::default());
        let looker = Looker {
            consumer: Arc::downgrade(consumer),
            selection: Arc::clone(&selection),
            topics,
            known: known.clone(),
            interval: interval(kafka),
            group_to_check: stale_assignment::group_to_check(kafka),
            must_rejoin: Arc::clone(&must_rejoin),
            missing: BTreeMap::new(),
            bootstrap_servers: kafka.brokers.clone(),
            status,
            silent_since: None,
        };
        std::thread::spawn(move || looker.run(&asked, &results));
        TopicWatch {
            selection,
            known,
            looks,
            look_now,
            must_rejoin,
            missing: BTreeSet::new(),
            subscribed: BTreeSet::new(),
        }
    }

    /// Requests a look at the topics before the interval is over.
    pub fn look_now(&self) {
        // If the channel is full, a request is already waiting.
        let _ = self.look_now.try_send(());
    }

    /// Returns the result of the last look, if it is new.
    pub fn latest(&self) -> Option<Descriptions> {
        self.looks.try_recv().ok()
    }

    /// Logs the topics that have become missing or exist again, and updates the metric.
    pub fn count_missing(&mut self, found: &Descriptions, metrics: &Metrics) {
        for (topic, described) in found {
            match described {
                Err(code) if is_topic_missing(*code) => {
                    let new = self.missing.insert(topic.clone());
                    if new && self.selection.named.contains(topic) {
                        tracing::warn!(
                            "topic `{topic}` cannot be read: {code}; the other topics are still read, and this one is read as soon as it exists"
                        );
                    }
                }
                Err(_) => {}
                Ok(_) if self.missing.remove(topic) => {
                    tracing::info!("topic `{topic}` exists now");
                }
                Ok(_) => {}
            }
        }
        for topic in &self.selection.named {
            metrics.set_topic_missing(topic, self.missing.contains(topic));
        }
        for pattern in &self.selection.patterns {
            let mut existing = found.iter().filter(|(_, topic)| topic.is_ok());
            let missing = !existing.any(|(topic, _)| pattern.is_match(topic));
            metrics.set_topic_missing(pattern.as_str(), missing);
        }
    }

    /// Updates `subscribed`, and returns whether it changed. Named topics always stay subscribed. Topics that match a
    /// pattern stay subscribed as long as they exist.
    pub fn update_subscribed(&mut self, found: &Descriptions) -> bool {
        let existing = found.iter().filter(|(_, topic)| topic.is_ok());
        let mut topics: BTreeSet<String> = existing.map(|(topic, _)| topic.clone()).collect();
        // A topic with another error may still exist, so it stays subscribed.
        let may_exist = |topic: &&String| {
            let code = found.get(*topic).and_then(|topic| topic.as_ref().err());
            code.is_some_and(|code| !is_topic_missing(*code))
        };
        topics.extend(self.subscribed.iter().filter(may_exist).cloned());
        topics.extend(self.selection.named.iter().cloned());
        if topics == self.subscribed {
            return false;
        }
        let new: Vec<&str> = names(topics.difference(&self.subscribed));
        let gone: Vec<&str> = names(self.subscribed.difference(&topics));
        if !new.is_empty() {
            tracing::info!(topics = %new.join(" "), "new topics to read");
        }
        if !gone.is_empty() {
            tracing::warn!(topics = %gone.join(" "), "topics that matched a pattern no longer exist");
        }
        self.subscribed = topics;
        true
    }

    /// Requests a rejoin if an assigned topic was recreated.
    pub fn check_recreated(
        &self,
        consumer: &GroupConsumer,
        topics: &Topics,
        found: &Descriptions,
    ) -> Result<(), KafkaError> {
        for element in consumer.assignment()?.elements() {
            let topic = element.topic();
            let now = found.get(topic).and_then(|topic| topic.as_ref().ok());
            let now = now.and_then(|now| now.id.as_ref());
            let then = topics.metadata(topics.number(topic));
            let then = then.and_then(|then| then.topic_id);
            if matches!((now, &then), (Some(now), Some(then)) if now != then) {
                self.must_rejoin.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

pub(super) fn names<'a>(topics: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    topics.map(String::as_str).collect()
}

fn interval(kafka: &KafkaSettings) -> Duration {
    let settings = [&kafka.consumer, &kafka.client];
    let set = settings.iter().find_map(|settings| settings.get(INTERVAL));
    let set = set
        .and_then(|ms| ms.parse().ok())
        .map(Duration::from_millis);
    set.map_or(DEFAULT_INTERVAL, |set| set.max(SHORTEST_INTERVAL))
}

/// Looks at the topics from its own thread.
struct Looker {
    /// Weak, so that it does not delay leaving the group.
    consumer: Weak<GroupConsumer>,
    selection: Arc<TopicSelection>,
    topics: Topics,
    known: KnownTopics,
    interval: Duration,
    /// The group id, until its assignments are known to be current.
    group_to_check: Option<String>,
    must_rejoin: Arc<AtomicBool>,
    /// The number of consecutive looks that did not find a topic.
    missing: BTreeMap<String, u32>,
    bootstrap_servers: String,
    status: Status,
    /// When the brokers first failed to answer a look.
    silent_since: Option<Timestamp>,
}

impl Looker {
    fn run(mut self, asked: &Receiver<()>, results: &Sender<Descriptions>) {
        let mut wait = self.interval.min(RECHECK_AFTER);
        loop {
            if asked.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            let Some(consumer) = self.consumer.upgrade() else {
                return;
            };
            let requested_at = Instant::now();
            match self.selection.describe(consumer.client(), LOOK_WITHIN) {
                Ok(found) => {
                    self.is_answered();
                    self.known.note_all(&found);
                    self.note_missing(&found, requested_at);
                    self.check_stale(&consumer, &found);
                    // The channel is full only while the intake waits. The next look brings the same result again.
                    let _ = results.try_send(found);
                }
                Err(e) => self.is_unanswered(&consumer, &e.to_string()),
            }
            let unsure = self.silent_since.is_some()
                || self.group_to_check.is_some()
                || self.missing.values().any(|looks| *looks < RECHECKS);
            wait = match unsure {
                true => RECHECK_AFTER.min(self.interval),
                false => self.interval,
            };
        }
    }

    fn is_unanswered(&mut self, consumer: &GroupConsumer, problem: &str) {
        reconnect::add_servers(consumer.client(), &self.bootstrap_servers);
        let Some(since) = self.silent_since else {
            // A single look without an answer is not reported.
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

    /// Marks deleted topics, because a transaction with offsets of a deleted topic fails. The intake cannot do this,
    /// because it may be draining.
    fn note_missing(&mut self, found: &Descriptions, requested_at: Instant) {
        for (topic, described) in found {
            match described {
                Err(code) if is_topic_missing(*code) => {
                    *self.missing.entry(topic.clone()).or_default() += 1;
                }
                Err(_) => continue,
                Ok(_) => {
                    self.missing.remove(topic);
                }
            }
            let looks = self.missing.get(topic).copied().unwrap_or_default();
            self.topics
                .set_deleted(self.topics.number(topic), looks > 1, requested_at);
        }
    }

    fn check_stale(&mut self, consumer: &GroupConsumer, found: &Descriptions) {
        let Some(group) = &self.group_to_check else {
            return;
        };
        let Some(stale) = stale_assignment::is_stale(consumer.client(), group, found) else {
            return;
        };
        self.group_to_check = None;
        if stale {
            tracing::info!(
                "topics or partitions have changed while no member of the group ran; the consumer rejoins the group"
            );
            self.must_rejoin.store(true, Ordering::Relaxed);
        }
    }
}
