//! `residuald init`: writes a first settings file for a bundle and a topic.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use indicatif::HumanCount;

use crate::bundle::{Bundle, Draft, Manifest, ModelInput};
use crate::config::{Config, reference};
use crate::verdict::{Judge, ThresholdRule};

use crate::config::default_rate;
use crate::failure::Failure;

const ANOMALIES: &str = "anomalies";
const DEAD_LETTERS: &str = "dead-letters";

/// Write a commented settings file for a bundle and a topic
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald init --bundle models/payments --topic payments
  residuald init --bundle models/surface --topic parts --brokers kafka:9092 --out parts.toml")]
pub struct Arguments {
    /// Bundle, a folder with manifest.json
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Topic to read; may be given several times
    #[arg(long, required = true)]
    topic: Vec<String>,
    #[arg(long, default_value = "localhost:9092")]
    brokers: String,
    /// Settings file to write
    #[arg(long, value_name = "FILE", default_value = "residuald.toml")]
    out: PathBuf,
    /// Overwrite the file if it exists
    #[arg(long)]
    force: bool,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let bundle = Draft::read(&arguments.bundle).finish()?;
    let text = settings(arguments, &bundle)?;
    write(&arguments.out, &text, arguments.force)?;
    let (topics, out) = (arguments.topic.join(", "), arguments.out.display());
    let Manifest { name, version, .. } = &bundle.manifest;
    println!(
        "wrote {out}: the records of {topics} are judged by {name} version {version}

next:
  1. create the topics {topics}, {ANOMALIES} and {DEAD_LETTERS} if they do not exist, because residuald does not create topics
  2. residuald check --config {out}
  3. residuald run --config {out}"
    );
    Ok(())
}

/// Returns the text of the settings file.
fn settings(arguments: &Arguments, bundle: &Bundle) -> Result<String, Failure> {
    let Arguments { topic, brokers, .. } = arguments;
    let folder = arguments.bundle.to_str().ok_or_else(|| {
        Failure::usage(
            "--bundle: the path is not UTF-8, but a settings file must be: rename the folder",
        )
    })?;
    let topics = serde_json::json!(topic).to_string();
    let (brokers, folder) = (quoted(brokers), quoted(folder));
    // Refuses values that a start would refuse.
    let given = [
        format!("kafka.brokers={brokers}"),
        format!("kafka.topics={topics}"),
        format!("model.bundle={folder}"),
    ];
    Config::load(None, Vec::new(), &given)?;

    let mut file = Settings::default();
    let name = &bundle.manifest.name;
    let _ = writeln!(
        file.text,
        "# The records of {} are judged by {name}. Settings that are not listed have their defaults: `residuald config` prints all of them.",
        topic.join(", ")
    );
    file.section("kafka");
    file.set("brokers", &brokers);
    file.set("topics", &topics);
    file.set("group_id", &quoted(&format!("residuald-{name}")));
    file.set("delivery", "\"at-least-once\"");
    file.section("kafka.client");
    file.section("input");
    match bundle.manifest.input {
        ModelInput::Tabular { .. } => file.set("format", "\"json\""),
        ModelInput::Image(_) => {
            file.set("format", "\"image\"");
            file.set("image_field", "\"image\"");
        }
    }
    file.section("model");
    file.set("bundle", &folder);
    file.section("threshold");
    threshold(&mut file, bundle)?;
    file.section("output");
    file.set("anomalies_topic", &quoted(ANOMALIES));
    file.leave("scores_topic");
    file.set("dead_letter_topic", &quoted(DEAD_LETTERS));
    file.section("http");
    file.set("listen", "\"127.0.0.1:9464\"");
    file.leave("token");
    Ok(file.text)
}

/// Writes a false-alarm rate that the calibration supports, with an explanation.
fn threshold(file: &mut Settings, bundle: &Bundle) -> Result<(), Failure> {
    let calibration = bundle.calibration.clone();
    let (count, finest) = (calibration.all.count, calibration.all.finest_rate());
    let rate = digits_up(default_rate(&calibration));
    let rule = ThresholdRule::FalseAlarmRate(rate.parse().map_err(Failure::internal)?);
    let judge = Judge::new(bundle.features().to_vec(), calibration, rule)?;
    let one_in = (1.0 / judge.expected_anomaly_ratio()).round() as u64;
    file.comment("false_alarm_rate");
    let _ = writeln!(
        file.text,
        "# With this bundle, 1 normal record in {} is expected to score above {:.4} and be flagged. It was calibrated on {} normal records,\n\
         # which support a rate of {} or more.",
        HumanCount(one_in),
        judge.threshold,
        HumanCount(count as u64),
        digits_up(finest),
    );
    let _ = writeln!(file.text, "false_alarm_rate = {rate}");
    for other in ["alerts_per_day", "records_per_day", "quantile", "score"] {
        file.leave(other);
    }
    Ok(())
}

/// Formats `rate`, rounded up to two significant digits.
fn digits_up(rate: f64) -> String {
    let decimals = 1 - rate.log10().floor() as i32;
    let unit = 10f64.powi(decimals);
    let up = (rate * unit - 1e-9).ceil() / unit;
    let text = format!("{up:.*}", decimals.unsigned_abs() as usize);
    text.trim_end_matches('0').to_owned()
}

/// Returns `text` as a TOML string. JSON strings are valid TOML.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Builds a settings file with the comments of `default.toml`.
#[derive(Default)]
struct Settings {
    text: String,
    section: &'static str,
}

impl Settings {
    fn section(&mut self, name: &'static str) {
        self.section = name;
        self.text.push('\n');
        let entry = reference::section(name);
        self.lines(&entry.comment);
        self.lines(&[entry.line]);
    }

    fn set(&mut self, name: &str, value: &str) {
        self.comment(name);
        let _ = writeln!(self.text, "{name} = {value}");
    }

    /// Adds a setting that is commented out.
    fn leave(&mut self, name: &str) {
        let entry = reference::setting(self.section, name);
        self.lines(&entry.comment);
        self.lines(&[entry.line]);
    }

    fn comment(&mut self, name: &str) {
        let comment = reference::setting(self.section, name).comment;
        self.lines(&comment);
    }

    fn lines(&mut self, lines: &[&str]) {
        for line in lines {
            self.text.push_str(line);
            self.text.push('\n');
        }
    }
}

fn write(out: &Path, text: &str, force: bool) -> Result<(), Failure> {
    let opened = match force {
        true => File::create(out),
        false => OpenOptions::new().write(true).create_new(true).open(out),
    };
    let written = opened.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => Failure::usage(format!(
            "{} already exists: choose another file with --out, or overwrite it with --force",
            out.display()
        )),
        _ => Failure::usage(format!("--out {}: {e}", out.display())),
    })
}

#[cfg(test)]
mod tests {
    use super::digits_up;

    #[test]
    fn a_rate_is_never_rounded_below_what_is_supported() {
        for (rate, text) in [
            (0.001, "0.001"),
            (1.0 / 241.0, "0.0042"),
            (1.0 / 990.0, "0.0011"),
            (0.0042, "0.0042"),
            (1.0 / 11.0, "0.091"),
            (0.5, "0.5"),
        ] {
            assert_eq!(digits_up(rate), text);
        }
    }
}
