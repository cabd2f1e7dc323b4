//! The settings: `default.toml`, overridden by a file, the environment and flags. All of them are checked, and every problem is
//! reported at once.

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
mod translate;

use std::path::Path;

pub use self::http::{HttpSettings, TlsFiles};
use crate::decode::Wrapping;
use crate::verdict::ThresholdRule;
pub use batch::BatchSettings;
pub use inference::{InferenceSettings, Provider};
pub use input::{Authorization, ImageSettings, InputSettings, SchemaRegistry, SchemaSource};
pub use kafka::{Guarantee, KafkaSettings, TRANSACTION_TIMEOUT_MS};
pub use live::Reloaded;
pub use model::ModelSettings;
pub use output::{Media, OutputSettings, RestoredSettings};
pub use screen::{ScreenMode, ScreenSettings};
pub use secret::{Secret, Secrets, is_secret};
use settings::Settings;
pub use settings::{ClientSettings, Effective};
pub use telemetry::{LogFormat, TelemetrySettings, TraceSettings};
pub use threshold::default_rate;
pub use topics::is_pattern;
pub use translate::TranslateSettings;

const DEFAULTS: &str = include_str!("default.toml");
const FLAG: &str = "--set";

/// Checked settings, with one field per section.
#[derive(Debug, Clone)]
pub struct Config {
    pub kafka: KafkaSettings,
    pub input: InputSettings,
    /// How a JSON message contains its records. `None` if each message is one plain record.
    pub wrapping: Option<Wrapping>,
    pub images: ImageSettings,
    pub model: ModelSettings,
    pub inference: InferenceSettings,
    pub screen: ScreenSettings,
    /// `None` if images are scored as they come.
    pub translate: Option<TranslateSettings>,
    pub batch: BatchSettings,
    /// Maximum memory of the process, in bytes. If `None`, the system's limit applies.
    pub memory_limit: Option<u64>,
    pub threshold: ThresholdRule,
    pub output: OutputSettings,
    pub http: HttpSettings,
    pub telemetry: TelemetrySettings,
    /// `None` if traces are off.
    pub traces: Option<TraceSettings>,
    /// Every setting with its source and value, as `residuald config` prints them. Values of secrets are hidden.
    pub effective: Vec<Effective>,
    /// Values that must not be printed.
    pub secrets: Secrets,
}

/// Why the settings are refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{path}: {problem}")]
    File { path: String, problem: String },
    /// The message does not quote the value, which may be a secret.
    #[error("--set {key}: expected SECTION.KEY=VALUE")]
    Flag { key: String },
    /// Every bad setting, one per line.
    #[error("{} bad setting{}:\n  {}", .0.len(), if .0.len() == 1 { "" } else { "s" }, .0.join("\n  "))]
    Settings(Vec<String>),
}

/// Maximum size of a settings file or a secret's file, in bytes.
const LARGEST_FILE: u64 = 1 << 20;

/// Names and values of environment variables.
pub type Variables = Vec<(String, String)>;

impl Config {
    /// Merges defaults, the file (if any), the variables that start with `RESIDUALD__`, and `--set` flags, then checks the
    /// result.
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

    /// Parses the sections. Their order here is also the order of problems and of [`Config::effective`].
    fn parse(mut settings: Settings) -> Result<Config, ConfigError> {
        let s = &mut settings;
        let kafka = KafkaSettings::parse(s);
        let input = InputSettings::parse(s);
        let wrapping = input::wrapping(s, &input);
        let images = ImageSettings::parse(s);
        let inference = InferenceSettings::parse(s);
        let model = ModelSettings::parse(s, inference.provider);
        let screen = ScreenSettings::parse(s);
        let translate = TranslateSettings::parse(s);
        let batch = BatchSettings::parse(s);
        let memory_limit = memory::limit(s);
        let threshold = threshold::parse(s);
        let output = OutputSettings::parse(s);
        check_scores_topic(screen, &output, s);
        check_written_topics(&kafka, &output, s);
        check_restored_topic(&output, s);
        if restores_translated(translate.as_ref(), &output) {
            s.problem(format!("{RESTORES_TRANSLATED}: remove one of them"));
        }
        let http = HttpSettings::parse(s);
        let telemetry = TelemetrySettings::parse(s);
        let traces = TraceSettings::parse(s);
        let (effective, secrets) = settings.finish().map_err(ConfigError::Settings)?;
        Ok(Config {
            kafka,
            input,
            wrapping,
            images,
            model,
            inference,
            screen,
            translate,
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
            "screen.mode = \"on\" leaves clearly normal records without a score, but output.scores_topic requires every score: remove one of them, or set screen.mode = \"audit\"".into(),
        );
    }
}

fn check_written_topics(kafka: &KafkaSettings, output: &OutputSettings, s: &mut Settings) {
    for topic in output.topics() {
        if kafka.topics.iter().any(|read| read == topic) {
            s.problem(format!(
                "topic `{topic}` is in kafka.topics and in [output]: choose another topic, because residuald would judge its own verdicts"
            ));
        }
    }
}

/// A bundle's denoiser knows images of its own kind alone.
const RESTORES_TRANSLATED: &str = "translate.bundle and output.restored_topic are both set, but images of another kind cannot be denoised by the bundle that they are translated for";

fn restores_translated(translate: Option<&TranslateSettings>, output: &OutputSettings) -> bool {
    translate.is_some() && output.restored.is_some()
}

/// Other messages among the restored records would look like records to those who read them.
fn check_restored_topic(output: &OutputSettings, s: &mut Settings) {
    let Some(restored) = &output.restored else {
        return;
    };
    let same = output.topics().into_iter().filter(|t| *t == restored.topic);
    if same.count() > 1 {
        s.problem(format!(
            "output.restored_topic = \"{}\" is another topic of [output] as well: choose a topic of its own for restored records",
            restored.topic
        ));
    }
}
