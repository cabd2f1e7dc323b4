//! Finds partitions that end in offsets without records: transaction markers, aborted records, or records removed by
//! compaction. The main consumer does not see such offsets, so they would count as lag forever.
//!
//! A second consumer reads from the first unfinished offset. If it reaches the end without a record, everything below the
//! end is finished. It never reads past an open transaction.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use super::super::client;
use super::super::client::contexts::QuietContext;
use super::context::{GroupConsumer, PartitionName};
use super::progress::{ProgressTracker, QUIET, Tail};
use crate::config::KafkaSettings;

const POLL: Duration = Duration::from_millis(100);
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// The first and the longest timeout of a search. The timeout doubles while many aborted records have to be read.
const FIRST_TIMEOUT: Duration = Duration::from_secs(10);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(600);

/// A search in partitions of one topic, each from its own offset on.
struct Search {
    topic: String,
    from: BTreeMap<i32, i64>,
}

impl Search {
    fn names(&self) -> impl Iterator<Item = PartitionName> {
        self.from
            .keys()
            .map(|partition| (self.topic.clone(), *partition))
    }
}

struct SearchResult {
    topic: String,
    found: BTreeMap<i32, Found>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    NoRecordBelow(i64),
    Record,
    /// The search did not reach the end in time.
    Unknown,
}

/// Starts searches and keeps their results.
pub(super) struct EmptyTails {
    config: ClientConfig,
    /// Started on first use.
    searcher: Option<Searcher>,
    busy: bool,
    empty: Vec<EmptyTail>,
}

/// The thread with the second consumer.
struct Searcher {
    searches: Sender<Search>,
    results: Receiver<SearchResult>,
}

/// A range of offsets without records at the end of a partition.
pub(super) struct EmptyTail {
    pub name: PartitionName,
    pub from: i64,
    pub end: i64,
}

impl EmptyTails {
    pub fn new(kafka: &KafkaSettings) -> EmptyTails {
        EmptyTails {
            config: config(kafka),
            searcher: None,
            busy: false,
            empty: Vec::new(),
        }
    }

    /// Starts a search in partitions that make no progress before their end, for one topic at a time. Skips partitions
    /// for which `is_stopped` returns true, because they are not being fetched.
    pub fn search(
        &mut self,
        progress: &mut ProgressTracker,
        now: Instant,
        is_stopped: impl Fn(&PartitionName) -> bool,
    ) {
        if self.busy {
            return;
        }
        let mut search: Option<Search> = None;
        for (name, partition) in progress.iter_mut() {
            let (Some(finished), Some(lag)) = (partition.finished, partition.visible_lag()) else {
                continue;
            };
            let quiet = now.saturating_duration_since(partition.quiet_since) >= QUIET;
            if lag == 0 || !quiet || partition.tail != Tail::Unknown || is_stopped(name) {
                continue;
            }
            let (topic, number) = name;
            let search = search.get_or_insert_with(|| Search {
                topic: topic.clone(),
                from: BTreeMap::new(),
            });
            if search.topic == *topic {
                search.from.insert(*number, finished);
                partition.tail = Tail::Searched(finished);
            }
        }
        let Some(search) = search else { return };
        let names: Vec<PartitionName> = search.names().collect();
        self.start(search);
        if !self.busy {
            for name in names {
                if let Some(partition) = progress.get(&name) {
                    partition.tail = Tail::Unknown;
                }
            }
        }
    }

    fn start(&mut self, search: Search) {
        if self.searcher.is_none() {
            // If no thread can be started, the search is tried again later.
            self.searcher = spawn(&self.config).ok();
        }
        let searcher = self.searcher.as_ref();
        self.busy = searcher.is_some_and(|searcher| searcher.searches.try_send(search).is_ok());
    }

    /// Takes the result of a search, if there is one.
    pub fn take_result(&mut self, progress: &mut ProgressTracker) {
        let Some(SearchResult { topic, found }) = self.result() else {
            return;
        };
        for (partition, found) in found {
            let name = (topic.clone(), partition);
            let Some(partition) = progress.get(&name) else {
                continue;
            };
            let Tail::Searched(from) = partition.tail else {
                continue;
            };
            match found {
                Found::NoRecordBelow(end) if end > from => {
                    self.empty.push(EmptyTail { name, from, end });
                }
                Found::Record => partition.tail = Tail::HasRecords(from),
                Found::NoRecordBelow(_) | Found::Unknown => {
                    partition.tail = Tail::Unknown;
                    partition.quiet_since = Instant::now();
                }
            }
        }
    }

    fn result(&mut self) -> Option<SearchResult> {
        match self.searcher.as_ref()?.results.try_recv() {
            Ok(result) => {
                self.busy = false;
                Some(result)
            }
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                self.searcher = None;
                self.busy = false;
                None
            }
        }
    }

    /// Returns the empty tails found since the last call, except those whose partition has made progress meanwhile.
    pub fn confirmed(
        &mut self,
        consumer: &GroupConsumer,
        progress: &mut ProgressTracker,
    ) -> Vec<EmptyTail> {
        if self.empty.is_empty() {
            return Vec::new();
        }
        let position = consumer.position().unwrap_or_default();
        let mut confirmed = std::mem::take(&mut self.empty);
        confirmed.retain(|EmptyTail { name, from, end }| {
            let Some(partition) = progress.get(name) else {
                return false;
            };
            // A record behind the end may be in flight. Its own offset will finish this tail too.
            let element = position.find_partition(&name.0, name.1);
            let is_beyond =
                element.is_some_and(|e| matches!(e.offset(), Offset::Offset(o) if o > *end));
            let has_moved =
                partition.tail != Tail::Searched(*from) || partition.finished != Some(*from);
            if has_moved || is_beyond {
                partition.tail = Tail::Unknown;
                return false;
            }
            tracing::debug!(
                topic = name.0,
                partition = name.1,
                from,
                end,
                "no record is left before the end"
            );
            true
        });
        confirmed
    }
}

fn config(kafka: &KafkaSettings) -> ClientConfig {
    let mut config = client::config(kafka, &kafka.consumer);
    // This consumer is never a member of the group.
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

fn spawn(config: &ClientConfig) -> std::io::Result<Searcher> {
    let (searches, requested) = bounded::<Search>(1);
    let (sender, results) = bounded(1);
    let config = config.clone();
    let run = move || {
        let mut consumer = None;
        let mut within = FIRST_TIMEOUT;
        for Search { topic, from } in requested {
            let found = search(&config, &mut consumer, &topic, &from, within);
            let found = found.unwrap_or_else(|e| {
                tracing::debug!("searching for the last records of {topic}: {e}");
                from.keys().map(|&p| (p, Found::Unknown)).collect()
            });
            let all = |is: fn(&Found) -> bool| found.values().all(is);
            // A consumer that did not reach the end still holds events of this search, so the next search creates
            // another.
            if !all(|found| matches!(found, Found::NoRecordBelow(_))) {
                consumer = None;
            }
            within = match all(|found| *found != Found::Unknown) {
                true => FIRST_TIMEOUT,
                false => LONGEST_TIMEOUT.min(2 * within),
            };
            if sender.send(SearchResult { topic, found }).is_err() {
                break;
            }
        }
    };
    std::thread::Builder::new()
        .name("tails".into())
        .spawn(run)?;
    Ok(Searcher { searches, results })
}

/// Reads from the offsets in `from` until a record or the end. `kept` is the consumer of the previous search, for
/// reuse.
fn search(
    config: &ClientConfig,
    kept: &mut Option<BaseConsumer<QuietContext>>,
    topic: &str,
    from: &BTreeMap<i32, i64>,
    within: Duration,
) -> Result<BTreeMap<i32, Found>, ClientError> {
    if kept.is_none() {
        *kept = Some(config.create_with_context(QuietContext("searching for empty tails"))?);
    }
    let consumer = kept.as_ref().expect("created above");
    // Sign-in tokens are fetched only during a poll.
    let _ = consumer.poll(POLL);
    // Request the ends before reading, because records that arrive later do not matter.
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
            Some(Err(e)) => tracing::debug!("searching for the last records of {topic}: {e}"),
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
