//! Changes messages so that their topic accepts their size, timestamp and key. A header of the message names the parts
//! that were left out, and the log reports how often that happened.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::kafka::Limits;
use crate::message::{About, Kind, Message};

/// The number of refusals for size after which the last guess becomes the limit for every message to the topic.
const GUESSES: u32 = 20;
/// How long messages to a topic are sent without a timestamp after it refused one that its settings and this host's
/// clock allow. The cause of such a refusal is that the clocks differ.
const UNTIMED_FOR: Duration = Duration::from_secs(10);
/// How long refused sizes are remembered. Later messages may compress better, or the topic's limit may be raised.
const FORGET_AFTER: Duration = Duration::from_secs(300);
const LOG_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub struct Shaper {
    too_large: HashMap<String, SizeRefusal>,
    /// When each topic last refused a timestamp that its settings allow.
    untimed: HashMap<String, Instant>,
    omissions: Omissions,
}

/// The sizes that a topic refused.
#[derive(Debug, Clone, Copy)]
struct SizeRefusal {
    /// Messages of this size and larger are shrunk to `fit`.
    from: usize,
    /// The maximum size of a message after shrinking.
    fit: usize,
    guesses: u32,
    /// When the topic last refused a message for its size.
    at: Instant,
}

impl SizeRefusal {
    fn is_about(&self, message: &Message) -> bool {
        message.size() >= self.from && self.at.elapsed() < FORGET_AFTER
    }
}

/// Counts the parts left out of messages since the last log line about them.
#[derive(Debug, Default)]
struct Omissions {
    logged: Option<Instant>,
    parts: BTreeMap<&'static str, u64>,
}

/// A message as it may be sent, and the parts that were left out.
#[derive(Debug)]
pub struct Shaped {
    pub message: Message,
    pub left_out: Vec<&'static str>,
}

/// The topic accepts no message about this record, not even the smallest.
#[derive(Debug)]
pub struct Undeliverable(pub About);

impl Shaper {
    /// Changes a message so that its topic accepts it, as far as the topic's limits are known.
    ///
    /// # Errors
    /// When even the smallest message about the record is too large. This is logged.
    pub fn shape(
        &mut self,
        limits: &Limits,
        topic: &str,
        message: Message,
    ) -> Result<Shaped, Undeliverable> {
        let mut shaped = self.without_refused_time(limits, topic, message);
        give_key(limits, topic, &mut shaped.message);
        match self.too_large.get(topic).copied() {
            Some(refusal) if refusal.is_about(&shaped.message) => {
                let SizeRefusal { from, fit, .. } = refusal;
                let slim = self.slim(limits, topic, &shaped.message, from, fit)?;
                shaped.left_out.extend(slim.left_out);
                Ok(Shaped {
                    message: slim.message,
                    left_out: shaped.left_out,
                })
            }
            _ => Ok(shaped),
        }
    }

    fn without_refused_time(&mut self, limits: &Limits, topic: &str, message: Message) -> Shaped {
        let mut shaped = Shaped {
            message,
            left_out: Vec::new(),
        };
        let message = &mut shaped.message;
        if message
            .timestamp_ms
            .is_some_and(|time| !self.takes_time(limits, topic, time))
        {
            let why = format!(
                "topic `{topic}` does not accept this timestamp, by its settings and this host's clock"
            );
            message.timestamp_ms = None;
            message.omit(&["timestamp"], &why);
            self.log_omissions(&["timestamp"], &message.about, &why);
            shaped.left_out.push("timestamp");
        }
        shaped
    }

    /// Returns whether a topic accepts this timestamp, according to its settings and its recent refusals.
    pub fn takes_time(&self, limits: &Limits, topic: &str, timestamp_ms: i64) -> bool {
        let refused = self.untimed.get(topic);
        let now = jiff::Timestamp::now().as_millisecond();
        refused.is_none_or(|at| at.elapsed() >= UNTIMED_FOR)
            && limits.takes_time(topic, timestamp_ms, now)
    }

    /// Notes that a topic refused a timestamp that its settings allow.
    pub fn refuses_times(&mut self, topic: &str) {
        self.untimed.insert(topic.to_owned(), Instant::now());
    }

    /// Notes that a topic refused a message of `size`, so that later messages are shrunk to `fit`.
    pub fn refuses_size(&mut self, topic: String, size: usize, fit: usize) {
        let refusal = self.too_large.entry(topic).or_insert(SizeRefusal {
            from: usize::MAX,
            fit: usize::MAX,
            guesses: 0,
            at: Instant::now(),
        });
        if refusal.at.elapsed() >= FORGET_AFTER {
            (refusal.from, refusal.fit, refusal.guesses) = (usize::MAX, usize::MAX, 0);
        }
        refusal.at = Instant::now();
        refusal.guesses += 1;
        refusal.fit = refusal.fit.min(fit);
        refusal.from = match refusal.guesses > GUESSES {
            true => refusal.fit,
            false => refusal.from.min(size),
        };
    }

    /// Shrinks a message to `fit` bytes, or at least to fewer than `refused`.
    ///
    /// # Errors
    /// When that is impossible. This is logged.
    pub fn slim(
        &mut self,
        limits: &Limits,
        topic: &str,
        message: &Message,
        refused: usize,
        fit: usize,
    ) -> Result<Shaped, Undeliverable> {
        let hint = limits.hint(topic);
        let why = format!("too large for topic `{topic}`");
        let (mut slim, left_out) = message.slimmed(fit, &why);
        give_key(limits, topic, &mut slim);
        if slim.size() >= refused {
            log_undeliverable(topic, &message.about, &hint);
            return Err(Undeliverable(message.about.clone()));
        }
        self.log_omissions(&left_out, &message.about, &format!("{why}: {hint}"));
        Ok(Shaped {
            message: slim,
            left_out,
        })
    }

    /// Logs the parts that messages leave out, at most once every [`LOG_EVERY`].
    fn log_omissions(&mut self, parts: &[&'static str], about: &About, why: &str) {
        for part in parts {
            *self.omissions.parts.entry(part).or_default() += 1;
        }
        let recently = |logged: Instant| logged.elapsed() < LOG_EVERY;
        if self.omissions.logged.is_some_and(recently) {
            return;
        }
        let parts = std::mem::take(&mut self.omissions.parts);
        let parts: Vec<String> = parts
            .iter()
            .map(|(part, n)| format!("{part} {n}"))
            .collect();
        let source = &about.source;
        tracing::warn!(
            topic = source.topic,
            partition = source.partition,
            offset = source.offset,
            left_out = parts.join(", "),
            "parts of messages are left out, and the header residuald.omitted of each message names its parts: {why}"
        );
        self.omissions.logged = Some(Instant::now());
    }
}

/// Gives a message without a key the origin of its record as the key, if the topic refuses messages without a key.
fn give_key(limits: &Limits, topic: &str, message: &mut Message) {
    if message.key.is_none() && limits.needs_key(topic) {
        let source = &message.about.source;
        message.key = Some(format!("{}-{}", source.topic, source.place()).into_bytes());
    }
}

fn log_undeliverable(topic: &str, about: &About, hint: &str) {
    let what = match about.kind {
        Kind::Verdict => "verdict",
        Kind::DeadLetter(_) => "dead letter",
        Kind::Map => "map",
        Kind::Restored => "restored copy",
        Kind::Record => "copy",
    };
    let source = &about.source;
    tracing::error!(
        topic = source.topic,
        partition = source.partition,
        offset = source.offset,
        "the {what} of this record is not published, because it is too large for topic `{topic}` even without all optional parts: {hint}"
    );
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;

    use super::*;
    use crate::record::Origin;

    fn message(size: usize) -> Message {
        Message {
            about: About {
                source: Origin {
                    topic: "in".to_owned(),
                    partition: 1,
                    offset: 7,
                    index: None,
                },
                kind: Kind::Record,
            },
            key: None,
            headers: Vec::new(),
            payload: vec![b'x'; size],
            timestamp_ms: Some(jiff::Timestamp::now().as_millisecond()),
        }
    }

    #[test]
    fn a_refused_timestamp_is_left_out_and_named() {
        let (mut shaper, limits) = (Shaper::default(), Limits::of_client(&ClientConfig::new()));
        let shaped = shaper.shape(&limits, "out", message(1)).unwrap();
        assert_eq!(shaped.left_out, [] as [&str; 0]);
        shaper.refuses_times("out");
        let shaped = shaper.shape(&limits, "out", message(1)).unwrap();
        assert_eq!(shaped.left_out, ["timestamp"]);
        assert_eq!(shaped.message.timestamp_ms, None);
        assert!(
            shaper
                .shape(&limits, "other", message(1))
                .unwrap()
                .left_out
                .is_empty()
        );
    }

    #[test]
    fn after_many_guesses_the_last_one_is_the_limit() {
        let (mut shaper, limits) = (Shaper::default(), Limits::of_client(&ClientConfig::new()));
        shaper.refuses_size("out".to_owned(), 2_000, 1_000);
        assert!(shaper.shape(&limits, "out", message(1_200)).is_ok());
        for _ in 0..GUESSES {
            shaper.refuses_size("out".to_owned(), 2_000, 1_000);
        }
        // A copy of a record has no optional parts.
        assert!(shaper.shape(&limits, "out", message(1_200)).is_err());
        assert!(shaper.shape(&limits, "out", message(200)).is_ok());
    }
}
