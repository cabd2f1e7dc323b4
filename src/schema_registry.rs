//! Fetches schemas by id from a registry that speaks Confluent's API, on a thread of its own. While the registry is down
//! it tries for ever: records whose schema is not known wait that long, because they are most likely good.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use crossbeam_channel::RecvTimeoutError;
use serde::Deserialize;
use ureq::Agent;
use ureq::tls::{PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

use crate::config::{self, Authorization};
use crate::decode::{Format, Schema, SchemaText, Schemas, Wanted};
use crate::metrics::Metrics;

/// Between tries while the registry is down, growing from the one to the other.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// How long a schema may be unknown to a registry that answers: its followers lag behind its leader.
const LAG: Duration = Duration::from_secs(3);
/// How long an answer counts that there is no such schema. Ids are given out one after the other: it may come yet.
const REFUSAL: Duration = Duration::from_secs(60);
/// Schemas that one refers to, at most.
const MOST_REFERENCES: usize = 256;

/// Why there is no registry to ask.
#[derive(Debug, thiserror::Error)]
#[error("input.schema_registry.ca_file = {path:?}: {problem}")]
pub struct CaError {
    path: String,
    problem: String,
}

/// Starts the thread. It ends when the last [`Schemas`] is gone.
///
/// # Errors
/// When `ca_file` cannot be read. Whether the registry is there shows later, in the log.
pub fn start(
    settings: &config::SchemaRegistry,
    format: Format,
    metrics: Metrics,
) -> Result<Schemas, CaError> {
    let registry = Registry::new(settings)?;
    let (schemas, wanted) = Schemas::new();
    let mut fetcher = Fetcher {
        registry,
        format,
        metrics,
        wanted,
        waiting: BTreeMap::new(),
        refused: VecDeque::new(),
        outage: None,
    };
    thread::Builder::new()
        .name("schema-registry".into())
        .spawn(move || fetcher.run())
        .expect("the system gives a thread");
    Ok(schemas)
}

/// Asks the registry for something that costs nothing.
///
/// # Errors
/// Why it cannot be had, in words.
pub fn reach(settings: &config::SchemaRegistry) -> Result<(), String> {
    Registry::new(settings)
        .map_err(|e| e.to_string())?
        .is_there()
}

struct Fetcher {
    registry: Registry,
    format: Format,
    metrics: Metrics,
    wanted: Wanted,
    /// Ids to fetch: since when the registry answers that it does not have them, and when to ask next.
    waiting: BTreeMap<u32, Waiting>,
    /// Ids answered with no, oldest first.
    refused: VecDeque<(Instant, u32)>,
    outage: Option<Outage>,
}

struct Waiting {
    absent_since: Option<Instant>,
    next: Instant,
}

struct Outage {
    since: Instant,
    pause: Duration,
}

impl Fetcher {
    fn run(&mut self) {
        // Tells at once what is wrong with the settings, not when the first record comes.
        if let Err(problem) = self.registry.is_there() {
            self.is_down(&problem);
        }
        loop {
            let now = Instant::now();
            let next = self.waiting.values().map(|waiting| waiting.next).min();
            let forget = self.refused.front().map(|(at, _)| *at + REFUSAL);
            let next = next.into_iter().chain(forget).min();
            let wait = next.map_or(REFUSAL, |next| next.saturating_duration_since(now));
            match self.wanted.ids.recv_timeout(wait) {
                Ok(id) => {
                    let next = Instant::now();
                    let absent_since = None;
                    self.waiting.insert(id, Waiting { absent_since, next });
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            while let Some((at, id)) = self.refused.front().copied() {
                if now.saturating_duration_since(at) < REFUSAL {
                    break;
                }
                self.refused.pop_front();
                self.wanted.forget(id);
            }
            let due = |waiting: &Waiting| waiting.next <= now;
            let ids: Vec<u32> = self
                .waiting
                .iter()
                .filter(|(_, w)| due(w))
                .map(|(id, _)| *id)
                .collect();
            for id in ids {
                if !self.fetch(id) {
                    break;
                }
            }
        }
    }

    /// Whether the registry answered.
    fn fetch(&mut self, id: u32) -> bool {
        let fetched = self.registry.schema(id, self.format);
        let now = Instant::now();
        let answered = !matches!(fetched, Err(FetchError::Unavailable(_)));
        if answered {
            self.is_up();
        }
        match fetched {
            Ok(text) => match Schema::parse(self.format, &text) {
                Ok(schema) => {
                    tracing::info!(id, "schema fetched");
                    self.waiting.remove(&id);
                    self.wanted.answer(id, Ok(schema));
                }
                Err(problem) => self.refuse(id, format!("schema {id}: {problem}")),
            },
            Err(FetchError::Unfit(problem)) => self.refuse(id, problem),
            Err(FetchError::Absent(problem)) => {
                let waiting = self.waiting.get_mut(&id).expect("it is what was asked for");
                let since = *waiting.absent_since.get_or_insert(now);
                if now.saturating_duration_since(since) < LAG {
                    waiting.next = now + RETRY.0;
                } else {
                    self.refuse(id, problem);
                }
            }
            Err(FetchError::Unavailable(problem)) => {
                self.metrics.schema_registry_errors.inc();
                let pause = self.is_down(&problem);
                // All wait for the same registry.
                for waiting in self.waiting.values_mut() {
                    waiting.next = now + pause;
                }
            }
        }
        answered
    }

    fn refuse(&mut self, id: u32, problem: String) {
        tracing::warn!(
            id,
            problem,
            "records with this schema id become dead letters"
        );
        self.waiting.remove(&id);
        self.refused.push_back((Instant::now(), id));
        self.wanted.answer(id, Err(problem));
    }

    /// How long to wait before the next try.
    fn is_down(&mut self, problem: &str) -> Duration {
        if self.outage.is_none() {
            tracing::warn!(
                url = self.registry.url,
                "the schema registry cannot be had: {problem}; records with schemas not seen before wait for it"
            );
        }
        let outage = self.outage.get_or_insert(Outage {
            since: Instant::now(),
            pause: RETRY.0,
        });
        let pause = outage.pause;
        outage.pause = (pause * 2).min(RETRY.1);
        pause
    }

    fn is_up(&mut self) {
        if let Some(outage) = self.outage.take() {
            let seconds = outage.since.elapsed().as_secs();
            tracing::info!(after_seconds = seconds, "the schema registry answers again");
        }
    }
}

enum FetchError {
    /// No answer, or one that says nothing about the schema.
    Unavailable(String),
    /// The registry says that it has no such schema.
    Absent(String),
    /// It has one that is of no use here.
    Unfit(String),
}

/// A registry's schema. Avro is what it does not name.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    schema: String,
    #[serde(default = "avro")]
    schema_type: String,
    #[serde(default)]
    references: Vec<Reference>,
}

fn avro() -> String {
    "AVRO".into()
}

#[derive(Deserialize, Clone)]
struct Reference {
    name: String,
    subject: String,
    version: u32,
}

#[derive(Deserialize)]
struct Problem {
    error_code: u32,
    #[serde(default)]
    message: String,
}

struct Registry {
    agent: Agent,
    url: String,
    authorization: Option<String>,
}

impl Registry {
    fn new(settings: &config::SchemaRegistry) -> Result<Registry, CaError> {
        let roots = match &settings.ca_file {
            Some(path) => roots(path)?,
            None => RootCerts::PlatformVerifier,
        };
        let tls = TlsConfig::builder()
            .provider(TlsProvider::NativeTls)
            .root_certs(roots)
            .build();
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(settings.timeout))
            .tls_config(tls)
            .user_agent(concat!("residuald/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        let authorization = match &settings.authorization {
            Authorization::None => None,
            Authorization::Bearer(token) => Some(format!("Bearer {}", token.reveal())),
            Authorization::Basic { username, password } => {
                let pair = format!("{username}:{}", password.reveal());
                Some(format!("Basic {}", BASE64_STANDARD.encode(pair)))
            }
        };
        Ok(Registry {
            agent,
            url: settings.url.clone(),
            authorization,
        })
    }

    /// Asks for something that costs nothing and needs no rights.
    fn is_there(&self) -> Result<(), String> {
        match self.get("/schemas/types") {
            Err(FetchError::Unavailable(problem)) => Err(problem),
            _ => Ok(()),
        }
    }

    /// A schema and everything that it refers to.
    fn schema(&self, id: u32, format: Format) -> Result<SchemaText, FetchError> {
        let answer = self.answer(&format!("/schemas/ids/{id}"))?;
        let expected = match format {
            Format::Avro => "AVRO",
            Format::Protobuf => "PROTOBUF",
        };
        if answer.schema_type != expected {
            return Err(FetchError::Unfit(format!(
                "schema {id} is {}, not {expected}",
                answer.schema_type
            )));
        }
        let mut references: Vec<(String, String)> = Vec::new();
        let mut to_fetch = answer.references;
        while let Some(Reference {
            name,
            subject,
            version,
        }) = to_fetch.pop()
        {
            if references.iter().any(|(known, _)| *known == name) {
                continue;
            }
            if references.len() == MOST_REFERENCES {
                return Err(FetchError::Unfit(format!(
                    "schema {id} refers to more than {MOST_REFERENCES} others"
                )));
            }
            let subject = escaped(&subject);
            let referred = self.answer(&format!("/subjects/{subject}/versions/{version}"))?;
            references.push((name, referred.schema));
            to_fetch.extend(referred.references);
        }
        Ok(SchemaText {
            text: answer.schema,
            references,
        })
    }

    fn answer(&self, path: &str) -> Result<Answer, FetchError> {
        let body = self.get(path)?;
        serde_json::from_str(&body)
            .map_err(|e| FetchError::Unavailable(format!("{path}: not a registry's answer: {e}")))
    }

    fn get(&self, path: &str) -> Result<String, FetchError> {
        let unavailable = |e: ureq::Error| FetchError::Unavailable(format!("{path}: {e}"));
        let mut request = self.agent.get(format!("{}{path}", self.url)).header(
            "Accept",
            "application/vnd.schemaregistry.v1+json, application/json",
        );
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let mut response = request.call().map_err(unavailable)?;
        let status = response.status();
        let body = response.body_mut().read_to_string().map_err(unavailable)?;
        if status.is_success() {
            return Ok(body);
        }
        // A proxy or a wrong url says 404 as well, but not in the registry's words.
        match serde_json::from_str::<Problem>(&body) {
            Ok(problem) if status == 404 && matches!(problem.error_code, 404 | 40_400..=40_499) => {
                Err(FetchError::Absent(format!("{path}: {}", problem.message)))
            }
            _ => Err(FetchError::Unavailable(format!("{path}: HTTP {status}"))),
        }
    }
}

/// The certificates in a PEM file.
///
/// # Errors
/// It cannot be read or holds none.
pub fn roots(path: &Path) -> Result<RootCerts, CaError> {
    let problem = |problem: String| CaError {
        path: path.display().to_string(),
        problem,
    };
    let pem = std::fs::read(path).map_err(|e| problem(e.to_string()))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|e| problem(e.to_string()))? {
            certificates.push(certificate);
        }
    }
    match certificates.is_empty() {
        true => Err(problem("no certificate in PEM".into())),
        false => Ok(certificates.into()),
    }
}

/// A subject as one segment of a path.
fn escaped(subject: &str) -> String {
    let mut escaped = String::new();
    for byte in subject.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_one_segment() {
        assert_eq!(escaped("payments-value"), "payments-value");
        assert_eq!(escaped("a/b c:é"), "a%2Fb%20c%3A%C3%A9");
    }

    #[test]
    fn a_ca_file_without_certificates_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        assert!(roots(&path).unwrap_err().to_string().contains("ca.pem"));
        std::fs::write(&path, "nothing here").unwrap();
        assert!(roots(&path).unwrap_err().problem.contains("no certificate"));
    }
}
