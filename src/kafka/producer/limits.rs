//! The messages that the client and each output topic accept: their maximum size, their range of timestamps, and
//! whether they need a key. The smaller limit applies.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, OwnedResourceSpecifier, ResourceSpecifier,
};
use rdkafka::config::ClientConfig;

use super::super::client::contexts::QuietContext;

/// How long to wait for the limits, which are useful but not essential.
const PATIENCE: Duration = Duration::from_secs(5);
const CLIENT: &str = "message.max.bytes";
const TOPIC: &str = "max.message.bytes";
/// librdkafka's default for the largest message.
const CLIENT_DEFAULT: usize = 1_000_000;

/// The brokers' default for how far a timestamp may lie in the future, since Apache Kafka 4.0. Earlier versions accept
/// every timestamp.
const FUTURE_MS: i64 = 3_600_000;
/// The tolerated difference between the brokers' clocks and this one.
const CLOCKS_MS: i64 = 60_000;

#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    client: usize,
    /// The limits of each topic, or why they are unknown.
    topics: BTreeMap<String, Result<TopicLimits, String>>,
}

/// The messages that a topic accepts.
#[derive(Debug, Clone, Copy, PartialEq)]
struct TopicLimits {
    bytes: usize,
    /// How far a timestamp may lie in the past and in the future, in milliseconds.
    past_ms: i64,
    future_ms: i64,
    /// A compacted topic refuses a message without a key.
    needs_key: bool,
}

impl TopicLimits {
    /// The limits assumed for a topic whose settings are unknown.
    const UNKNOWN: TopicLimits = TopicLimits {
        bytes: usize::MAX,
        past_ms: i64::MAX,
        future_ms: FUTURE_MS,
        needs_key: false,
    };

    fn of(resource: &ConfigResource) -> Result<TopicLimits, String> {
        let setting = |name: &str| resource.get(name)?.value.as_deref();
        let number = |name: &str| setting(name)?.parse::<i64>().ok();
        let bytes = setting(TOPIC).and_then(|value| value.parse().ok());
        let by_broker = setting("message.timestamp.type") == Some("LogAppendTime");
        let far = |name: &str| match by_broker {
            true => i64::MAX,
            false => number(name).unwrap_or(i64::MAX),
        };
        Ok(TopicLimits {
            bytes: bytes.ok_or_else(|| format!("their answer lacks {TOPIC}"))?,
            past_ms: far("message.timestamp.before.max.ms"),
            future_ms: far("message.timestamp.after.max.ms"),
            needs_key: setting("cleanup.policy").is_some_and(|policy| policy.contains("compact")),
        })
    }
}

impl Limits {
    /// Returns the client's limit, without those of topics.
    pub fn of_client(config: &ClientConfig) -> Limits {
        let client = config.get(CLIENT).and_then(|value| value.parse().ok());
        Limits {
            client: client.unwrap_or(CLIENT_DEFAULT),
            topics: BTreeMap::new(),
        }
    }

    /// Requests the limits from the brokers (DescribeConfigs). Waits a few seconds at most. `config` is the producer's
    /// configuration.
    pub fn ask(config: &ClientConfig, topics: &[impl AsRef<str>]) -> Limits {
        let topics: BTreeSet<&str> = topics.iter().map(AsRef::as_ref).collect();
        let topics: &[&str] = &Vec::from_iter(topics);
        let unknown = |problem: String| {
            let topics = topics.iter();
            topics
                .map(|t| ((*t).to_owned(), Err(problem.clone())))
                .collect()
        };
        Limits {
            topics: described(config, topics).unwrap_or_else(unknown),
            ..Limits::of_client(config)
        }
    }

    /// Returns the size of the largest message that the client accepts.
    pub fn client(&self) -> usize {
        self.client
    }

    /// Returns the size of the largest message that a topic accepts, if known.
    pub fn topic(&self, topic: &str) -> Option<usize> {
        let limits = self.topics.get(topic)?.as_ref().ok()?;
        Some(limits.bytes)
    }

    fn limits_of(&self, topic: &str) -> TopicLimits {
        match self.topics.get(topic) {
            Some(Ok(limits)) => *limits,
            _ => TopicLimits::UNKNOWN,
        }
    }

    /// Returns whether a topic accepts messages with this timestamp. Timestamps close to a limit count as refused,
    /// because the brokers' clocks may differ from this one.
    pub fn takes_time(&self, topic: &str, timestamp_ms: i64, now_ms: i64) -> bool {
        let limits = self.limits_of(topic);
        let oldest = now_ms.saturating_sub(limits.past_ms.saturating_sub(CLOCKS_MS));
        let newest = now_ms.saturating_add(limits.future_ms.saturating_sub(CLOCKS_MS).max(0));
        let oldest = if limits.past_ms == i64::MAX {
            0
        } else {
            oldest
        };
        (oldest.max(0)..=newest).contains(&timestamp_ms)
    }

    /// Describes the settings that bound the timestamps of a topic.
    pub fn of_time(&self, topic: &str) -> String {
        let TopicLimits {
            past_ms, future_ms, ..
        } = self.limits_of(topic);
        let bound = |ms: i64| match ms {
            i64::MAX => "none".to_owned(),
            ms => format!("{ms} ms"),
        };
        format!(
            "message.timestamp.before.max.ms {}, message.timestamp.after.max.ms {}",
            bound(past_ms),
            bound(future_ms)
        )
    }

    /// Returns whether a topic refuses messages without a key.
    pub fn needs_key(&self, topic: &str) -> bool {
        self.limits_of(topic).needs_key
    }

    pub fn topics(&self) -> Vec<String> {
        self.topics.keys().cloned().collect()
    }

    pub fn are_known(&self) -> bool {
        self.topics.values().all(Result::is_ok)
    }

    /// Returns the smallest known limit of all topics.
    pub fn least(&self) -> Option<usize> {
        self.topics
            .values()
            .flatten()
            .map(|limits| limits.bytes)
            .min()
    }

    /// Names the setting to raise when a message is too large for a topic.
    pub fn hint(&self, topic: &str) -> String {
        let client = self.client;
        match self.topic(topic) {
            Some(limit) if limit < client => {
                format!("raise {TOPIC} of topic `{topic}`, now {limit} bytes")
            }
            Some(limit) => format!(
                "raise kafka.producer.\"{CLIENT}\", now {client} bytes; topic `{topic}` accepts {limit}"
            ),
            None => format!(
                "raise kafka.producer.\"{CLIENT}\", now {client} bytes, or {TOPIC} of topic `{topic}`, whose current value is unknown"
            ),
        }
    }

    /// Returns a line for each topic that compares its limit with the client's.
    pub fn lines(&self) -> Vec<String> {
        let client = self.client;
        let line = |(topic, limits): (&String, &Result<TopicLimits, String>)| match limits {
            Ok(TopicLimits { bytes: limit, .. }) => format!(
                "a message for topic `{topic}` may have {} bytes: {TOPIC} of the topic is {limit}, kafka.producer.\"{CLIENT}\" is {client}",
                client.min(*limit)
            ),
            Err(problem) => format!(
                "a message for topic `{topic}` may have {client} bytes (kafka.producer.\"{CLIENT}\"), or less: the brokers do not return {TOPIC} of the topic ({problem}); permit DescribeConfigs on the topic"
            ),
        };
        self.topics.iter().map(line).collect()
    }
}

type ByTopic = BTreeMap<String, Result<TopicLimits, String>>;

fn described(config: &ClientConfig, topics: &[&str]) -> Result<ByTopic, String> {
    let mut config = config.clone();
    // An admin client does not use transactions.
    for name in ["transactional.id", "transaction.timeout.ms"] {
        config.remove(name);
    }
    let admin: AdminClient<QuietContext> = config
        .create_with_context(QuietContext("asking for the topics' limits"))
        .map_err(|e| e.to_string())?;
    let asked: Vec<_> = topics.iter().map(|t| ResourceSpecifier::Topic(t)).collect();
    let options = AdminOptions::new().request_timeout(Some(PATIENCE));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|e| e.to_string())?;
    let answers = runtime
        .block_on(admin.describe_configs(&asked, &options))
        .map_err(|e| e.to_string())?;
    let mut found: ByTopic = BTreeMap::new();
    for (topic, answer) in topics.iter().zip(answers) {
        let limits = match answer {
            Ok(resource) if is_topic(&resource.specifier, topic) => TopicLimits::of(&resource),
            Ok(_) => Err("they answered for another topic".to_owned()),
            Err(code) => Err(code.to_string()),
        };
        found.insert((*topic).to_owned(), limits);
    }
    Ok(found)
}

fn is_topic(specifier: &OwnedResourceSpecifier, topic: &str) -> bool {
    matches!(specifier, OwnedResourceSpecifier::Topic(name) if name == topic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(client: usize, topic: Result<usize, String>) -> Limits {
        let limits = topic.map(|bytes| TopicLimits {
            bytes,
            ..TopicLimits::UNKNOWN
        });
        Limits {
            client,
            topics: BTreeMap::from([("dead".to_owned(), limits)]),
        }
    }

    #[test]
    fn a_timestamp_that_the_topic_refuses_is_known_in_advance() {
        const DAY: i64 = 86_400_000;
        let (now, mut limits) = (1_800_000_000_000, limits(1, Ok(1)));
        let accepts = |limits: &Limits, time| limits.takes_time("dead", time, now);
        for (time, accepted) in [
            (now, true),
            (0, true),
            (-2, false),
            (now + FUTURE_MS / 2, true),
            (now + FUTURE_MS, false),
            (i64::MAX, false),
        ] {
            assert_eq!(accepts(&limits, time), accepted, "{time}");
            assert_eq!(limits.takes_time("another", time, now), accepted, "{time}");
        }
        let any = TopicLimits {
            past_ms: DAY,
            future_ms: i64::MAX,
            ..TopicLimits::UNKNOWN
        };
        limits.topics.insert("dead".to_owned(), Ok(any));
        assert!(accepts(&limits, i64::MAX) && accepts(&limits, now - DAY / 2));
        assert!(!accepts(&limits, now - DAY));
    }

    #[test]
    fn the_hint_names_the_smaller_limit() {
        for (client, topic, expected) in [
            (
                1_000_000,
                Ok(500),
                "raise max.message.bytes of topic `dead`, now 500 bytes",
            ),
            (
                1_000_000,
                Ok(1_048_588),
                "raise kafka.producer.\"message.max.bytes\", now 1000000 bytes",
            ),
            (
                7,
                Err("not permitted".into()),
                "whose current value is unknown",
            ),
        ] {
            let hint = limits(client, topic).hint("dead");
            assert!(hint.contains(expected), "{hint}");
        }
    }

    #[test]
    fn limits_are_compared_and_unknown_ones_are_reported() {
        let line = |topic| limits(1_000, topic).lines().remove(0);
        assert!(line(Ok(700)).contains("may have 700 bytes"));
        assert!(line(Ok(7_000)).contains("may have 1000 bytes"));
        let unknown = line(Err("TopicAuthorizationFailed".into()));
        assert!(unknown.contains("(TopicAuthorizationFailed); permit DescribeConfigs"));
        assert_eq!(limits(1, Err("no".into())).least(), None);
    }
}
