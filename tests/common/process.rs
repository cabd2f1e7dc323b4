//! The real binary: verbs that end, and the daemon, which does not.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{PATIENCE, parse, payments, wait_for};

pub fn residuald() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_residuald"));
    command.env("RUST_BACKTRACE", "0").stdin(Stdio::null());
    command
}

/// Runs a verb to its end, which must come in time.
pub fn run(arguments: &[&str]) -> Ended {
    ended(residuald().args(arguments))
}

pub fn ended(command: &mut Command) -> Ended {
    let started = Instant::now();
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let (done, timer) = channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if timer.recv_timeout(PATIENCE).is_err() {
            signal(pid, "KILL");
        }
    });
    let output = child.wait_with_output().unwrap();
    let _ = done.send(());
    watchdog.join().unwrap();
    Ended::new(&output, started.elapsed())
}

/// How a process ended.
pub struct Ended {
    /// `None` if a signal killed it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Ended {
    fn new(output: &Output, took: Duration) -> Ended {
        Ended {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            took,
        }
    }

    /// Ended with `code` and said why without a panic; returns standard error.
    pub fn with_code(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "{}\n{}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        &self.stderr
    }

    /// Ended with `code` and exactly one line that starts with `error:`; returns that line.
    pub fn one_line(&self, code: i32) -> &str {
        let stderr = self.with_code(code);
        let at = stderr
            .find("\nerror: ")
            .map_or_else(|| stderr.find("error: "), |at| Some(at + 1))
            .unwrap_or_else(|| panic!("no error line in {stderr}"));
        let line = stderr[at..].trim_end();
        assert!(!line.contains('\n'), "more than one line: {line}");
        line
    }
}

pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("sh")
        .args(["-c", &format!("kill -{name} {pid}")])
        .status();
    assert!(sent.unwrap().success(), "kill -{name} {pid}");
}

/// A running `residuald run`. Dropping it kills it.
pub struct Daemon {
    child: Child,
    pub address: String,
    log: Option<JoinHandle<String>>,
}

impl Daemon {
    /// Starts on `brokers` with the shipped bundle, topics `in`, `anomalies` and `dead`, and `settings` over that.
    pub fn start(brokers: &str, settings: &[&str]) -> Daemon {
        Daemon::start_in(&[], brokers, settings)
    }

    /// The same with variables in its environment.
    pub fn start_in(environment: &[(&str, &str)], brokers: &str, settings: &[&str]) -> Daemon {
        let mut command = residuald();
        command.envs(environment.iter().copied());
        Daemon::start_by(command, brokers, settings)
    }

    /// The same in a process that may open so many files.
    pub fn start_with_files(files: usize, brokers: &str, settings: &[&str]) -> Daemon {
        let mut command = Command::new("sh");
        command.stdin(Stdio::null()).env("RUST_BACKTRACE", "0");
        command.arg("-c");
        command.arg(format!("ulimit -n {files}; exec \"$0\" \"$@\""));
        command.arg(env!("CARGO_BIN_EXE_residuald"));
        Daemon::start_by(command, brokers, settings)
    }

    /// The same by a command that ends with the program.
    pub fn start_by(mut command: Command, brokers: &str, settings: &[&str]) -> Daemon {
        let bundle = format!("model.bundle={:?}", payments());
        let brokers = format!("kafka.brokers={brokers}");
        command.arg("run");
        let own = [
            &brokers,
            &bundle,
            "kafka.topics=in",
            "output.anomalies_topic=anomalies",
            "output.dead_letter_topic=dead",
            "http.listen=127.0.0.1:0",
            "telemetry.log_format=json",
            "inference.workers=2",
        ];
        // The embedded broker sits out a session for every rebalance.
        let session = [
            "kafka.consumer.\"session.timeout.ms\"=3000",
            "kafka.consumer.\"heartbeat.interval.ms\"=500",
        ];
        // By the new protocol the brokers set these.
        let new_protocol = settings.iter().any(|s| s.contains("group.protocol"));
        let session = session.iter().filter(|_| !new_protocol);
        for setting in own.iter().chain(session).chain(settings) {
            command.args(["--set", setting]);
        }
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let (found, address) = channel();
        let log = std::thread::spawn(move || follow(stderr, &found));
        let mut daemon = Daemon {
            child,
            address: String::new(),
            log: Some(log),
        };
        daemon.address = daemon.await_address(&address);
        daemon
    }

    fn await_address(&mut self, address: &Receiver<String>) -> String {
        address
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("the daemon serves no HTTP:\n{}", self.end().stderr))
    }

    /// Starts and waits until it is ready.
    pub fn ready(brokers: &str, settings: &[&str]) -> Daemon {
        Daemon::start(brokers, settings).await_ready()
    }

    pub fn await_ready(self) -> Daemon {
        wait_for("readiness", || (self.get("/readyz").0 == 200).then_some(()));
        self
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Status code and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        let (code, _, body) = http_get(&self.address, path);
        (code, body)
    }

    pub fn status(&self) -> Value {
        parse(self.get("/status").1.as_bytes())
    }

    /// One of the counts of `/status`.
    pub fn count(&self, of: &str) -> u64 {
        self.status()["records"][of].as_u64().expect("a count")
    }

    pub fn await_count(&self, of: &str, least: u64) {
        wait_for(&format!("{least} {of} in {}", self.status()), || {
            (self.count(of) >= least).then_some(())
        });
    }

    /// The value of one series of `/metrics`.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.get("/metrics").1;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in {text}"))
            .parse()
            .unwrap()
    }

    /// Waits until a gauge has `value`: it is set shortly after the counters of the same record.
    pub fn await_metric(&self, series: &str, value: f64) {
        wait_for(&format!("{series} {value}"), || {
            (self.metric(series) == value).then_some(())
        });
    }

    /// Waits until nothing is in flight; then the books must balance.
    pub fn is_balanced(&self) {
        wait_for("an empty pipeline", || {
            (self.count("in_flight") == 0).then_some(())
        });
        let records = &self.status()["records"];
        let count = |of: &str| records[of].as_i64().unwrap();
        assert_eq!(count("unaccounted"), 0, "{records}");
        assert_eq!(
            count("consumed"),
            count("scored") + count("dead_letters") + count("skipped"),
            "{records}"
        );
    }

    /// SIGTERM, and how it ended.
    pub fn terminate(mut self) -> Ended {
        signal(self.pid(), "TERM");
        self.end()
    }

    /// SIGTERM; it must drain and end with 0.
    pub fn drains(self) -> Ended {
        let ended = self.terminate();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stderr.contains("drained"), "{}", ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        ended
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub fn kill_9(mut self) -> Ended {
        self.child.kill().unwrap();
        self.end()
    }

    /// Waits for its end, which somebody else has brought about.
    pub fn end(&mut self) -> Ended {
        let started = Instant::now();
        let deadline = started + PATIENCE;
        let code = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status.code();
            }
            if Instant::now() > deadline {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let log = self.log.take().map(|log| log.join().unwrap());
        Ended {
            code,
            stdout: String::new(),
            stderr: log.unwrap_or_default(),
            took: started.elapsed(),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(log) = self.log.take() {
            let log = log.join().unwrap_or_default();
            if std::thread::panicking() {
                eprintln!("the daemon's log:\n{log}");
            }
        }
    }
}

/// Collects the log, and sends the HTTP address once it is known.
fn follow(stderr: ChildStderr, found: &Sender<String>) -> String {
    let mut log = String::new();
    for line in BufReader::new(stderr).lines() {
        let line = line.unwrap();
        // As JSON or as text.
        let address = line.split_once("\"address\":\"");
        if let Some((_, rest)) = address.or_else(|| line.split_once(" address=")) {
            let address = rest.split(['"', ' ']).next().unwrap();
            let _ = found.send(address.to_owned());
        }
        log.push_str(&line);
        log.push('\n');
    }
    log
}

/// Status code, headers and body of a plain GET.
pub fn http_get(address: &str, path: &str) -> (u16, String, String) {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    ask(stream, path, "")
}

/// The same over any connection, with one more header line or none.
pub fn ask(mut stream: impl Read + Write, path: &str, header: &str) -> (u16, String, String) {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{header}\r\n"
    )
    .unwrap();
    let mut answer = Vec::new();
    if let Err(e) = stream.read_to_end(&mut answer) {
        assert_eq!(e.kind(), ErrorKind::UnexpectedEof, "{e}"); // no goodbye from TLS
    }
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    let code = head.split(' ').nth(1).expect("a status code");
    (
        code.parse().unwrap(),
        format!("{head}\r\n"),
        body.to_owned(),
    )
}

pub fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// What `residuald score` says of these records, in their order.
pub fn scored(records: &[String], bundle: &Path, flags: &[&str]) -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (dir.path().join("in.ndjson"), dir.path().join("out.ndjson"));
    std::fs::write(&file, records.join("\n")).unwrap();
    let paths = [&file, bundle, &out].map(|path| path.to_str().unwrap());
    let all = ["score", paths[0], "--bundle", paths[1], "--out", paths[2]];
    run(&[&all, flags].concat()).with_code(0);
    let lines = std::fs::read_to_string(out).unwrap();
    lines.lines().map(|line| parse(line.as_bytes())).collect()
}
