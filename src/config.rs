//! The settings: `default.toml`, over it a file, the environment and flags. Read raw, then checked; every fault at once.

mod dotted;
mod environment;
mod input;
mod live;
pub mod reference;
mod screen;
mod secret;
mod settings;
mod topics;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Environment, File, FileFormat};

use crate::memory;
use crate::telemetry;
use crate::verdict::ThresholdRule;
pub use input::{Authorization, Input, Pictures, SchemaRegistry, SchemaSource};
pub use live::Reloaded;
pub use screen::{Screen, ScreenMode};
pub use secret::{Secret, Secrets};
use settings::Settings;
pub use settings::{ClientSettings, Effective, is_secret};
pub use topics::is_pattern;

const DEFAULTS: &str = include_str!("default.toml");
const FLAG: &str = "--set";
/// How long the brokers keep the transaction of a process that is gone; its successor waits as long, unless it has
/// the same transactional.id.
pub const TRANSACTION_TIMEOUT_MS: u64 = 10_000;
const DEFAULT_FALSE_ALARM_RATE: f64 = 0.001;
const LEAST_LOAD_TIMEOUT: Duration = Duration::from_secs(1);

/// Checked settings, a section for each stage.
#[derive(Debug, Clone)]
pub struct Config {
    pub kafka: Kafka,
    pub input: Input,
    pub pictures: Pictures,
    pub model: Model,
    pub inference: Inference,
    pub screen: Screen,
    pub batch: Batch,
    /// Bytes that the process may take; what the system grants unless set.
    pub memory_limit: Option<u64>,
    pub threshold: ThresholdRule,
    pub output: Output,
    pub http: Http,
    pub telemetry: Telemetry,
    /// Off without it.
    pub traces: Option<Traces>,
    /// What `residuald config` prints: every setting, its value with secrets hidden, and where it came from.
    pub effective: Vec<Effective>,
    /// What must not be printed.
    pub secrets: Secrets,
}

#[derive(Debug, Clone)]
pub struct Kafka {
    pub brokers: String,
    pub topics: Vec<String>,
    pub group_id: String,
    pub guarantee: Guarantee,
    pub connect_timeout: Duration,
    pub drain_timeout: Duration,
    pub client: ClientSettings,
    pub consumer: ClientSettings,
    pub producer: ClientSettings,
}

/// What holds of delivery when something fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guarantee {
    AtLeastOnce,
    ExactlyOnce {
        /// How long verdicts may wait for their transaction.
        window: Duration,
    },
}

impl Guarantee {
    /// How long verdicts may wait for their transaction, if there are any.
    pub fn window(self) -> Option<Duration> {
        match self {
            Guarantee::AtLeastOnce => None,
            Guarantee::ExactlyOnce { window } => Some(window),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Model {
    pub bundle: PathBuf,
    /// How long it may take to load and prove it.
    pub load_timeout: Duration,
    /// Whether another bundle may read other fields than the one in force.
    pub allow_schema_change: bool,
}

#[derive(Debug, Clone)]
pub struct Inference {
    pub provider: Provider,
    pub fallback: bool,
    /// At least 1.
    pub workers: usize,
    /// CUDA's numbers of them, at least one; worker n has the n-th, over and over.
    pub devices: Vec<i32>,
    /// Bytes of a device's memory that one worker's tensors may take.
    pub device_memory: Option<usize>,
    /// Where TensorRT keeps what it has built.
    pub engine_cache: Option<PathBuf>,
}

impl Inference {
    pub fn on_cpu(workers: usize) -> Inference {
        Inference {
            provider: Provider::Cpu,
            fallback: false,
            workers,
            devices: vec![0],
            device_memory: None,
            engine_cache: None,
        }
    }
}

/// ONNX Runtime execution providers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Provider {
    Cpu,
    Cuda,
    #[value(name = "tensorrt")]
    TensorRt,
}

impl Provider {
    pub fn as_str(self) -> &'static str {
        match self {
            Provider::Cpu => "cpu",
            Provider::Cuda => "cuda",
            Provider::TensorRt => "tensorrt",
        }
    }

    /// How long loading a bundle may take if no setting says so: building TensorRT's engines takes minutes, and so can a first
    /// use of CUDA.
    pub fn load_timeout(self) -> Duration {
        match self {
            Provider::Cpu => Duration::from_secs(60),
            Provider::Cuda | Provider::TensorRt => Duration::from_secs(15 * 60),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Batch {
    pub max_records: usize,
    pub max_wait: Duration,
    pub in_flight: usize,
}

#[derive(Debug, Clone)]
pub struct Output {
    pub anomalies_topic: String,
    pub scores_topic: Option<String>,
    pub dead_letter_topic: String,
    pub include_record: bool,
    /// Features or regions.
    pub attributions: usize,
    /// Bytes of the maps that a verdict holds itself, together and before base64.
    pub inline_limit: usize,
    pub media: Option<Media>,
}

impl Output {
    /// The topics that are written.
    pub fn topics(&self) -> Vec<&str> {
        let mut topics = vec![
            self.anomalies_topic.as_str(),
            self.dead_letter_topic.as_str(),
        ];
        topics.extend(self.scores_topic.as_deref());
        if let Some(Media::Topic(topic)) = &self.media {
            topics.push(topic);
        }
        topics
    }
}

/// Where maps go that are too large for their verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Media {
    Topic(String),
    Folder(PathBuf),
}

#[derive(Debug, Clone)]
pub struct Http {
    pub listen: SocketAddr,
    /// Plain HTTP without it.
    pub tls: Option<TlsFiles>,
    /// What a request must bring, but for the probes.
    pub token: Option<Secret>,
}

/// Two PEM files.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The server's certificate, then those between it and the CA.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, Clone)]
pub struct Telemetry {
    pub log_level: String,
    pub log_format: LogFormat,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Traces {
    /// An OpenTelemetry collector, without `/v1/traces`.
    pub endpoint: String,
    /// Of the records that come without a trace, the share that get one, in [0, 1].
    pub sample_ratio: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
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

/// Bytes of a settings file.
const LARGEST_FILE: u64 = 1 << 20;

/// The file is read again at each SIGHUP, so a pipe will not do.
fn must_be_a_file(path: &Path) -> Result<(), ConfigError> {
    let problem = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() <= LARGEST_FILE => return Ok(()),
        Ok(metadata) if metadata.is_file() => format!(
            "has {} bytes, and settings have at most {LARGEST_FILE}: is this the right file?",
            metadata.len()
        ),
        Ok(metadata) if metadata.is_dir() => "is a folder: give the settings file in it".to_owned(),
        Ok(_) => "is no regular file, and a pipe cannot be read again: save the settings in a file"
            .to_owned(),
        Err(e) => format!("the settings cannot be read: {e}"),
    };
    Err(ConfigError::File {
        path: path.display().to_string(),
        problem,
    })
}

/// A clock-free view of the environment: name and value.
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
        let mut builder =
            config::Config::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
        if let Some(path) = file {
            must_be_a_file(path)?;
            builder = builder.add_source(File::from(path).format(FileFormat::Toml));
        }
        let of_libraries = environment::secrets(&variables);
        let environment = Environment::with_prefix("RESIDUALD")
            .prefix_separator("__")
            .separator("__")
            .source(Some(variables.into_iter().collect()));
        builder = builder.add_source(environment);
        for flag in flags {
            builder = builder.add_source(flag_source(flag)?);
        }
        let merged = builder.build().map_err(|e| ConfigError::File {
            path: file.map_or("settings".into(), |p| p.display().to_string()),
            problem: problem(file, e),
        })?;
        let mut config = check(Settings::new(merged.cache))?;
        config.secrets.extend(&of_libraries);
        Ok(config)
    }
}

/// What is wrong with the file, without the line itself: it may hold a secret.
fn problem(file: Option<&Path>, error: config::ConfigError) -> String {
    let config::ConfigError::FileParse { cause, .. } = error else {
        return error.to_string();
    };
    let Some(cause) = cause.downcast_ref::<toml::de::Error>() else {
        return "it is not TOML".into();
    };
    let text = file.and_then(|path| std::fs::read_to_string(path).ok());
    let before = cause.span().zip(text).map(|(span, text)| {
        let end = span.start.min(text.len());
        text.as_bytes()[..end]
            .iter()
            .filter(|b| **b == b'\n')
            .count()
    });
    let line = before.map_or(String::new(), |lines| format!("line {}: ", lines + 1));
    format!("{line}{}", cause.message())
}

/// `section.key=value`, the value as TOML, or as a string where it is not.
fn flag_source(flag: &str) -> Result<config::Config, ConfigError> {
    let part_of_key = |c: char| c.is_alphanumeric() || "._-\"".contains(c);
    let bad = || ConfigError::Flag {
        key: flag.chars().take_while(|c| part_of_key(*c)).collect(),
    };
    let (key, value) = flag.split_once('=').ok_or_else(bad)?;
    if !key.contains('.') {
        return Err(bad());
    }
    let as_text = serde_json::Value::from(value);
    [format!("{key} = {value}"), format!("{key} = {as_text}")]
        .iter()
        .find_map(|line| {
            let source = File::from_str(line, FileFormat::Toml);
            let parsed = config::Config::builder().add_source(source).build();
            parsed.ok()
        })
        .map(|mut parsed| {
            settings::set_origin(&mut parsed.cache, FLAG);
            parsed
        })
        .ok_or_else(bad)
}

/// What residuald sets itself, because delivery depends on it.
const RESERVED: [&str; 8] = [
    "bootstrap.servers",
    "group.id",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.partition.eof",
    "enable.idempotence",
    "acks",
    "request.required.acks",
];

fn check(mut s: Settings) -> Result<Config, ConfigError> {
    let window = s.duration("kafka.transaction_window");
    let kafka = Kafka {
        brokers: s.text("kafka.brokers"),
        topics: s.texts(
            "kafka.topics",
            "the topics to read, for instance topics = [\"payments\"]",
        ),
        group_id: s.text("kafka.group_id"),
        guarantee: s
            .choice(
                "kafka.delivery",
                &[
                    ("at-least-once", Guarantee::AtLeastOnce),
                    ("exactly-once", Guarantee::ExactlyOnce { window }),
                ],
            )
            .unwrap_or(Guarantee::AtLeastOnce),
        connect_timeout: s.duration("kafka.connect_timeout"),
        drain_timeout: s.duration("kafka.drain_timeout"),
        client: s.client_settings("kafka.client", &RESERVED),
        consumer: s.client_settings("kafka.consumer", &RESERVED),
        producer: s.client_settings("kafka.producer", &RESERVED),
    };
    check_delivery(&kafka, &mut s);
    topics::check(&kafka.topics, &mut s);
    let input = input::check(&mut s);
    let pictures = input::pictures(&mut s);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let inference = Inference {
        provider: s
            .choice(
                "inference.provider",
                &[
                    ("cpu", Provider::Cpu),
                    ("cuda", Provider::Cuda),
                    ("tensorrt", Provider::TensorRt),
                ],
            )
            .unwrap_or(Provider::Cpu),
        fallback: s.boolean("inference.fallback"),
        workers: match s.integer("inference.workers", 0, 1024) {
            0 => cores,
            workers => workers,
        },
        devices: s.integers("inference.devices", 0, 63),
        device_memory: Some(s.integer("inference.device_memory", 0, 1 << 40))
            .filter(|&bytes| bytes > 0),
        engine_cache: s.optional_text("inference.engine_cache").map(PathBuf::from),
    };
    let model = model(&mut s, inference.provider);
    let screen = screen::check(&mut s);
    let batch = Batch {
        max_records: s.integer("batch.max_records", 1, 65_536),
        max_wait: s.duration("batch.max_wait"),
        in_flight: s.integer("batch.in_flight", 1, 65_536),
    };
    let memory_limit = memory_limit(&mut s);
    let threshold = threshold(&mut s);
    let output = Output {
        anomalies_topic: s.text("output.anomalies_topic"),
        scores_topic: s.optional_text("output.scores_topic"),
        dead_letter_topic: s.text("output.dead_letter_topic"),
        include_record: s.boolean("output.include_record"),
        attributions: s.integer("output.attributions", 1, 1000),
        inline_limit: s.integer("output.inline_limit", 0, 1 << 30),
        media: media(&mut s),
    };
    if screen.mode == ScreenMode::On && output.scores_topic.is_some() {
        s.problem(
            "screen.mode = \"on\" leaves clearly normal records without a score, and output.scores_topic wants every score: set one of them, or screen.mode = \"audit\"".into(),
        );
    }
    let media_topic = match &output.media {
        Some(Media::Topic(topic)) => Some(topic),
        _ => None,
    };
    let written = [
        Some(&output.anomalies_topic),
        output.scores_topic.as_ref(),
        Some(&output.dead_letter_topic),
        media_topic,
    ];
    for topic in written.into_iter().flatten() {
        if kafka.topics.contains(topic) {
            s.problem(format!(
                "topic `{topic}` is both read and written: residuald would judge its own verdicts"
            ));
        }
    }
    let listen = s.text("http.listen");
    let listen = listen.parse().unwrap_or_else(|_| {
        s.problem(format!(
            "http.listen = \"{listen}\": expected an address and a port, for instance \"127.0.0.1:9464\""
        ));
        SocketAddr::from(([127, 0, 0, 1], 0))
    });
    let tls = match (
        s.optional_text("http.tls_certificate"),
        s.optional_text("http.tls_key"),
    ) {
        (Some(certificate), Some(key)) => Some(TlsFiles {
            certificate: certificate.into(),
            key: key.into(),
        }),
        (None, None) => None,
        _ => {
            s.problem("http.tls_certificate and http.tls_key: set both or none".into());
            None
        }
    };
    let token = s.secret("http.token");
    let telemetry = Telemetry {
        log_level: s.text("telemetry.log_level"),
        log_format: s
            .choice(
                "telemetry.log_format",
                &[("text", LogFormat::Text), ("json", LogFormat::Json)],
            )
            .unwrap_or(LogFormat::Text),
    };
    if let Err(problem) = telemetry::filter(&telemetry.log_level) {
        s.problem(format!(
            "telemetry.log_level = \"{}\": {problem}",
            telemetry.log_level
        ));
    }
    let traces = traces(&mut s);
    let (effective, secrets) = s.finish().map_err(ConfigError::Settings)?;
    Ok(Config {
        kafka,
        input,
        pictures,
        model,
        inference,
        screen,
        batch,
        memory_limit,
        threshold,
        output,
        http: Http { listen, tls, token },
        telemetry,
        traces,
        effective,
        secrets,
    })
}

fn model(s: &mut Settings, provider: Provider) -> Model {
    let what = "the folder of the model, for instance bundle = \"models/payments\"";
    let bundle = s.required_text("model.bundle", what).into();
    let asked = s.optional_duration("model.load_timeout");
    if asked.is_some_and(|asked| asked < LEAST_LOAD_TIMEOUT) {
        s.problem(format!(
            "model.load_timeout must be at least {LEAST_LOAD_TIMEOUT:?}"
        ));
    }
    Model {
        bundle,
        load_timeout: asked.unwrap_or(provider.load_timeout()),
        allow_schema_change: s.boolean("model.allow_schema_change"),
    }
}

fn memory_limit(s: &mut Settings) -> Option<u64> {
    let text = s.text("memory.limit");
    let limit = memory::parse(&text);
    if limit.is_none() && text != "auto" {
        s.problem(format!(
            "memory.limit = \"{text}\": expected \"auto\", or a size such as \"768MiB\" or \"2GiB\""
        ));
    }
    limit
}

fn traces(s: &mut Settings) -> Option<Traces> {
    let endpoint = s.url(
        "telemetry.otlp_endpoint",
        "http://localhost:4318",
        "headers come from OTEL_EXPORTER_OTLP_HEADERS",
    );
    let ratio = s.number("telemetry.trace_sample_ratio", "from 0 to 1", |ratio| {
        (0.0..=1.0).contains(&ratio)
    });
    let sample_ratio = ratio.unwrap_or_default();
    if endpoint.is_none() && sample_ratio > 0.0 {
        s.problem("telemetry.trace_sample_ratio needs telemetry.otlp_endpoint".into());
    }
    endpoint.map(|endpoint| Traces {
        endpoint,
        sample_ratio,
    })
}

fn media(s: &mut Settings) -> Option<Media> {
    let topic = s.optional_text("output.media_topic");
    let folder = s.optional_text("output.media_dir");
    match (topic, folder) {
        (Some(_), Some(_)) => {
            s.problem("set output.media_topic or output.media_dir, not both".into());
            None
        }
        (Some(topic), None) => Some(Media::Topic(topic)),
        (None, folder) => folder.map(|folder| Media::Folder(folder.into())),
    }
}

/// What exactly-once asks of librdkafka's settings.
fn check_delivery(kafka: &Kafka, s: &mut Settings) {
    let find = |name| {
        let own = [&kafka.producer, &kafka.consumer, &kafka.client];
        own.into_iter().find_map(|settings| settings.get(name))
    };
    let id = find("transactional.id");
    let Some(window) = kafka.guarantee.window() else {
        if id.is_some() {
            s.problem("transactional.id needs kafka.delivery = \"exactly-once\"".into());
        }
        return;
    };
    if find("isolation.level").is_some_and(|level| level != "read_committed") {
        s.problem(
            "isolation.level must be read_committed with kafka.delivery = \"exactly-once\": a new owner of a partition has to wait for the transaction of the old one".into(),
        );
    }
    let timeout = find("transaction.timeout.ms").and_then(|ms| ms.parse().ok());
    let timeout = Duration::from_millis(timeout.unwrap_or(TRANSACTION_TIMEOUT_MS));
    if window.is_zero() || 2 * window > timeout {
        s.problem(format!(
            "kafka.transaction_window must be above 0 and at most half of transaction.timeout.ms, which is {timeout:?}"
        ));
    }
}

fn threshold(s: &mut Settings) -> ThresholdRule {
    let open_interval = |rate: f64| rate > 0.0 && rate < 1.0;
    let rate = s.number(
        "threshold.false_alarm_rate",
        "between 0 and 1",
        open_interval,
    );
    let alerts = s.number("threshold.alerts_per_day", "above 0", |a| a > 0.0);
    let records = s.number("threshold.records_per_day", "above 0", |r| r > 0.0);
    let quantile = s.number("threshold.quantile", "between 0 and 1", open_interval);
    let score = s.number("threshold.score", "above 0", |s| s > 0.0 && s < 1e30);
    let given = [rate, alerts, quantile, score];
    if given.iter().flatten().count() > 1 {
        s.problem(
            "[threshold]: set one of false_alarm_rate, alerts_per_day, quantile, score, not several"
                .into(),
        );
    }
    match (rate, alerts, records, quantile, score) {
        (Some(rate), ..) => ThresholdRule::FalseAlarmRate(rate),
        (_, Some(alerts), Some(records_per_day), ..) => {
            if alerts >= records_per_day {
                s.problem("threshold.alerts_per_day must be less than records_per_day".into());
            }
            ThresholdRule::AlertsPerDay {
                alerts,
                records_per_day,
            }
        }
        (_, Some(_), None, ..) => {
            s.problem(
                "threshold.alerts_per_day needs threshold.records_per_day, the expected volume"
                    .into(),
            );
            ThresholdRule::FalseAlarmRate(DEFAULT_FALSE_ALARM_RATE)
        }
        (.., Some(level), _) => ThresholdRule::Quantile(level),
        (.., Some(score)) => ThresholdRule::Score(score as f32),
        _ => ThresholdRule::FalseAlarmRate(DEFAULT_FALSE_ALARM_RATE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, variables: &[(&str, &str)], flags: &[&str]) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("residuald.toml");
        std::fs::write(&path, text).unwrap();
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Config::load(
            Some(&path),
            variables.iter().map(own).collect(),
            &flags.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>(),
        )
        .map_err(|e| e.to_string())
    }

    const SMALLEST: &str = "kafka.topics = \"payments\"\nmodel.bundle = \"m\"";

    #[test]
    fn the_smallest_config_is_two_lines() {
        let config = load(SMALLEST, &[], &[]).unwrap();
        assert_eq!(config.kafka.topics, ["payments"]);
        assert_eq!(config.batch.max_wait, Duration::from_millis(5));
        assert!(config.inference.workers >= 1);
        assert_eq!(config.threshold, ThresholdRule::FalseAlarmRate(0.001));
    }

    #[test]
    fn the_settings_are_in_a_regular_file() {
        let dir = tempfile::tempdir().unwrap();
        let load = |path: &Path| {
            Config::load(Some(path), vec![], &[])
                .unwrap_err()
                .to_string()
        };
        assert!(load(dir.path()).contains("is a folder"));
        assert!(load(Path::new("/dev/null")).contains("no regular file"));
        let large = dir.path().join("large.toml");
        let file = std::fs::File::create(&large).unwrap();
        file.set_len(5 << 30).unwrap();
        assert!(load(&large).contains("5368709120 bytes"));
        let gone = load(&dir.path().join("gone.toml"));
        assert!(
            gone.contains("gone.toml: the settings cannot be read: No such file"),
            "{gone}"
        );
    }

    #[test]
    fn a_topic_is_a_name_or_a_pattern() {
        let loaded = |topics: &str| load(SMALLEST, &[], &[&format!("kafka.topics={topics}")]);
        for fine in ["a.b_c-D", "[\"^pay-.*\", \"x\"]", "^pay-(eu|us)$"] {
            loaded(fine).unwrap();
        }
        for (wrong, problem) in [
            ("[\"^pay-(\"]", "`^pay-(` is no pattern: unclosed group"),
            ("^(?!dead).*", "look-around"),
            ("^a{1,2}", "needs a list"),
            ("pay-*", "`pay-*` is no topic"),
            ("[\"two words\"]", "`two words` is no topic"),
        ] {
            let error = loaded(wrong).unwrap_err();
            assert!(error.contains(problem), "{wrong}: {error}");
        }
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let text = format!("{SMALLEST}\nbatch.max_records = 2\nkafka.group_id = \"file\"");
        let variables = [
            ("RESIDUALD__BATCH__MAX_RECORDS", "3"),
            ("RESIDUALD__KAFKA__GROUP_ID", "0012"),
        ];
        let flags = [
            "batch.max_records=4",
            "kafka.topics=[\"a\", \"b\"]",
            "model.bundle=some/where",
        ];
        let config = load(&text, &variables, &flags).unwrap();
        assert_eq!(config.batch.max_records, 4);
        assert_eq!(config.kafka.group_id, "0012");
        assert_eq!(config.kafka.topics, ["a", "b"]);
        assert_eq!(config.model.bundle, Path::new("some/where"));
        let origin = |key: &str| {
            let setting = config.effective.iter().find(|e| e.key == key);
            setting.unwrap().origin.clone()
        };
        assert_eq!(origin("batch.max_records"), "--set");
        assert_eq!(origin("kafka.group_id"), "the environment");
        assert_eq!(origin("batch.max_wait"), "default");
    }

    #[test]
    fn devices_are_one_number_a_list_or_an_array() {
        for (flag, devices) in [
            ("inference.devices=3", &[3][..]),
            ("inference.devices=0, 2", &[0, 2]),
            ("inference.devices=[1, 0]", &[1, 0]),
        ] {
            let config = load(SMALLEST, &[], &[flag]).unwrap();
            assert_eq!(config.inference.devices, devices, "{flag}");
        }
        for flag in ["inference.devices=-1", "inference.devices=0,x"] {
            let error = load(SMALLEST, &[], &[flag]).unwrap_err();
            assert!(error.contains("whole numbers from 0 to 63"), "{error}");
        }
        let error = load(SMALLEST, &[], &["inference.devices=[]"]).unwrap_err();
        assert!(error.contains("inference.devices"), "{error}");
    }

    #[test]
    fn every_fault_is_reported_at_once() {
        let text = r#"
            model.bundle = "m"
            kafka.broker = "x"
            batch.max_records = 0
            batch.max_wait = "soon"
            inference.provider = "gpu"
            threshold.quantile = 0.9
            threshold.score = 3.0
            http.listen = "9464"
            kafka.consumer."enable.auto.commit" = true
        "#;
        let error = load(text, &[("RESIDUALD__NOWHERE", "1")], &[]).unwrap_err();
        for expected in [
            "9 bad settings",
            "kafka.topics is not set",
            "unknown setting `kafka.broker`, did you mean `kafka.brokers`?",
            "batch.max_records = 0: expected a whole number from 1 to 65536",
            "batch.max_wait = \"soon\"",
            "inference.provider = \"gpu\": expected one of cpu, cuda, tensorrt",
            "set one of false_alarm_rate",
            "http.listen",
            "`enable.auto.commit` is set by residuald",
            "unknown setting `nowhere`",
        ] {
            assert!(error.contains(expected), "{expected}\nnot in\n{error}");
        }
    }

    #[test]
    fn the_memory_limit_is_a_size_or_what_the_system_grants() {
        let limit = |flag: &str| load(SMALLEST, &[], &[flag]).map(|config| config.memory_limit);
        assert_eq!(limit("memory.limit=auto"), Ok(None));
        assert_eq!(limit("memory.limit=768MiB"), Ok(Some(768 << 20)));
        assert_eq!(limit("memory.limit=536870912"), Ok(Some(512 << 20)));
        let error = limit("memory.limit=plenty").unwrap_err();
        assert!(error.contains("memory.limit = \"plenty\""), "{error}");
    }

    #[test]
    fn a_topic_cannot_be_read_and_written() {
        let error = load(SMALLEST, &[], &["output.anomalies_topic=payments"]).unwrap_err();
        assert!(error.contains("both read and written"), "{error}");
    }

    #[test]
    fn traces_go_where_they_are_told_and_are_off_otherwise() {
        assert_eq!(load(SMALLEST, &[], &[]).unwrap().traces, None);
        let endpoint = "telemetry.otlp_endpoint=http://collector:4318/";
        let ratio = "telemetry.trace_sample_ratio=0.5";
        let traces = load(SMALLEST, &[], &[endpoint, ratio]).unwrap().traces;
        let expected = Traces {
            endpoint: "http://collector:4318".into(),
            sample_ratio: 0.5,
        };
        assert_eq!(traces, Some(expected));
        for (flags, said) in [
            (&[ratio][..], "needs telemetry.otlp_endpoint"),
            (
                &[endpoint, "telemetry.trace_sample_ratio=1.5"],
                "a number from 0 to 1",
            ),
            (
                &["telemetry.otlp_endpoint=collector:4318"],
                "expected http://",
            ),
            (
                &["telemetry.otlp_endpoint=http://me:pw@collector"],
                "OTEL_EXPORTER_OTLP_HEADERS",
            ),
        ] {
            let error = load(SMALLEST, &[], flags).unwrap_err();
            assert!(error.contains(said), "{said}\nnot in\n{error}");
            assert!(!error.contains("pw"), "{error}");
        }
    }

    #[test]
    fn secrets_come_from_the_environment_or_a_file_and_are_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "hunter2\n").unwrap();
        let text = format!(
            "{SMALLEST}\n[kafka.client]\n\"sasl.username\" = \"me\"\n\"sasl.password\" = {{ file = {:?} }}",
            secret
        );
        let variables = [("RESIDUALD__KAFKA__CLIENT__SSL_KEY_PASSWORD", "open sesame")];
        let config = load(&text, &variables, &[]).unwrap();
        let client = config.kafka.client.iter();
        let client = client.filter(|(name, _)| name.starts_with('s'));
        assert_eq!(
            client.collect::<Vec<_>>(),
            [
                ("sasl.password", "hunter2"),
                ("sasl.username", "me"),
                ("ssl.key.password", "open sesame")
            ]
        );
        let shown = format!("{config:?} {:?}", config.effective);
        assert!(
            !shown.contains("hunter2") && !shown.contains("sesame"),
            "{shown}"
        );
        let missing = load(
            SMALLEST,
            &[],
            &["kafka.client.\"sasl.password\"={ env = \"NOT_SET_ANYWHERE\" }"],
        );
        assert!(missing.unwrap_err().contains("NOT_SET_ANYWHERE"));
    }

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

    #[test]
    fn a_secret_says_where_it_came_from() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "hunter2").unwrap();
        let file = format!("{{ file = {secret:?} }}");
        let origin = |text: &str, variables: &[(&str, &str)], flags: &[&str], key: &str| {
            let config = load(&format!("{SMALLEST}\n{text}"), variables, flags).unwrap();
            let setting = config.effective.into_iter().find(|e| e.key == key);
            setting.unwrap().origin
        };
        let password = "kafka.client.\"sasl.password\"";
        for key in ["http.token", password] {
            for value in ["\"hunter2\"", &file] {
                let line = format!("{key} = {value}");
                let origin_of_file = origin(&line, &[], &[], key);
                assert!(
                    origin_of_file.ends_with("residuald.toml"),
                    "{origin_of_file}"
                );
                let flag = format!("{key}={value}");
                assert_eq!(origin("", &[], &[&flag], key), "--set", "{flag}");
            }
        }
        let path = secret.to_str().unwrap();
        for (variable, value, key) in [
            ("RESIDUALD__HTTP__TOKEN", "hunter2", "http.token"),
            ("RESIDUALD__HTTP__TOKEN__FILE", path, "http.token"),
            (
                "RESIDUALD__KAFKA__CLIENT__SASL_PASSWORD",
                "hunter2",
                password,
            ),
            (
                "RESIDUALD__KAFKA__CLIENT__SASL_PASSWORD__FILE",
                path,
                password,
            ),
        ] {
            let origin = origin("", &[(variable, value)], &[], key);
            assert_eq!(origin, "the environment", "{variable}");
        }
    }

    #[test]
    fn a_format_has_one_source_of_schemas() {
        let input = |flags: &[&str]| load(SMALLEST, &[], flags).map(|config| config.input);
        assert_eq!(input(&[]), Ok(Input::OfBundle));
        let file = [
            "input.format=protobuf",
            "input.schema_file=p.proto",
            "input.message=a.P",
        ];
        let Ok(Input::Protobuf(SchemaSource::File(path), Some(message))) = input(&file) else {
            panic!("{:?}", input(&file));
        };
        assert_eq!((path.to_str(), message.as_str()), (Some("p.proto"), "a.P"));
        let registry = [
            "input.format=avro",
            "input.schema_registry.url=http://registry:8081/",
            "input.schema_registry.username=me",
            "input.schema_registry.password=hunter2",
        ];
        let config = load(SMALLEST, &[], &registry).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        let Input::Avro(SchemaSource::Registry(registry)) = config.input else {
            panic!("{:?}", config.input);
        };
        assert_eq!(registry.url, "http://registry:8081");
        assert_eq!(registry.timeout, Duration::from_secs(5));
        assert!(matches!(
            registry.authorization,
            Authorization::Basic { .. }
        ));

        let url = "input.schema_registry.url=https://r";
        for (flags, expected) in [
            (&["input.format=avro"][..], "needs schemas"),
            (&["input.format=xml"], "one of json, avro, protobuf"),
            (
                &["input.format=avro", url, "input.schema_file=s"],
                "not both",
            ),
            (
                &["input.format=protobuf", "input.schema_file=s"],
                "input.message is not set",
            ),
            (
                &["input.format=protobuf", url, "input.message=M"],
                "input.message",
            ),
            (&["input.schema_file=s"], "reads no schema"),
            (
                &[
                    "input.format=avro",
                    "input.schema_registry.url=registry:8081",
                ],
                "http://",
            ),
            (
                &[
                    "input.format=avro",
                    "input.schema_registry.url=http://me:pw@r",
                ],
                "without credentials",
            ),
            (
                &[
                    "input.format=avro",
                    url,
                    "input.schema_registry.username=me",
                ],
                "password",
            ),
            (
                &[
                    "input.format=avro",
                    url,
                    "input.schema_registry.token={ env = \"NOT_SET_ANYWHERE\" }",
                ],
                "NOT_SET_ANYWHERE",
            ),
            (
                &["input.format=avro", url, "input.schema_registry.usrname=me"],
                "did you mean",
            ),
            (
                &["input.format=avro", url, "input.schema_registry.timeout=0s"],
                "timeout",
            ),
        ] {
            let error = input(flags).unwrap_err();
            assert!(error.contains(expected), "{expected}\nnot in\n{error}");
            assert!(!error.contains("pw@"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_absent_or_not_toml_is_named() {
        let absent = Config::load(Some(Path::new("/no/such/file.toml")), vec![], &[]);
        assert!(
            absent
                .unwrap_err()
                .to_string()
                .contains("/no/such/file.toml")
        );
        assert!(
            load("not toml", &[], &[])
                .unwrap_err()
                .contains("residuald.toml")
        );
        assert!(
            load(SMALLEST, &[], &["nonsense"])
                .unwrap_err()
                .contains("--set nonsense")
        );
    }
}
