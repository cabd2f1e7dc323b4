//! No secret is in the log at any level: not as it is, not in base64, not in the pieces and numbers of a library's trace.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::common::formats::{AVRO, avro, framed};
use crate::common::kafka::{Note, produce};
use crate::common::process::{Daemon, Ended, ask, bearer};
use crate::common::registry::SchemaRegistry;
use crate::common::sample;
use apache_avro::Schema;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use residuald::kafka::embedded::EmbeddedBroker;
use serde_json::json;

const REGISTRY: &str = "reg1stry-s3cret";
const COLLECTOR: &str = "c0llector-s3cret";
const COLLECTOR_TOKEN: &str = "c0llector-t0ken";
const HTTP: &str = "http-t0ken-s3cret";
const SASL: &str = "sasl-s3cret";
const KEY: &str = "private-key-s3cret";
const IN_URL: &str = "url-s3cret";
const ALL: [&str; 7] = [
    REGISTRY,
    COLLECTOR,
    COLLECTOR_TOKEN,
    HTTP,
    SASL,
    KEY,
    IN_URL,
];

/// A collector that takes nothing and repeats what it was sent, keys included.
fn collector() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|stream| repeat(&stream));
        }
    });
    endpoint
}

fn repeat(mut stream: &TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let lower = head.to_lowercase();
    let length = lower
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length = length.map_or(0, |length| length.parse().unwrap());
    reader.take(length).read_to_end(&mut Vec::new())?;
    let length = head.len();
    write!(
        stream,
        "HTTP/1.1 403 No\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{head}"
    )
}

/// What a daemon logs that asks a registry and a collector, and whose client brings the token.
fn log_of(settings: &[&str], levels: &[&str]) -> Ended {
    let broker = EmbeddedBroker::start(&[("in", 1), ("anomalies", 1), ("dead", 1)]).unwrap();
    let registry = SchemaRegistry::start();
    registry.schema(1, "AVRO", AVRO, json!([]));
    let basic = BASE64_STANDARD.encode(format!("registry-user:{REGISTRY}"));
    if !settings.iter().any(|s| s.contains("schema_registry.token")) {
        registry.insists_on(&format!("Basic {basic}"));
    }
    let headers = format!("x-api-key={COLLECTOR},authorization=Bearer%20{COLLECTOR_TOKEN}");
    let own = [
        "input.format=avro".to_owned(),
        registry.setting(),
        format!("telemetry.otlp_endpoint={}", collector()),
        "telemetry.trace_sample_ratio=1.0".to_owned(),
        format!("http.token={HTTP}"),
        format!("kafka.client.\"sasl.password\"={SASL}"),
        format!("kafka.client.\"ssl.key.password\"={KEY}"),
        format!("kafka.client.\"client.rack\"=https://me:{IN_URL}@rack"),
        "kafka.client.\"debug\"=all".to_owned(),
    ];
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let environment = [("OTEL_EXPORTER_OTLP_HEADERS", headers.as_str())];
    let daemon = Daemon::start_in(&environment, &broker.brokers, &[&own, settings].concat());
    let daemon = daemon.await_ready();
    let connect = || TcpStream::connect(&daemon.address).unwrap();
    for level in levels {
        let mut stream = connect();
        write!(
            stream,
            "PUT /log-level HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n{}\r\n{level}",
            level.len(),
            bearer(HTTP)
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{level}: {answer}");
    }
    let schema = Schema::parse_str(AVRO).unwrap();
    let record = framed(1, &avro(&schema, &sample(1)[0]));
    produce(&broker.brokers, "in", &[Note::new("key", record)]);
    crate::common::wait_for("a scored record", || {
        let (code, _, body) = ask(connect(), "/status", &bearer(HTTP));
        (code == 200 && body.contains("\"scored\":1,")).then_some(())
    });
    daemon.drains()
}

fn holds_no_secret(log: &str) {
    // Rows of sixteen characters, each a line, as ureq and others write what they send.
    let rows: String = log.lines().filter_map(last_column).collect();
    let digits: String = log.chars().filter(char::is_ascii_hexdigit).collect();
    for secret in ALL {
        let spilt = log.lines().find(|line| line.contains(secret));
        assert_eq!(spilt, None, "{secret}");
        assert!(!rows.contains(secret), "{secret} in rows");
        let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        assert!(!digits.contains(&hex), "{secret} in hexadecimal");
        for user in ["", "registry-user:", "a", "bc"] {
            let encoded = BASE64_STANDARD.encode(format!("{user}{secret}"));
            let inner = &encoded[..encoded.len() / 4 * 4 - 4];
            let spilt = log.lines().find(|line| line.contains(inner));
            assert_eq!(spilt, None, "{secret} in base64");
        }
    }
}

fn last_column(line: &str) -> Option<&str> {
    let message = line
        .split("\",\"")
        .find(|part| part.contains("message\":\""));
    let text = message.unwrap_or(line);
    text.len().checked_sub(16).and_then(|at| text.get(at..))
}

fn logs(settings: &[&str], levels: &[&str]) {
    for format in ["json", "text"] {
        let format = format!("telemetry.log_format={format}");
        let log = log_of(&[settings, &[&format]].concat(), levels).stderr;
        assert!(log.contains("trace applies to residuald only"), "{log}");
        assert!(log.contains("DEBUG"), "libraries are logged: {log}");
        holds_no_secret(&log);
    }
}

const BASIC: [&str; 2] = [
    "input.schema_registry.username=registry-user",
    "input.schema_registry.password=reg1stry-s3cret",
];

#[test]
fn at_trace_from_the_start() {
    logs(&[BASIC[0], BASIC[1], "telemetry.log_level=trace"], &[]);
}

#[test]
fn at_the_trace_of_each_library_while_it_runs() {
    let libraries = "trace,ureq=trace,ureq_proto=trace,ureq_proto::util=trace,log=trace,hyper=trace,\
                     opentelemetry=trace,opentelemetry_otlp=trace";
    logs(&BASIC, &["info", libraries]);
}

#[test]
fn a_token_of_the_registry() {
    let token = format!("input.schema_registry.token={REGISTRY}");
    logs(&[&token, "telemetry.log_level=trace"], &[]);
}
