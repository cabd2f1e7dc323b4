//! Joins the names of librdkafka's settings. They contain dots, which TOML and `--set` parse as nested tables unless quoted.

use std::collections::BTreeMap;

use config::{Map, Value, ValueKind};

use super::FLAG;
use super::settings::{ENVIRONMENT, origin_of};

/// Setting names to which librdkafka itself adds `.file`. A table `{ file = … }` under them is not a reference to a secret's
/// file.
const FILES: [&str; 3] = [
    "sasl.oauthbearer.assertion",
    "sasl.oauthbearer.assertion.jwt.template",
    "sasl.oauthbearer.assertion.private.key",
];

/// Returns a client's settings by librdkafka's names, regardless of how they were spelled. If a setting has several sources, the
/// source with the highest priority wins.
pub fn entries(table: Map<String, Value>) -> BTreeMap<String, Value> {
    let mut entries = Vec::new();
    flatten("", table, &mut entries);
    entries.sort_by_key(|(_, value)| rank(value));
    let named = entries.into_iter().map(|(name, value)| {
        let name = match origin_of(&value) {
            // Environment variables have underscores instead of dots.
            Some(ENVIRONMENT) => name.replace('_', "."),
            _ => name,
        };
        (name, value)
    });
    named.collect()
}

fn flatten(prefix: &str, table: Map<String, Value>, entries: &mut Vec<(String, Value)>) {
    for (part, value) in table {
        let name = match prefix {
            "" => part,
            _ => format!("{prefix}.{part}"),
        };
        match &value.kind {
            ValueKind::Table(below) if !is_reference(&name, below) => {
                flatten(&name, below.clone(), entries);
            }
            _ => entries.push((name, value)),
        }
    }
}

/// Returns whether this is `{ env = … }` or `{ file = … }` for `name`.
fn is_reference(name: &str, table: &Map<String, Value>) -> bool {
    let scalar = |key| {
        let value: Option<&Value> = table.get(key);
        value.is_some_and(|value| !matches!(value.kind, ValueKind::Table(_)))
    };
    table.len() == 1 && (scalar("env") || scalar("file") && !FILES.contains(&name))
}

/// Returns the priority of the value's source. It is needed because different spellings of a setting are not merged.
fn rank(value: &Value) -> usize {
    match origin_of(value) {
        Some(FLAG) => 2,
        Some(ENVIRONMENT) => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{SMALLEST, load};

    #[test]
    fn client_settings_need_no_quotes_around_their_dots() {
        let text = format!(
            "{SMALLEST}\n[kafka.client]\n\"sasl.username\" = \"quoted\"\n\"ssl.ca.location\" = \"/no/such/file\"\nsasl.mechanism = \"PLAIN\"\n\
             ssl.key.password.env = \"PATH\"\n[kafka.client.security]\nprotocol = \"sasl_ssl\""
        );
        let variables = [
            ("RESIDUALD__KAFKA__CLIENT__SASL_PASSWORD", "variable"),
            ("RESIDUALD__KAFKA__CLIENT__SASL__USERNAME", "variable"),
            ("RESIDUALD__KAFKA__CLIENT__CLIENT_ID", "variable"),
        ];
        let flags = [
            "kafka.client.sasl.mechanism=OAUTHBEARER",
            "kafka.client.client.id=flag",
            "kafka.client.ssl.ca.location=probe",
            "kafka.client.sasl.oauthbearer.assertion.file=/the/assertion",
            "kafka.client.sasl.oauthbearer.token.endpoint.url=http://idp/token",
            "kafka.consumer.fetch.wait.max.ms=7",
            "kafka.producer.\"linger.ms\"=3",
        ];
        let config = load(&text, &variables, &flags).unwrap();
        let path = std::env::var("PATH").unwrap();
        assert_eq!(
            config.kafka.client.iter().collect::<Vec<_>>(),
            [
                ("client.id", "flag"),
                ("sasl.mechanism", "OAUTHBEARER"),
                ("sasl.oauthbearer.assertion.file", "/the/assertion"),
                ("sasl.oauthbearer.token.endpoint.url", "http://idp/token"),
                ("sasl.password", "variable"),
                ("sasl.username", "variable"),
                ("security.protocol", "sasl_ssl"),
                ("ssl.ca.location", "probe"),
                ("ssl.key.password", path.as_str()),
                ("topic.metadata.refresh.interval.ms", "10000"),
            ]
        );
        assert_eq!(config.kafka.consumer.get("fetch.wait.max.ms"), Some("7"));
        assert_eq!(config.kafka.producer.get("linger.ms"), Some("3"));
        let client = config.effective.iter();
        let mechanism: Vec<_> = client
            .filter(|e| e.key == "kafka.client.\"sasl.mechanism\"")
            .map(|e| e.origin.as_str())
            .collect();
        assert_eq!(mechanism, ["--set"]);
        let error = load(SMALLEST, &[], &["kafka.client.group.id=other"]).unwrap_err();
        assert!(error.contains("`group.id` is set by residuald"), "{error}");
    }
}
