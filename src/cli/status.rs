//! `residuald status`: shows the state of a running daemon.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use ureq::tls::RootCerts;

use crate::http_client;
use crate::schema_registry;

use crate::failure::Failure;

/// Timeout of the request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Show the state of a running daemon; the exit code is 0 only if it is ready
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald status
  residuald status http://10.0.0.7:9464 --json
  RESIDUALD_TOKEN=… residuald status https://scorer:9464 --ca-file ca.pem")]
pub struct Arguments {
    #[arg(default_value = "http://127.0.0.1:9464")]
    url: String,
    /// Token of the daemon (http.token); prefer the environment variable, because flags are visible in process lists
    #[arg(
        long,
        value_name = "TOKEN",
        env = "RESIDUALD_TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
    /// PEM file with the CA of the daemon's certificate, if the system does not trust it
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Print the daemon's JSON unchanged
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Status {
    version: String,
    uptime_seconds: f64,
    ready: bool,
    waiting_for: Vec<String>,
    model: Model,
    provider: String,
    threshold: f64,
    /// Older daemons do not send it.
    #[serde(default)]
    needs_restart: Vec<String>,
    #[serde(default)]
    missing_topics: Vec<String>,
    brokers_silent_since: Option<String>,
    records: serde_json::Map<String, serde_json::Value>,
    partitions: Vec<Partition>,
}

#[derive(Deserialize)]
struct Model {
    name: String,
    version: String,
    sha256: String,
}

#[derive(Deserialize)]
struct Partition {
    topic: String,
    partition: i32,
    /// -1 if unknown.
    lag: i64,
    finished_offset: i64,
    waiting_for: Option<String>,
    waiting_since: Option<String>,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let body = request_status(arguments)?;
    let unexpected = |e| {
        Failure::unavailable(format!(
            "{}: the response is not the status of a residuald daemon, so check the URL: {e}",
            arguments.url
        ))
    };
    let status: Status = serde_json::from_str(&body).map_err(unexpected)?;
    if arguments.json {
        println!("{body}");
    } else {
        show(&status);
    }
    if status.ready {
        return Ok(());
    }
    Err(Failure::unavailable(format!(
        "not ready: waiting for the {}",
        status.waiting_for.join(", the ")
    )))
}

fn request_status(arguments: &Arguments) -> Result<String, Failure> {
    let roots = match &arguments.ca_file {
        Some(path) => schema_registry::roots(path).map_err(Failure::usage)?,
        None => RootCerts::PlatformVerifier,
    };
    let agent = http_client::agent(roots, PATIENCE).build().new_agent();
    let url = format!("{}/status", arguments.url.trim_end_matches('/'));
    let unavailable = |e: ureq::Error| {
        let advice = advice(&url, &e.to_string(), arguments.ca_file.is_some());
        Failure::unavailable(format!("{url}: {e}. {advice}"))
    };
    let mut request = agent.get(&url);
    if let Some(token) = &arguments.token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    let mut response = request.call().map_err(unavailable)?;
    match response.status().as_u16() {
        200 => response.body_mut().read_to_string().map_err(unavailable),
        401 => Err(Failure::usage(format!(
            "{url}: the daemon requires its http.token: set RESIDUALD_TOKEN"
        ))),
        code => {
            let body = response.body_mut().read_to_string().unwrap_or_default();
            let first_line: String = body
                .lines()
                .next()
                .unwrap_or_default()
                .chars()
                .take(300)
                .collect();
            let first_line = first_line.escape_debug();
            Err(Failure::unavailable(format!(
                "{url}: HTTP {code}: {first_line}"
            )))
        }
    }
}

/// Returns what to try if the daemon does not respond.
fn advice(url: &str, problem: &str, has_ca_file: bool) -> &'static str {
    let mentions = |words: &[&str]| words.iter().any(|word| problem.contains(word));
    if mentions(&["certificate"]) {
        return match has_ca_file {
            false => {
                "The system does not trust the daemon's certificate: pass its CA with --ca-file, and use a host name that the certificate contains"
            }
            true => {
                "Check that the CA in --ca-file signed the daemon's certificate, and that the certificate contains this host name"
            }
        };
    }
    let plain_response = &["wrong version number", "packet length", "record layer"];
    let tls_response = &["protocol", "disconnected", "reset"];
    match url.starts_with("https://") {
        true if mentions(plain_response) => {
            "Perhaps the daemon does not use TLS (http.tls_certificate is not set): try http://"
        }
        false if mentions(tls_response) => {
            "The daemon may use TLS (http.tls_certificate): try https://"
        }
        _ => "Check that the daemon is running and that this is its http.listen",
    }
}

fn show(status: &Status) {
    let Model {
        name,
        version,
        sha256,
    } = &status.model;
    let hours = status.uptime_seconds / 3600.0;
    let state = if status.ready { "ready" } else { "not ready" };
    let line = |name: &str, value: String| println!("{name:<14} {value}");
    line("state", state.to_owned());
    line(
        "version",
        format!("{}, up {hours:.1} hours", status.version),
    );
    let short = sha256.get(..8).unwrap_or(sha256);
    line(
        "model",
        format!("{name} {version} ({short}) on {}", status.provider),
    );
    line("threshold", format!("{:.4}", status.threshold));
    if !status.needs_restart.is_empty() {
        line("needs restart", status.needs_restart.join(", "));
    }
    if let Some(since) = &status.brokers_silent_since {
        line("brokers", format!("no response since {since}"));
    }
    if !status.missing_topics.is_empty() {
        line("missing topics", status.missing_topics.join(", "));
    }
    for (name, count) in &status.records {
        line(&name.replace('_', " "), count.to_string());
    }
    let all = || status.partitions.iter();
    let width = all()
        .map(|p| p.topic.len())
        .max()
        .unwrap_or_default()
        .max(5);
    if status.partitions.is_empty() {
        return println!("no partitions assigned");
    }
    println!(
        "\n{:<width$} {:>9} {:>12} {:>12}",
        "topic", "partition", "lag", "finished to"
    );
    for p in all() {
        let lag = match p.lag {
            0.. => p.lag.to_string(),
            _ => "unknown".to_owned(),
        };
        let (topic, partition, finished) = (&p.topic, p.partition, p.finished_offset);
        println!("{topic:<width$} {partition:>9} {lag:>12} {finished:>12}");
    }
    for p in all() {
        if let (Some(what), Some(since)) = (&p.waiting_for, &p.waiting_since) {
            println!("{}-{} waits for {what} since {since}", p.topic, p.partition);
        }
    }
}
