//! What the client and each output topic take: the largest message, of which the smaller limit decides what a verdict or dead
//! letter may carry, timestamps, and messages without a key.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, OwnedResourceSpecifier, ResourceSpecifier,
};
use rdkafka::config::ClientConfig;

use super::quiet::Quiet;
use crate::config::Kafka;

/// The answer only improves what is said, so a broker that does not give it is not waited for.
const PATIENCE: Duration = Duration::from_secs(5);
const CLIENT: &str = "message.max.bytes";
const TOPIC: &str = "max.message.bytes";
/// librdkafka's default.
const CLIENT_DEFAULT: usize = 1_000_000;

/// Brokers' default since Apache Kafka 4.0; before, every timestamp was taken.
const FUTURE_MS: i64 = 3_600_000;
/// How far the brokers' clocks may be from this one.
const CLOCKS_MS: i64 = 60_000;

#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    client: usize,
    /// By topic: what it takes, or why that is not known.
    topics: BTreeMap<String, Result<Takes, String>>,
}

/// What a topic takes.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Takes {
    bytes: usize,
    /// Milliseconds that a timestamp may be in the past and in the future.
    past_ms: i64,
    future_ms: i64,
    /// It is compacted.
    keys_only: bool,
}

impl Takes {
    /// For a topic whose settings are not known.
    const UNKNOWN: Takes = Takes {
        bytes: usize::MAX,
        past_ms: i64::MAX,
        future_ms: FUTURE_MS,
        keys_only: false,
    };

    fn of(resource: &ConfigResource) -> Result<Takes, String> {
        let setting = |name: &str| resource.get(name)?.value.as_deref();
        let number = |name: &str| setting(name)?.parse::<i64>().ok();
        let bytes = setting(TOPIC).and_then(|value| value.parse().ok());
        let by_broker = setting("message.timestamp.type") == Some("LogAppendTime");
        let far = |name: &str| match by_broker {
            true => i64::MAX,
            false => number(name).unwrap_or(i64::MAX),
        };
        Ok(Takes {
            bytes: bytes.ok_or_else(|| format!("no {TOPIC} in their answer"))?,
            past_ms: far("message.timestamp.before.max.ms"),
            future_ms: far("message.timestamp.after.max.ms"),
            keys_only: setting("cleanup.policy").is_some_and(|policy| policy.contains("compact")),
        })
    }
}

impl Limits {
    /// Only the limit of the client is known.
    pub fn of_client(config: &ClientConfig) -> Limits {
        let client = config.get(CLIENT).and_then(|value| value.parse().ok());
        Limits {
            client: client.unwrap_or(CLIENT_DEFAULT),
            topics: BTreeMap::new(),
        }
    }

    /// Asks the brokers (DescribeConfigs), for a few seconds at most. `config` is the producer's.
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

    /// The same by the settings.
    pub fn of(kafka: &Kafka, topics: &[impl AsRef<str>]) -> Limits {
        Limits::ask(&super::sink::config(kafka), topics)
    }

    pub fn client(&self) -> usize {
        self.client
    }

    /// What a topic takes, if that is known.
    pub fn topic(&self, topic: &str) -> Option<usize> {
        let takes = self.topics.get(topic)?.as_ref().ok()?;
        Some(takes.bytes)
    }

    fn takes(&self, topic: &str) -> Takes {
        match self.topics.get(topic) {
            Some(Ok(takes)) => *takes,
            _ => Takes::UNKNOWN,
        }
    }

    /// Whether a topic takes messages of this time. A broker's clock may differ from ours, so what is close to a limit is
    /// not sent either.
    pub fn takes_time(&self, topic: &str, timestamp_ms: i64, now_ms: i64) -> bool {
        let takes = self.takes(topic);
        let oldest = now_ms.saturating_sub(takes.past_ms.saturating_sub(CLOCKS_MS));
        let newest = now_ms.saturating_add(takes.future_ms.saturating_sub(CLOCKS_MS).max(0));
        let oldest = if takes.past_ms == i64::MAX { 0 } else { oldest };
        (oldest.max(0)..=newest).contains(&timestamp_ms)
    }

    /// The settings that bound the timestamps of a topic, for a person.
    pub fn of_time(&self, topic: &str) -> String {
        let Takes {
            past_ms, future_ms, ..
        } = self.takes(topic);
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

    /// Whether a topic refuses a message without a key.
    pub fn needs_key(&self, topic: &str) -> bool {
        self.takes(topic).keys_only
    }

    pub fn topics(&self) -> Vec<String> {
        self.topics.keys().cloned().collect()
    }

    pub fn are_known(&self) -> bool {
        self.topics.values().all(Result::is_ok)
    }

    /// What every topic takes whose limit is known.
    pub fn least(&self) -> Option<usize> {
        self.topics
            .values()
            .flatten()
            .map(|takes| takes.bytes)
            .min()
    }

    /// What to do about a message that is too large for a topic.
    pub fn hint(&self, topic: &str) -> String {
        let client = self.client;
        match self.topic(topic) {
            Some(limit) if limit < client => {
                format!("raise {TOPIC} of topic `{topic}`, now {limit} bytes")
            }
            Some(limit) => format!(
                "raise kafka.producer.\"{CLIENT}\", now {client} bytes; topic `{topic}` takes {limit}"
            ),
            None => format!(
                "raise kafka.producer.\"{CLIENT}\", now {client} bytes, or {TOPIC} of topic `{topic}`, which is not known here"
            ),
        }
    }

    /// For each topic a line that compares its limit with the client's.
    pub fn lines(&self) -> Vec<String> {
        let client = self.client;
        let line = |(topic, takes): (&String, &Result<Takes, String>)| match takes {
            Ok(Takes { bytes: limit, .. }) => format!(
                "a message for topic `{topic}` may have {} bytes: {TOPIC} of the topic is {limit}, kafka.producer.\"{CLIENT}\" is {client}",
                client.min(*limit)
            ),
            Err(problem) => format!(
                "a message for topic `{topic}` may have {client} bytes (kafka.producer.\"{CLIENT}\"), or less: the brokers do not tell {TOPIC} of the topic ({problem}); permit DescribeConfigs on it"
            ),
        };
        self.topics.iter().map(line).collect()
    }
}

type ByTopic = BTreeMap<String, Result<Takes, String>>;

fn described(config: &ClientConfig, topics: &[&str]) -> Result<ByTopic, String> {
    let mut config = config.clone();
    // An admin client takes no part in transactions.
    for name in ["transactional.id", "transaction.timeout.ms"] {
        config.remove(name);
    }
    let admin: AdminClient<Quiet> = config
        .create_with_context(Quiet("asking for the topics' limits"))
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
        let takes = match answer {
            Ok(resource) if is_topic(&resource.specifier, topic) => Takes::of(&resource),
            Ok(_) => Err("they answered for another topic".to_owned()),
            Err(code) => Err(code.to_string()),
        };
        found.insert((*topic).to_owned(), takes);
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
        let takes = topic.map(|bytes| Takes {
            bytes,
            ..Takes::UNKNOWN
        });
        Limits {
            client,
            topics: BTreeMap::from([("dead".to_owned(), takes)]),
        }
    }

    #[test]
    fn a_time_that_the_topic_refuses_is_known_before() {
        const DAY: i64 = 86_400_000;
        let (now, mut limits) = (1_800_000_000_000, limits(1, Ok(1)));
        let takes = |limits: &Limits, time| limits.takes_time("dead", time, now);
        for (time, taken) in [
            (now, true),
            (0, true),
            (-2, false),
            (now + FUTURE_MS / 2, true),
            (now + FUTURE_MS, false),
            (i64::MAX, false),
        ] {
            assert_eq!(takes(&limits, time), taken, "{time}");
            assert_eq!(limits.takes_time("another", time, now), taken, "{time}");
        }
        let any = Takes {
            past_ms: DAY,
            future_ms: i64::MAX,
            ..Takes::UNKNOWN
        };
        limits.topics.insert("dead".to_owned(), Ok(any));
        assert!(takes(&limits, i64::MAX) && takes(&limits, now - DAY / 2));
        assert!(!takes(&limits, now - DAY));
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
            (7, Err("not permitted".into()), "which is not known here"),
        ] {
            let hint = limits(client, topic).hint("dead");
            assert!(hint.contains(expected), "{hint}");
        }
    }

    #[test]
    fn limits_are_compared_and_what_is_not_known_is_said() {
        let line = |topic| limits(1_000, topic).lines().remove(0);
        assert!(line(Ok(700)).contains("may have 700 bytes"));
        assert!(line(Ok(7_000)).contains("may have 1000 bytes"));
        let unknown = line(Err("TopicAuthorizationFailed".into()));
        assert!(unknown.contains("(TopicAuthorizationFailed); permit DescribeConfigs"));
        assert_eq!(limits(1, Err("no".into())).least(), None);
    }
}
