//! Arguments of verbs that use a topic: a connection, from flags or a daemon's settings, and a range.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;

use crate::config::{self, ClientSettings, Config, LogFormat, TelemetrySettings, is_pattern};
use crate::kafka::history::{Bound, Range, Span};
use crate::telemetry;

use crate::cli::shared::feed::kafka_settings;
use crate::cli::shared::settings::{ConfigArguments, settings_file};
use crate::failure::Failure;

const DEFAULT_BROKERS: &str = "localhost:9092";

#[derive(clap::Args)]
pub struct ClientArguments {
    /// A librdkafka setting; may be given several times
    #[arg(short = 'X', value_name = "NAME=VALUE", value_parser = name_and_value)]
    client: Vec<(String, String)>,
}

impl ClientArguments {
    /// Returns the librdkafka settings. From now on, their secrets are hidden in all output.
    pub fn settings(&self) -> ClientSettings {
        let mut settings = ClientSettings::default();
        for (name, value) in &self.client {
            settings.set(name, value);
        }
        telemetry::keep(&settings.secrets());
        settings
    }
}

fn name_and_value(setting: &str) -> Result<(String, String), String> {
    let (name, value) = setting.split_once('=').ok_or("it must be NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[derive(clap::Args)]
pub struct ConnectionArguments {
    /// Bootstrap servers [default: kafka.brokers of --config, else localhost:9092]
    #[arg(long)]
    brokers: Option<String>,
    #[command(flatten)]
    client: ClientArguments,
    /// Settings file of a daemon (TOML), for its connection with secrets, topics and defaults [default: ./residuald.toml, if it
    /// exists]
    #[arg(short, long, value_name = "FILE", env = "RESIDUALD_CONFIG")]
    config: Option<PathBuf>,
}

/// The Kafka connection, and the daemon's settings if a file is given.
pub struct Connection {
    pub kafka: config::KafkaSettings,
    pub config: Option<Config>,
}

impl ConnectionArguments {
    /// Starts logging, for errors only, and reads the settings.
    pub fn load(&self) -> Result<Connection, Failure> {
        telemetry::init(&TelemetrySettings {
            log_level: "error".into(),
            log_format: LogFormat::Text,
        });
        let file = settings_file(self.config.as_deref());
        let config = file.map(ConfigArguments::file);
        let config = config.map(|arguments| arguments.load()).transpose()?;
        let mut kafka = config.as_ref().map_or_else(
            || kafka_settings(DEFAULT_BROKERS, ClientSettings::default()),
            |config| config.kafka.clone(),
        );
        if let Some(brokers) = &self.brokers {
            kafka.brokers.clone_from(brokers);
        }
        for (name, value) in self.client.settings().iter() {
            // -X also overrides the settings in --config that are for one kind of client.
            for settings in [&mut kafka.client, &mut kafka.consumer, &mut kafka.producer] {
                settings.set(name, value);
            }
        }
        Ok(Connection { kafka, config })
    }
}

/// The arguments --from and --to, which select a range of records.
#[derive(clap::Args)]
pub struct RangeArguments {
    /// First record: beginning, a record time (2026-01-31T08:00:00Z, -24h, -7d), an offset, or partition:offset,…
    #[arg(
        long,
        value_name = "WHERE",
        default_value = "beginning",
        allow_hyphen_values = true
    )]
    from: Bound,
    /// End of the range, exclusive, in the same form
    #[arg(
        long,
        value_name = "WHERE",
        default_value = "end",
        allow_hyphen_values = true
    )]
    to: Bound,
}

impl RangeArguments {
    /// Returns the range. Relative times such as -24h are resolved against the current time.
    pub fn range(&self) -> Range {
        Range {
            from: self.from.clone(),
            to: self.to.clone(),
            now: Timestamp::now(),
            all_committed: false,
        }
    }
}

/// Returns the requested topic, or the one that the settings read.
pub fn topic(requested: Option<&str>, config: Option<&Config>) -> Result<String, Failure> {
    let configured = config.map_or(&[][..], |config| &config.kafka.topics);
    match (requested, configured) {
        (Some(topic), _) => Ok(topic.to_owned()),
        (None, [topic]) if is_pattern(topic) => Err(Failure::usage(format!(
            "the settings have the topic pattern {topic}: choose one topic with --topic"
        ))),
        (None, [topic]) => Ok(topic.clone()),
        (None, []) => Err(Failure::usage(
            "no topic is given: use --topic TOPIC, or --config FILE",
        )),
        (None, several) => Err(Failure::usage(format!(
            "the settings have several topics ({}): choose one with --topic",
            several.join(", ")
        ))),
    }
}

/// Returns the error for a range without records.
pub fn empty_range(topic: &str, spans: &BTreeMap<i32, Span>) -> Failure {
    let ranges = spans
        .iter()
        .map(|(partition, span)| format!("{partition}:{} to {}", span.start, span.end));
    Failure::data(format!(
        "topic `{topic}` has no records in the requested range, {}",
        ranges.collect::<Vec<_>>().join(", ")
    ))
}
