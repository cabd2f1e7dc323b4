//! Fetches schemas by id from a registry with Confluent's API, on its own thread. While the registry is down, requests
//! are retried forever. Records with an unknown schema wait meanwhile, because they are probably good.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use crossbeam_channel::RecvTimeoutError;
use jiff::Timestamp;
use serde::Deserialize;
use ureq::Agent;
use ureq::tls::{PemItem, RootCerts, parse_pem};

use crate::bounded;
use crate::config::{self, Authorization};
use crate::decode::{Ask, Format, Schema, SchemaText, Schemas, Wanted};
use crate::http_client;
use crate::metrics::Metrics;
use crate::text::percent_encoded;

/// The shortest and the longest pause between retries while the registry is down. The pause grows with each retry.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// How long a registry may not know a schema that was just registered, because its followers lag behind its leader.
/// Records older than this do not wait.
const LAG: Duration = Duration::from_secs(3);
/// How long the answer "no such schema" is remembered. It expires, because ids are assigned in order and the schema may
/// still appear.
const REFUSAL: Duration = Duration::from_secs(60);
/// The maximum number of remembered answers "no such schema".
const MOST_REFUSALS: usize = 10_000;
/// The number of schemas fetched in parallel.
const AT_ONCE: usize = 8;
/// The maximum number of schemas that one schema may refer to.
const MOST_REFERENCES: usize = 256;
/// The maximum size in bytes, as JSON, of a schema with all its references.
const MOST_BYTES: u64 = 8 << 20;
/// The time limit for all requests of one schema, as a multiple of the request timeout.
const MOST_TIMEOUTS: u32 = 10;

/// The error that the CA file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("input.schema_registry.ca_file = {path:?}: {problem}")]
pub struct CaError {
    path: String,
    problem: String,
}

/// Starts the thread that fetches schemas. It ends when the last [`Schemas`] is dropped.
///
/// # Errors
/// When `ca_file` cannot be read. A registry that is down is not an error here; it is logged later.
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
        .expect("the system can start a thread");
    Ok(schemas)
}

/// Checks with a cheap request that the registry answers.
///
/// # Errors
/// The reason why there is no valid answer.
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
    /// The schemas to fetch, by id.
    waiting: BTreeMap<u32, Waiting>,
    /// The ids that the registry does not have, oldest first.
    refused: VecDeque<(Instant, u32)>,
    outage: Option<Outage>,
}

struct Waiting {
    /// Until this time, the registry may not know the schema yet.
    young_until: Instant,
    next: Instant,
    /// The pause before the next attempt.
    pause: Duration,
}

struct Outage {
    since: Instant,
    pause: Duration,
    next: Instant,
}

impl Fetcher {
    fn run(&mut self) {
        // A request at the start reports wrong settings before the first record needs a schema.
        if let Err(problem) = self.registry.is_there() {
            self.record_failure(&problem);
        }
        loop {
            match self.wanted.asks.recv_timeout(self.nap()) {
                Ok(ask) => self.enlist(ask),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Ok(ask) = self.wanted.asks.try_recv() {
                self.enlist(ask);
            }
            self.forget_refusals(Instant::now());
            self.fetch_due(Instant::now());
        }
    }

    /// Returns the time until the next request is due.
    fn nap(&self) -> Duration {
        let next = self.waiting.values().map(|waiting| waiting.next);
        let forget = self.refused.front().map(|(at, _)| *at + REFUSAL);
        let next = next.chain(forget).min();
        next.map_or(REFUSAL, |next| {
            next.saturating_duration_since(Instant::now())
        })
    }

    fn enlist(&mut self, ask: Ask) {
        let now = Instant::now();
        let young_until = now + youth_left(ask.written_ms);
        let waiting = self.waiting.entry(ask.id).or_insert(Waiting {
            young_until,
            next: now,
            pause: RETRY.0,
        });
        waiting.young_until = waiting.young_until.max(young_until);
    }

    fn forget_refusals(&mut self, now: Instant) {
        while let Some((at, id)) = self.refused.front().copied() {
            let over = now.saturating_duration_since(at) >= REFUSAL;
            if !over && self.refused.len() <= MOST_REFUSALS {
                break;
            }
            self.refused.pop_front();
            self.wanted.forget(id);
        }
    }

    /// Fetches the schemas that are due, several at once, so that a slow answer delays only few others.
    fn fetch_due(&mut self, now: Instant) {
        let due = self.waiting.iter().filter(|(_, w)| w.next <= now);
        let ids: Vec<u32> = due.map(|(id, _)| *id).collect();
        for ids in ids.chunks(AT_ONCE) {
            let fetched = fetch_all(&self.registry, ids, self.format);
            let is_answer = |fetched: &Fetched| !matches!(fetched, Err(FetchError::Unavailable(_)));
            let answered = fetched.iter().any(is_answer);
            if answered {
                self.record_answer();
            }
            for (&id, fetched) in ids.iter().zip(fetched) {
                self.settle(id, fetched, answered, ids);
            }
            if !answered {
                break;
            }
        }
    }

    /// Handles the result for one schema. `answered` is true if the registry is up, whatever the result. `requested` holds
    /// all ids that were requested together.
    fn settle(&mut self, id: u32, fetched: Fetched, answered: bool, requested: &[u32]) {
        match fetched {
            Ok(schema) => {
                tracing::info!(id, "schema fetched");
                self.waiting.remove(&id);
                self.wanted.answer(id, Ok(schema));
            }
            Err(FetchError::Unfit(problem)) => self.refuse(id, problem),
            Err(FetchError::Absent(problem)) => self.handle_absent(id, problem),
            Err(FetchError::Unavailable(problem)) if answered => self.handle_stuck(id, &problem),
            Err(FetchError::Unavailable(problem)) => {
                self.metrics.schema_registry_errors.inc();
                self.wait_for_the_registry(id, &problem, requested);
            }
        }
    }

    fn handle_absent(&mut self, id: u32, problem: String) {
        let now = Instant::now();
        let waiting = self
            .waiting
            .get_mut(&id)
            .expect("a requested id is waiting");
        if now >= waiting.young_until {
            return self.refuse(id, problem);
        }
        self.wanted
            .delay(id, "the registry does not have this schema yet");
        waiting.next = waiting.young_until.min(now + waiting.pause);
        waiting.pause = RETRY.1.min(2 * waiting.pause);
    }

    /// Delays a schema whose request fails while the registry answers other requests.
    fn handle_stuck(&mut self, id: u32, problem: &str) {
        self.metrics.schema_registry_errors.inc();
        let waiting = self
            .waiting
            .get_mut(&id)
            .expect("a requested id is waiting");
        if waiting.pause == RETRY.0 {
            tracing::warn!(
                id,
                problem,
                "this schema cannot be fetched; records that need it wait, and the request is retried"
            );
        }
        waiting.next = Instant::now() + waiting.pause;
        waiting.pause = RETRY.1.min(2 * waiting.pause);
        self.wanted.delay(id, problem);
    }

    fn wait_for_the_registry(&mut self, id: u32, problem: &str, requested: &[u32]) {
        let now = Instant::now();
        // Ids that were requested together fail together, which counts as one failure.
        let fresh = self.outage.as_ref().is_none_or(|outage| outage.next <= now);
        let next = match (&self.outage, fresh) {
            (Some(outage), false) => outage.next,
            _ => now + self.record_failure(problem),
        };
        self.wanted.delay(id, problem);
        for (other, waiting) in &mut self.waiting {
            waiting.next = next;
            // The requested ids have their own error messages.
            if !requested.contains(other) {
                let why = format!("the registry does not answer: {problem}");
                self.wanted.delay(*other, &why);
            }
        }
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

    /// Records a failure of the registry. Returns the pause before the next attempt.
    fn record_failure(&mut self, problem: &str) -> Duration {
        if self.outage.is_none() {
            tracing::warn!(
                url = self.registry.url,
                "the schema registry is unavailable: {problem}; records with new schemas wait for it"
            );
        }
        let now = Instant::now();
        let outage = self.outage.get_or_insert(Outage {
            since: now,
            pause: RETRY.0,
            next: now,
        });
        let pause = outage.pause;
        outage.pause = (pause * 2).min(RETRY.1);
        outage.next = now + pause;
        pause
    }

    fn record_answer(&mut self) {
        if let Some(outage) = self.outage.take() {
            let seconds = outage.since.elapsed().as_secs();
            tracing::info!(after_seconds = seconds, "the schema registry answers again");
        }
    }
}

/// Returns how much longer the schema of a record with this timestamp may be unknown. The record's producer registered
/// the schema before it wrote the record.
fn youth_left(written_ms: Option<i64>) -> Duration {
    let now_ms = Timestamp::now().as_millisecond();
    let age = written_ms.map_or(0, |written| now_ms.saturating_sub(written).max(0));
    LAG.saturating_sub(Duration::from_millis(age as u64))
}

type Fetched = Result<Schema, FetchError>;

/// Fetches each schema on its own thread, so that the threads wait in parallel and a panic in one affects no other.
fn fetch_all(registry: &Registry, ids: &[u32], format: Format) -> Vec<Fetched> {
    thread::scope(|scope| {
        let fetch = |id: u32| {
            let thread = thread::Builder::new().name("schema".into());
            thread.spawn_scoped(scope, move || registry.parsed(id, format))
        };
        let threads: Vec<_> = ids.iter().map(|&id| fetch(id)).collect();
        let joined = ids.iter().zip(threads).map(|(id, thread)| {
            let no_thread =
                |e| FetchError::Unavailable(format!("cannot start a thread to fetch it: {e}"));
            let panicked = |_| Err(FetchError::Unfit(format!("schema {id} cannot be read")));
            thread.map_err(no_thread)?.join().unwrap_or_else(panicked)
        });
        joined.collect()
    })
}

enum FetchError {
    /// There is no answer, or the answer is not about the schema.
    Unavailable(String),
    /// The registry answered that it has no such schema.
    Absent(String),
    /// The schema exists but cannot be used here.
    Unfit(String),
}

/// A schema as the registry returns it. If the type is missing, it is Avro.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    schema: String,
    #[serde(default = "avro")]
    schema_type: String,
    #[serde(default)]
    references: Vec<Reference>,
    /// The schema id, if the registry returns it.
    id: Option<u32>,
    version: Option<u32>,
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
    /// Timeout of one request.
    timeout: Duration,
    url: String,
    authorization: Option<String>,
}

impl Registry {
    fn new(settings: &config::SchemaRegistry) -> Result<Registry, CaError> {
        let roots = match &settings.ca_file {
            Some(path) => roots(path)?,
            None => RootCerts::PlatformVerifier,
        };
        let agent = http_client::agent(roots, settings.timeout)
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
            timeout: settings.timeout,
            url: settings.url.clone(),
            authorization,
        })
    }

    /// Checks with a cheap request, which needs no permission, that the registry answers.
    fn is_there(&self) -> Result<(), String> {
        match self.get("/schemas/types", MOST_BYTES) {
            Err(FetchError::Unavailable(problem)) => Err(problem),
            _ => Ok(()),
        }
    }

    fn parsed(&self, id: u32, format: Format) -> Fetched {
        let text = self.schema(id, format)?;
        let unfit = |problem| FetchError::Unfit(format!("schema {id}: {problem}"));
        Schema::parse(format, &text).map_err(unfit)
    }

    /// Fetches a schema and all schemas that it refers to.
    fn schema(&self, id: u32, format: Format) -> Result<SchemaText, FetchError> {
        let mut budget = Budget {
            bytes: MOST_BYTES,
            until: Instant::now() + self.timeout * MOST_TIMEOUTS,
        };
        let path = format!("/schemas/ids/{id}");
        let answer = self.answer(&path, &mut budget)?;
        if let Some(other) = answer.id.filter(|other| *other != id) {
            return Err(mixed_up(&path, &format!("schema {other}")));
        }
        let expected = match format {
            Format::Avro => "AVRO",
            Format::Protobuf => "PROTOBUF",
        };
        if answer.schema_type != expected {
            return Err(FetchError::Unfit(format!(
                "schema {id} is {}, not {expected}",
                shortened(&answer.schema_type)
            )));
        }
        let references = self.references(id, answer.references, &mut budget)?;
        Ok(SchemaText {
            text: answer.schema,
            references,
        })
    }

    fn references(
        &self,
        id: u32,
        mut to_fetch: Vec<Reference>,
        budget: &mut Budget,
    ) -> Result<Vec<(String, String)>, FetchError> {
        let mut references: Vec<(String, String)> = Vec::new();
        while let Some(reference) = to_fetch.pop() {
            if references.iter().any(|(known, _)| *known == reference.name) {
                continue;
            }
            if references.len() == MOST_REFERENCES {
                return Err(FetchError::Unfit(format!(
                    "schema {id} refers to more than {MOST_REFERENCES} other schemas"
                )));
            }
            let referred = self.referred(&reference, budget)?;
            references.push((reference.name, referred.schema));
            to_fetch.extend(referred.references);
        }
        Ok(references)
    }

    fn referred(&self, reference: &Reference, budget: &mut Budget) -> Result<Answer, FetchError> {
        let (subject, version) = (&reference.subject, reference.version);
        let path = format!("/subjects/{}/versions/{version}", percent_encoded(subject));
        let answer = self.answer(&path, budget)?;
        // The subject is not compared, because registries encode special characters in different ways.
        match answer.version.filter(|other| *other != version) {
            Some(other) => Err(mixed_up(&path, &format!("version {other}"))),
            None => Ok(answer),
        }
    }

    fn answer(&self, path: &str, budget: &mut Budget) -> Result<Answer, FetchError> {
        if Instant::now() >= budget.until {
            let waited = self.timeout * MOST_TIMEOUTS;
            return Err(FetchError::Unavailable(format!(
                "{path}: the requests for this schema took longer than {waited:?}"
            )));
        }
        let body = self.get(path, budget.bytes)?;
        budget.bytes -= budget.bytes.min(body.len() as u64);
        serde_json::from_str(&body).map_err(|e| {
            FetchError::Unavailable(format!(
                "{path}: the answer does not come from a schema registry: {e}"
            ))
        })
    }

    fn get(&self, path: &str, most_bytes: u64) -> Result<String, FetchError> {
        let unavailable = |e: ureq::Error| match e {
            ureq::Error::BodyExceedsLimit(_) => FetchError::Unavailable(format!(
                "{path}: the schema with all its references is larger than {MOST_BYTES} bytes"
            )),
            e => FetchError::Unavailable(format!("{path}: {e}")),
        };
        let mut request = self.agent.get(format!("{}{path}", self.url)).header(
            "Accept",
            "application/vnd.schemaregistry.v1+json, application/json",
        );
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let mut response = request.call().map_err(unavailable)?;
        let status = response.status();
        let body = response.body_mut().with_config().limit(most_bytes);
        let body = body.read_to_string().map_err(unavailable)?;
        if status.is_success() {
            return Ok(body);
        }
        // A proxy or a wrong URL also answers 404, but without the registry's error body.
        match serde_json::from_str::<Problem>(&body) {
            Ok(problem) if status == 404 && matches!(problem.error_code, 404 | 40_400..=40_499) => {
                let message = shortened(&problem.message);
                Err(FetchError::Absent(format!("{path}: {message}")))
            }
            _ => Err(FetchError::Unavailable(format!("{path}: HTTP {status}"))),
        }
    }
}

/// The bytes and the time that are left for the requests of one schema.
struct Budget {
    bytes: u64,
    until: Instant,
}

fn mixed_up(path: &str, what: &str) -> FetchError {
    FetchError::Unavailable(format!("{path}: the registry answered with {what} instead"))
}

/// Returns the registry's message, shortened to fit on a line.
fn shortened(words: &str) -> String {
    const MOST: usize = 200;
    match words.char_indices().nth(MOST) {
        None => words.to_owned(),
        Some((at, _)) => format!("{}…", &words[..at]),
    }
}

/// Returns the certificates in a PEM file.
///
/// # Errors
/// When the file cannot be read or contains no certificate.
pub fn roots(path: &Path) -> Result<RootCerts, CaError> {
    let problem = |problem: String| CaError {
        path: path.display().to_string(),
        problem,
    };
    let pem = bounded::read(path, bounded::TEXT).map_err(|e| problem(e.to_string()))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|e| problem(e.to_string()))? {
            certificates.push(certificate);
        }
    }
    match certificates.is_empty() {
        true => Err(problem(
            "the file contains no certificate in PEM format".into(),
        )),
        false => Ok(certificates.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_one_segment() {
        assert_eq!(percent_encoded("payments-value"), "payments-value");
        assert_eq!(percent_encoded("a/b c:é"), "a%2Fb%20c%3A%C3%A9");
    }

    #[test]
    fn the_wait_is_for_young_records_only() {
        let now_ms = Timestamp::now().as_millisecond();
        let second = Duration::from_secs(1);
        assert_eq!(youth_left(Some(0)), Duration::ZERO);
        assert_eq!(youth_left(Some(i64::MIN)), Duration::ZERO);
        assert_eq!(youth_left(Some(now_ms - 3000)), Duration::ZERO);
        assert!(youth_left(Some(now_ms - 1500)) <= LAG - second);
        // A timestamp in the future does not extend the wait.
        for young in [Some(now_ms + 60_000), Some(i64::MAX), None] {
            assert!(
                (LAG - second..=LAG).contains(&youth_left(young)),
                "{young:?}"
            );
        }
    }

    #[test]
    fn a_registry_is_quoted_in_a_few_words() {
        assert_eq!(shortened("not found"), "not found");
        assert_eq!(shortened(&"ä".repeat(300)), format!("{}…", "ä".repeat(200)));
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
