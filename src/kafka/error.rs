//! Errors from Kafka, worded for the operator.

pub(super) mod advice;

use std::time::Duration;

use rdkafka::error::KafkaError as ClientError;
use rdkafka::types::{RDKafkaConfRes, RDKafkaErrorCode};

/// An error that ends an operation. Errors from which librdkafka recovers are only logged.
#[derive(Debug, thiserror::Error)]
pub enum KafkaError {
    #[error("Kafka setting `{name}` is refused: {problem}")]
    Setting { name: String, problem: String },
    #[error("Kafka is not reachable at {brokers} within {waited:?}: {}", advice::explain(.reason))]
    Unreachable {
        brokers: String,
        waited: Duration,
        reason: String,
    },
    #[error(
        "topic `{topic}` does not exist at {brokers}: create it (kafka-topics.sh --create --topic {topic}) or correct the setting"
    )]
    TopicAbsent { topic: String, brokers: String },
    #[error("topics do not exist at {brokers}: {}; create them, or correct the setting", quoted(.topics))]
    TopicsAbsent {
        topics: Vec<String>,
        brokers: String,
    },
    #[error(
        "{partition}: {problem}, and auto.offset.reset is none: set the group's offset (kafka-consumer-groups.sh --reset-offsets), or set kafka.consumer.\"auto.offset.reset\" to earliest or latest"
    )]
    NoOffset { partition: String, problem: String },
    #[error("a verdict or dead letter for topic `{topic}` cannot be delivered: {problem}")]
    Delivery { topic: String, problem: String },
    #[error(
        "the brokers have fenced transactional.id `{0}`: another process uses it too, or its transaction was open for longer than transaction.timeout.ms; this process ends, and nothing is published twice. Replicas need different kafka.producer.\"transactional.id\" or kafka.consumer.\"group.instance.id\""
    )]
    Fenced(String),
    #[error(
        "a transaction cannot continue: {0}; its messages are not published, and its records will be scored again"
    )]
    Transaction(String),
    #[error(
        "the brokers did not confirm whether a transaction was committed: {0}; this process ends, so that nothing is published twice, and the next one continues from the offsets that the group has committed"
    )]
    InDoubt(String),
    #[error("stopped before Kafka answered")]
    Stopped,
    #[error("Kafka: {0}")]
    Client(String),
}

impl From<ClientError> for KafkaError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::ClientConfig(why, problem, name, value) => {
                let is_known = why != RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN;
                let problem = advice::wrong_value(&problem, &name, &value, is_known);
                KafkaError::Setting { name, problem }
            }
            ClientError::ClientCreation(problem) => match advice::refused_setting(&problem) {
                Some((name, problem)) => KafkaError::Setting { name, problem },
                None => KafkaError::Client(problem),
            },
            other => KafkaError::Client(other.to_string()),
        }
    }
}

fn quoted(topics: &[String]) -> String {
    let quoted: Vec<String> = topics.iter().map(|topic| format!("`{topic}`")).collect();
    quoted.join(", ")
}

/// Returns whether the brokers have fenced this producer: another one with the same transactional.id took over, or the
/// transaction timed out.
pub(super) fn is_fenced(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch
    )
}

/// Returns whether a topic cannot be used, and not only for a moment.
pub(super) fn is_topic_missing(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::UnknownTopicOrPartition
            | Code::UnknownTopic
            | Code::InvalidTopic
            | Code::TopicAuthorizationFailed
    )
}

#[cfg(test)]
mod tests {
    use rdkafka::config::ClientConfig;

    use super::*;

    fn refusal(name: &str, value: &str) -> Option<String> {
        let set = ClientConfig::new().set(name, value).create_native_config();
        set.err().map(|e| KafkaError::from(e).to_string())
    }

    #[test]
    fn a_wrong_value_is_shown_with_all_valid_ones() {
        for (name, choices) in advice::CHOICES {
            for choice in choices.split(", ") {
                assert_eq!(refusal(name, choice), None);
            }
            let problem = refusal(name, "whatever").unwrap();
            assert!(problem.contains("\"whatever\""), "{problem}");
            assert!(problem.contains(choices), "{problem}");
        }
        let range = refusal("fetch.wait.max.ms", "-5").unwrap();
        assert!(
            range.contains("-5") && range.contains("0..300000"),
            "{range}"
        );
    }

    #[test]
    fn a_value_that_may_be_a_secret_is_not_shown() {
        for name in ["sasl.passwrd", "no.such.setting"] {
            let problem = refusal(name, "hunter2").unwrap();
            assert!(!problem.contains("hunter2"), "{problem}");
        }
        for name in ["sasl.password", "ssl.key.password"] {
            let words = format!("Invalid value \"hunter2\" for \"{name}\"");
            let problem = advice::wrong_value(&words, name, "hunter2", true);
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }

    #[test]
    fn a_client_that_cannot_be_created_names_the_setting() {
        let problem = "`sasl.oauthbearer.token.endpoint.url` is mandatory when `sasl.oauthbearer.method=oidc` is set";
        let error = KafkaError::from(ClientError::ClientCreation(problem.to_owned()));
        let KafkaError::Setting { name, .. } = error else {
            panic!("it is about a setting");
        };
        assert_eq!(name, "sasl.oauthbearer.token.endpoint.url");
    }
}
