//! The largest message that the client and each output topic take. The smaller of the two decides what a verdict or dead
//! letter may carry.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, OwnedResourceSpecifier, ResourceSpecifier};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError as ClientError;

/// The answer only improves what is said, so a broker that does not give it is not waited for.
const PATIENCE: Duration = Duration::from_secs(5);
const CLIENT: &str = "message.max.bytes";
const TOPIC: &str = "max.message.bytes";
/// librdkafka's default.
const CLIENT_DEFAULT: usize = 1_000_000;

#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    client: usize,
    /// By topic: bytes, or why they are not known.
    topics: BTreeMap<String, Result<usize, String>>,
}

impl Limits {
    /// Of topics nothing is known.
    pub fn of_client(config: &ClientConfig) -> Limits {
        let client = config.get(CLIENT).and_then(|value| value.parse().ok());
        Limits {
            client: client.unwrap_or(CLIENT_DEFAULT),
            topics: BTreeMap::new(),
        }
    }

    /// Asks the brokers (DescribeConfigs), for a few seconds at most. `config` is the producer's.
    pub fn ask(config: &ClientConfig, topics: &[impl AsRef<str>]) -> Limits {
        let topics: Vec<&str> = topics.iter().map(AsRef::as_ref).collect();
        let topics = topics.as_slice();
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

    pub fn client(&self) -> usize {
        self.client
    }

    /// What a topic takes, if that is known.
    pub fn topic(&self, topic: &str) -> Option<usize> {
        self.topics.get(topic)?.as_ref().ok().copied()
    }

    pub fn topics(&self) -> Vec<String> {
        self.topics.keys().cloned().collect()
    }

    pub fn are_known(&self) -> bool {
        self.topics.values().all(Result::is_ok)
    }

    /// What every topic takes whose limit is known.
    pub fn least(&self) -> Option<usize> {
        self.topics.values().flatten().min().copied()
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
        let line = |(topic, limit): (&String, &Result<usize, String>)| match limit {
            Ok(limit) => format!(
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

type ByTopic = BTreeMap<String, Result<usize, String>>;

fn described(config: &ClientConfig, topics: &[&str]) -> Result<ByTopic, String> {
    let mut config = config.clone();
    // An admin client takes no part in transactions.
    for name in ["transactional.id", "transaction.timeout.ms"] {
        config.remove(name);
    }
    let admin: AdminClient<Quiet> = config
        .create_with_context(Quiet)
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
        let limit = match answer {
            Ok(resource) if is_topic(&resource.specifier, topic) => {
                let value = resource.get(TOPIC).and_then(|entry| entry.value.as_deref());
                let bytes = value.and_then(|value| value.parse().ok());
                bytes.ok_or_else(|| format!("no {TOPIC} in their answer"))
            }
            Ok(_) => Err("they answered for another topic".to_owned()),
            Err(code) => Err(code.to_string()),
        };
        found.insert((*topic).to_owned(), limit);
    }
    Ok(found)
}

fn is_topic(specifier: &OwnedResourceSpecifier, topic: &str) -> bool {
    matches!(specifier, OwnedResourceSpecifier::Topic(name) if name == topic)
}

/// The producer has said already what is wrong with a connection.
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, "{message}");
    }

    fn error(&self, error: ClientError, reason: &str) {
        tracing::debug!("limits: {error}: {reason}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(client: usize, topic: Result<usize, String>) -> Limits {
        Limits {
            client,
            topics: BTreeMap::from([("dead".to_owned(), topic)]),
        }
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
