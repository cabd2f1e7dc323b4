//! Gives messages a shape that their topic takes: a size, a timestamp, a key. What a message has to leave out it names in a
//! header, and the log says how often that happened.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::kafka::Limits;
use crate::message::{About, Kind, Message};
use crate::record::Origin;

/// After so many refusals for size, the last guess of what the topic takes is the limit for every message.
const GUESSES: u32 = 20;
/// How long messages to a topic go without a timestamp after it refused one that its settings and this host's clock allow: the
/// clocks differ.
const UNTIMED_FOR: Duration = Duration::from_secs(10);
/// How long refused sizes are remembered: later messages may compress better, or the topic takes more.
const FORGET_AFTER: Duration = Duration::from_secs(300);
const SAY_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub struct Shaper {
    too_large: HashMap<String, SizeRefusal>,
    /// When each topic last refused a timestamp that it should take.
    untimed: HashMap<String, Instant>,
    omissions: Omissions,
}

/// Sizes that a topic refused.
#[derive(Debug, Clone, Copy)]
struct SizeRefusal {
    /// Messages of this size and more are made smaller...
    from: usize,
    /// ...to at most this size.
    fit: usize,
    guesses: u32,
    /// When the last of them was.
    at: Instant,
}

impl SizeRefusal {
    fn is_about(&self, message: &Message) -> bool {
        message.size() >= self.from && self.at.elapsed() < FORGET_AFTER
    }
}

/// Parts that messages left out since that was last logged.
#[derive(Debug, Default)]
struct Omissions {
    said: Option<Instant>,
    parts: BTreeMap<&'static str, u64>,
}

/// A message as it may be sent.
#[derive(Debug)]
pub struct Shaped {
    pub message: Message,
    pub left_out: Vec<&'static str>,
}

/// Nothing that a topic takes can be said about this record.
#[derive(Debug)]
pub struct Undeliverable(pub About);

impl Shaper {
    /// The message as its topic takes it, as far as is known.
    ///
    /// # Errors
    /// Even the least that can be said about the record is too large; that is logged.
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
                "topic `{topic}` takes no such time, by its settings and this host's clock"
            );
            message.timestamp_ms = None;
            message.omit(&["timestamp"], &why);
            self.say(&["timestamp"], &message.about, &why);
            shaped.left_out.push("timestamp");
        }
        shaped
    }

    /// Whether a topic takes this timestamp, by its settings and by what it refused lately.
    pub fn takes_time(&self, limits: &Limits, topic: &str, timestamp_ms: i64) -> bool {
        let refused = self.untimed.get(topic);
        let now = jiff::Timestamp::now().as_millisecond();
        refused.is_none_or(|at| at.elapsed() >= UNTIMED_FOR)
            && limits.takes_time(topic, timestamp_ms, now)
    }

    /// A topic refused a timestamp that it should take.
    pub fn refuses_times(&mut self, topic: &str) {
        self.untimed.insert(topic.to_owned(), Instant::now());
    }

    /// A topic refused a message of `size`, which is to be no larger than `fit`.
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

    /// The message in `fit` bytes, or at least in fewer than `refused`.
    ///
    /// # Errors
    /// That is impossible, which is logged.
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
        self.say(&left_out, &message.about, &format!("{why}: {hint}"));
        Ok(Shaped {
            message: slim,
            left_out,
        })
    }

    /// Logs what messages leave out, from time to time.
    fn say(&mut self, parts: &[&'static str], about: &About, why: &str) {
        for part in parts {
            *self.omissions.parts.entry(part).or_default() += 1;
        }
        let recently = |said: Instant| said.elapsed() < SAY_EVERY;
        if self.omissions.said.is_some_and(recently) {
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
            "messages about records like this one leave parts out, which their header residuald.omitted names: {why}"
        );
        self.omissions.said = Some(Instant::now());
    }
}

/// A compacted topic refuses a message without a key: the record's place becomes its key.
fn give_key(limits: &Limits, topic: &str, message: &mut Message) {
    if message.key.is_none() && limits.needs_key(topic) {
        let Origin {
            topic,
            partition,
            offset,
        } = &message.about.source;
        message.key = Some(format!("{topic}-{partition}-{offset}").into_bytes());
    }
}

fn log_undeliverable(topic: &str, about: &About, hint: &str) {
    let what = match about.kind {
        Kind::Verdict => "verdict",
        Kind::DeadLetter(_) => "dead letter",
        Kind::Map => "map",
        Kind::Record => "copy",
    };
    let source = &about.source;
    tracing::error!(
        topic = source.topic,
        partition = source.partition,
        offset = source.offset,
        "the {what} of this record is too large for topic `{topic}` even with all left out that it can do without; it is not published: {hint}"
    );
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;

    use super::*;

    fn message(size: usize) -> Message {
        Message {
            about: About {
                source: Origin {
                    topic: "in".to_owned(),
                    partition: 1,
                    offset: 7,
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
        // A copy of a record has nothing that it can leave out.
        assert!(shaper.shape(&limits, "out", message(1_200)).is_err());
        assert!(shaper.shape(&limits, "out", message(200)).is_ok());
    }
}
