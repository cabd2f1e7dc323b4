//! What the end-to-end tests share: the real binary as a child process, a tiny Kafka client, loud skips.

#![allow(dead_code, reason = "each test file uses its part")]

pub mod admin;
pub mod bundle;
pub mod cgroup;
pub mod cluster;
pub mod formats;
pub mod kafka;
pub mod kdc;
pub mod oidc;
pub mod process;
pub mod registry;
pub mod tls;
pub mod topics;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

// Holds what librdkafka is linked with, see build.rs.
use residuald as _;

/// Generous: the machine may be busy, and a test that passes does not wait for it.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub fn payments() -> PathBuf {
    root().join("models/payments")
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The first `count` records of the shipped sample stream, a JSON object each.
pub fn sample(count: usize) -> Vec<String> {
    use std::io::{BufRead, BufReader};
    let file = std::fs::File::open(payments().join("sample.ndjson.gz")).unwrap();
    let lines = BufReader::new(flate2::read::MultiGzDecoder::new(file)).lines();
    let records: Vec<String> = lines.take(count).map(Result::unwrap).collect();
    assert_eq!(records.len(), count, "the sample stream is too short");
    records
}

/// A port on loopback that nothing listens on. It is below those that the kernel gives to tests beside this one, which
/// would take it before it is used.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut tries = (0..1000).map(|_| {
        let number = std::process::id() * 8 + NEXT.fetch_add(1, Ordering::Relaxed);
        (10_000 + number % 22_000) as u16
    });
    tries
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

/// Polls until `found` gives something.
///
/// # Panics
/// With `what` after [`PATIENCE`].
pub fn wait_for<T>(what: &str, found: impl FnMut() -> Option<T>) -> T {
    wait_for_within(PATIENCE, what, found)
}

/// The same with a patience of its own.
///
/// # Panics
/// With `what` after `patience`.
pub fn wait_for_within<T>(
    patience: Duration,
    what: &str,
    mut found: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "waited {patience:?} in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Says loudly that a test is skipped, or fails where skips are not allowed.
pub fn skip(what: &str, install: &str) {
    assert!(
        std::env::var_os("RESIDUALD_TEST_STRICT").is_none_or(|v| v.is_empty()),
        "RESIDUALD_TEST_STRICT is set and {what} cannot run: {install}"
    );
    not_here(what, install);
}

/// Says loudly that a test cannot run on this machine, whatever is installed: it does not permit what the test needs.
pub fn not_here(what: &str, need: &str) {
    // Past the test harness, which hides the output of tests that pass.
    let line = format!("\n!!! SKIPPED {what}: {need}\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}

pub fn parse(text: &[u8]) -> Value {
    serde_json::from_slice(text)
        .unwrap_or_else(|e| panic!("{e} in {}", String::from_utf8_lossy(text)))
}

/// A score as the float32 that it was.
pub fn score_of(verdict: &Value) -> f32 {
    verdict["anomaly_score"].as_f64().expect("a score") as f32
}

/// The TOML of the section "Secure connections" in docs/src/security.md that has `word`, for files in `etc`.
pub fn security_example(word: &str, etc: &Path) -> String {
    let page = std::fs::read_to_string(root().join("docs/src/security.md")).unwrap();
    let (_, section) = page.split_once("\n## Secure connections\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let mut blocks = section.split("```toml\n").skip(1);
    let block = blocks.find_map(|b| b.split("```").next().filter(|b| b.contains(word)));
    let text = block.unwrap_or_else(|| panic!("no example of {word}"));
    assert!(text.contains("/etc/residuald/"));
    text.replace("/etc/residuald/", &format!("{}/", etc.display()))
}
