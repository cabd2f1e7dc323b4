//! Fetches schemas by id from a registry that speaks Confluent's API, on a thread of its own. While the registry is down
//! it tries for ever: records whose schema is not known wait that long, because they are most likely good.

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

use crate::config::{self, Authorization};
use crate::decode::{Ask, Format, Schema, SchemaText, Schemas, Wanted};
use crate::http_client;
use crate::metrics::Metrics;
use crate::text::percent_encoded;

/// Between tries while the registry is down, growing from the one to the other.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// How long a registry that answers may not know a schema that was just registered: its followers lag behind its leader. A
/// record that is older waits no longer.
const LAG: Duration = Duration::from_secs(3);
/// How long an answer counts that there is no such schema. Ids are given out one after the other: it may come yet.
const REFUSAL: Duration = Duration::from_secs(60);
/// Answers of this kind to remember, at most.
const MOST_REFUSALS: usize = 10_000;
/// Schemas to ask for at the same time.
const AT_ONCE: usize = 8;
/// Schemas that one refers to, at most.
const MOST_REFERENCES: usize = 256;
/// Bytes of a schema with all that it refers to, at most, as JSON.
const MOST_BYTES: u64 = 8 << 20;
/// How many times the timeout of one request all requests for a schema may take together.
const MOST_TIMEOUTS: u32 = 10;

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
    /// Schemas to fetch, by id.
    waiting: BTreeMap<u32, Waiting>,
    /// Ids answered with no, oldest first.
    refused: VecDeque<(Instant, u32)>,
    outage: Option<Outage>,
}

struct Waiting {
    /// The registry may not know it yet until then.
    young_until: Instant,
    next: Instant,
    /// Between two tries.
    pause: Duration,
}

struct Outage {
    since: Instant,
    pause: Duration,
    next: Instant,
}

impl Fetcher {
    fn run(&mut self) {
        // Tells at once what is wrong with the settings, not when the first record comes.
        if let Err(problem) = self.registry.is_there() {
            self.is_down(&problem);
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

    /// Until something is due.
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

    /// Fetches what is due, some at once: a slow answer holds up few others.
    fn fetch_due(&mut self, now: Instant) {
        let due = self.waiting.iter().filter(|(_, w)| w.next <= now);
        let ids: Vec<u32> = due.map(|(id, _)| *id).collect();
        for ids in ids.chunks(AT_ONCE) {
            let fetched = fetch_all(&self.registry, ids, self.format);
            let is_answer = |fetched: &Fetched| !matches!(fetched, Err(FetchError::Unavailable(_)));
            let answered = fetched.iter().any(is_answer);
            if answered {
                self.is_up();
            }
            for (&id, fetched) in ids.iter().zip(fetched) {
                self.settle(id, fetched, answered, ids);
            }
            if !answered {
                break;
            }
        }
    }

    /// `answered`: the registry is there, whatever became of this schema. `asked`: all that were asked for together.
    fn settle(&mut self, id: u32, fetched: Fetched, answered: bool, asked: &[u32]) {
        match fetched {
            Ok(schema) => {
                tracing::info!(id, "schema fetched");
                self.waiting.remove(&id);
                self.wanted.answer(id, Ok(schema));
            }
            Err(FetchError::Unfit(problem)) => self.refuse(id, problem),
            Err(FetchError::Absent(problem)) => self.is_absent(id, problem),
            Err(FetchError::Unavailable(problem)) if answered => self.is_stuck(id, &problem),
            Err(FetchError::Unavailable(problem)) => {
                self.metrics.schema_registry_errors.inc();
                self.wait_for_the_registry(id, &problem, asked);
            }
        }
    }

    fn is_absent(&mut self, id: u32, problem: String) {
        let now = Instant::now();
        let waiting = self.waiting.get_mut(&id).expect("it is what was asked for");
        if now >= waiting.young_until {
            return self.refuse(id, problem);
        }
        self.wanted.delay(id, "the registry does not have it yet");
        waiting.next = waiting.young_until.min(now + waiting.pause);
        waiting.pause = RETRY.1.min(2 * waiting.pause);
    }

    /// The registry answers, but not for this one.
    fn is_stuck(&mut self, id: u32, problem: &str) {
        self.metrics.schema_registry_errors.inc();
        let waiting = self.waiting.get_mut(&id).expect("it is what was asked for");
        if waiting.pause == RETRY.0 {
            tracing::warn!(
                id,
                problem,
                "this schema cannot be fetched; records that need it wait, and it is asked for again"
            );
        }
        waiting.next = Instant::now() + waiting.pause;
        waiting.pause = RETRY.1.min(2 * waiting.pause);
        self.wanted.delay(id, problem);
    }

    fn wait_for_the_registry(&mut self, id: u32, problem: &str, asked: &[u32]) {
        let now = Instant::now();
        // Those that were asked for together have failed together.
        let fresh = self.outage.as_ref().is_none_or(|outage| outage.next <= now);
        let next = match (&self.outage, fresh) {
            (Some(outage), false) => outage.next,
            _ => now + self.is_down(problem),
        };
        self.wanted.delay(id, problem);
        for (other, waiting) in &mut self.waiting {
            waiting.next = next;
            // Those that were asked for have words of their own.
            if !asked.contains(other) {
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

    /// How long to wait before the next try.
    fn is_down(&mut self, problem: &str) -> Duration {
        if self.outage.is_none() {
            tracing::warn!(
                url = self.registry.url,
                "the schema registry cannot be had: {problem}; records with schemas not seen before wait for it"
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

    fn is_up(&mut self) {
        if let Some(outage) = self.outage.take() {
            let seconds = outage.since.elapsed().as_secs();
            tracing::info!(after_seconds = seconds, "the schema registry answers again");
        }
    }
}

/// How much longer a schema may be unknown that a record of this time needs. Its producer has registered it before.
fn youth_left(written_ms: Option<i64>) -> Duration {
    let now_ms = Timestamp::now().as_millisecond();
    let age = written_ms.map_or(0, |written| now_ms.saturating_sub(written).max(0));
    LAG.saturating_sub(Duration::from_millis(age as u64))
}

type Fetched = Result<Schema, FetchError>;

/// Each on a thread of its own, so that they wait together and one that cannot be read spoils no other.
fn fetch_all(registry: &Registry, ids: &[u32], format: Format) -> Vec<Fetched> {
    thread::scope(|scope| {
        let fetch = |id: u32| {
            let thread = thread::Builder::new().name("schema".into());
            thread.spawn_scoped(scope, move || registry.parsed(id, format))
        };
        let threads: Vec<_> = ids.iter().map(|&id| fetch(id)).collect();
        let joined = ids.iter().zip(threads).map(|(id, thread)| {
            let no_thread = |e| FetchError::Unavailable(format!("no thread to fetch it: {e}"));
            let panicked = |_| Err(FetchError::Unfit(format!("schema {id} cannot be read")));
            thread.map_err(no_thread)?.join().unwrap_or_else(panicked)
        });
        joined.collect()
    })
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
    /// What it is the answer to, as far as the registry says that.
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
    /// Limit for one request.
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

    /// Asks for something that costs nothing and needs no rights.
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

    /// A schema and everything that it refers to.
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
                    "schema {id} refers to more than {MOST_REFERENCES} others"
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
        // Its subject is not compared: registries write one with odd characters in more than one way.
        match answer.version.filter(|other| *other != version) {
            Some(other) => Err(mixed_up(&path, &format!("version {other}"))),
            None => Ok(answer),
        }
    }

    fn answer(&self, path: &str, budget: &mut Budget) -> Result<Answer, FetchError> {
        if Instant::now() >= budget.until {
            let waited = self.timeout * MOST_TIMEOUTS;
            return Err(FetchError::Unavailable(format!(
                "{path}: all requests for one schema took more than {waited:?}"
            )));
        }
        let body = self.get(path, budget.bytes)?;
        budget.bytes -= budget.bytes.min(body.len() as u64);
        serde_json::from_str(&body)
            .map_err(|e| FetchError::Unavailable(format!("{path}: not a registry's answer: {e}")))
    }

    fn get(&self, path: &str, most_bytes: u64) -> Result<String, FetchError> {
        let unavailable = |e: ureq::Error| match e {
            ureq::Error::BodyExceedsLimit(_) => FetchError::Unavailable(format!(
                "{path}: the answer, with what the schema refers to, is larger than {MOST_BYTES} bytes"
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
        // A proxy or a wrong url says 404 as well, but not in the registry's words.
        match serde_json::from_str::<Problem>(&body) {
            Ok(problem) if status == 404 && matches!(problem.error_code, 404 | 40_400..=40_499) => {
                let message = shortened(&problem.message);
                Err(FetchError::Absent(format!("{path}: {message}")))
            }
            _ => Err(FetchError::Unavailable(format!("{path}: HTTP {status}"))),
        }
    }
}

/// What the requests for one schema may still take.
struct Budget {
    bytes: u64,
    until: Instant,
}

fn mixed_up(path: &str, what: &str) -> FetchError {
    FetchError::Unavailable(format!("{path}: the registry answers with {what}"))
}

/// The registry's words, as much of them as fits into a line.
fn shortened(words: &str) -> String {
    const MOST: usize = 200;
    match words.char_indices().nth(MOST) {
        None => words.to_owned(),
        Some((at, _)) => format!("{}…", &words[..at]),
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
        // A clock that is ahead prolongs nothing.
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
