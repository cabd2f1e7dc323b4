//! The settings: `default.toml`, over it a file, the environment and flags. Read raw, then checked; every fault at once.

mod batch;
mod dotted;
mod library_secrets;
mod http;
mod inference;
mod input;
mod kafka;
mod live;
pub mod log_filter;
mod memory;
mod model;
mod output;
pub mod reference;
mod screen;
mod secret;
mod settings;
mod sources;
mod telemetry;
#[cfg(test)]
mod tests;
mod threshold;
mod topics;

use std::path::Path;

pub use self::http::{HttpSettings, TlsFiles};
use crate::verdict::ThresholdRule;
pub use batch::BatchSettings;
pub use inference::{InferenceSettings, Provider};
pub use input::{Authorization, ImageSettings, InputSettings, SchemaRegistry, SchemaSource};
pub use kafka::{Guarantee, KafkaSettings, TRANSACTION_TIMEOUT_MS};
pub use live::Reloaded;
pub use model::ModelSettings;
pub use output::{Media, OutputSettings};
pub use screen::{ScreenMode, ScreenSettings};
pub use secret::{Secret, Secrets, is_secret};
use settings::Settings;
pub use settings::{ClientSettings, Effective};
pub use telemetry::{LogFormat, TelemetrySettings, TraceSettings};
pub use threshold::DEFAULT_FALSE_ALARM_RATE;
pub use topics::is_pattern;

const DEFAULTS: &str = include_str!("default.toml");
const FLAG: &str = "--set";

/// Checked settings, a field a section.
#[derive(Debug, Clone)]
pub struct Config {
    pub kafka: KafkaSettings,
    pub input: InputSettings,
    pub images: ImageSettings,
    pub model: ModelSettings,
    pub inference: InferenceSettings,
    pub screen: ScreenSettings,
    pub batch: BatchSettings,
    /// Bytes that the process may take; `None` if the system's limit applies.
    pub memory_limit: Option<u64>,
    pub threshold: ThresholdRule,
    pub output: OutputSettings,
    pub http: HttpSettings,
    pub telemetry: TelemetrySettings,
    /// `None` if traces are off.
    pub traces: Option<TraceSettings>,
    /// What `residuald config` prints: every setting, its value with secrets hidden, and where it came from.
    pub effective: Vec<Effective>,
    /// What must not be printed.
    pub secrets: Secrets,
}

/// Why the settings were refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{path}: {problem}")]
    File { path: String, problem: String },
    /// Without the value, which may be a secret.
    #[error("--set {key}: expected SECTION.KEY=VALUE")]
    Flag { key: String },
    /// Every bad setting, a line each.
    #[error("{} bad setting{}:\n  {}", .0.len(), if .0.len() == 1 { "" } else { "s" }, .0.join("\n  "))]
    Settings(Vec<String>),
}

/// Bytes of a file with settings, or with one secret.
const LARGEST_FILE: u64 = 1 << 20;

/// Environment variables: name and value.
pub type Variables = Vec<(String, String)>;

impl Config {
    /// Layers defaults, the file (if any), the variables that start with `RESIDUALD__`, and `--set` flags; then checks.
    ///
    /// # Errors
    /// [`ConfigError`] with every bad setting.
    pub fn load(
        file: Option<&Path>,
        variables: Variables,
        flags: &[String],
    ) -> Result<Config, ConfigError> {
        let of_libraries = library_secrets::secrets(&variables);
        let merged = sources::merged(file, variables, flags)?;
        let mut config = Config::parse(Settings::new(merged))?;
        config.secrets.extend(&of_libraries);
        Ok(config)
    }

    /// Sections are parsed in this order, which is also that of problems and of [`Config::effective`].
    fn parse(mut settings: Settings) -> Result<Config, ConfigError> {
        let s = &mut settings;
        let kafka = KafkaSettings::parse(s);
        let input = InputSettings::parse(s);
        let images = ImageSettings::parse(s);
        let inference = InferenceSettings::parse(s);
        let model = ModelSettings::parse(s, inference.provider);
        let screen = ScreenSettings::parse(s);
        let batch = BatchSettings::parse(s);
        let memory_limit = memory::limit(s);
        let threshold = threshold::parse(s);
        let output = OutputSettings::parse(s);
        check_scores_topic(screen, &output, s);
        check_written_topics(&kafka, &output, s);
        let http = HttpSettings::parse(s);
        let telemetry = TelemetrySettings::parse(s);
        let traces = TraceSettings::parse(s);
        let (effective, secrets) = settings.finish().map_err(ConfigError::Settings)?;
        Ok(Config {
            kafka,
            input,
            images,
            model,
            inference,
            screen,
            batch,
            memory_limit,
            threshold,
            output,
            http,
            telemetry,
            traces,
            effective,
            secrets,
        })
    }
}

fn check_scores_topic(screen: ScreenSettings, output: &OutputSettings, s: &mut Settings) {
    if screen.mode == ScreenMode::On && output.scores_topic.is_some() {
        s.problem(
            "screen.mode = \"on\" leaves clearly normal records without a score, and output.scores_topic wants every score: set one of them, or screen.mode = \"audit\"".into(),
        );
    }
}

fn check_written_topics(kafka: &KafkaSettings, output: &OutputSettings, s: &mut Settings) {
    for topic in output.topics() {
        if kafka.topics.iter().any(|read| read == topic) {
            s.problem(format!(
                "topic `{topic}` is both read and written: residuald would judge its own verdicts"
            ));
        }
    }
}
