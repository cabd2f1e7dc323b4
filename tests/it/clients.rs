//! What a client of HTTP can do to a daemon: nothing. Connections that are only held, names of other machines, pages of
//! other sites, requests without end, answers that nobody takes.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::kafka::{Note, produce};
use crate::common::process::{Daemon, ask, signal};
use crate::common::tls::Authority;
use crate::common::{PATIENCE, free_port, sample, wait_for};
use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use residuald::kafka::embedded::EmbeddedBroker;

/// What the daemon may open, and what is opened to it.
const FILES: usize = 256;
const HELD: usize = 600;
/// A whole request for / by HTTP/2, asked for at once: settings, then headers by HPACK's tables.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\
    \0\0\x0e\x01\x05\0\0\0\x01\x82\x86\x84\x41\x09localhost";
const TOKEN: &str = "t0ken-of-the-tests";

fn broker() -> EmbeddedBroker {
    EmbeddedBroker::start(&[("in", 1), ("anomalies", 1), ("dead", 1)]).unwrap()
}

/// A connection on which `said` was said and which is then only held.
fn hold(address: &str, said: &[u8]) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(said).ok()?;
    Some(stream)
}

fn open_files(daemon: &Daemon) -> usize {
    let files = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid()));
    files.unwrap().count()
}

/// Status code and whole answer of a request as it is.
fn send(address: &str, request: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The daemon may refuse before it has read all.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    if let Err(e) = stream.read_to_end(&mut answer) {
        assert_eq!(e.kind(), ErrorKind::ConnectionReset, "{e}");
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    (code.unwrap_or_default(), answer)
}

fn request(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}")
        .into_bytes()
}

/// Probes, counts and a reload, with a client that holds all the connections it can have.
fn goes_on_under(daemon: &Daemon, reloads: f64, probe: impl Fn(&str) -> u16) {
    for path in ["/livez", "/readyz", "/metrics"] {
        for _ in 0..3 {
            assert_eq!(probe(path), 200, "{path}");
        }
    }
    let files = open_files(daemon);
    assert!(files < FILES * 3 / 4, "{files} files are open");
    signal(daemon.pid(), "HUP");
    let reloaded = || daemon.metric("residuald_model_reloads_total{status=\"ok\"}");
    wait_for("a reload", || (reloaded() == reloads).then_some(()));
}

#[test]
fn connections_that_are_held_cost_no_probe_and_no_reload() {
    let broker = broker();
    let daemon = Daemon::start_with_files(FILES, &broker.brokers, &[]).await_ready();
    let kept = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let ways: [&[u8]; 4] = [b"", b"GET /livez HTTP/1.1\r\nHost:", kept, HTTP2];
    for (reloads, said) in (1..).zip(ways) {
        let held: Vec<_> = (0..HELD).map(|_| hold(&daemon.address, said)).collect();
        goes_on_under(&daemon, f64::from(reloads), |path| daemon.get(path).0);
        drop(held);
    }
    let closed = daemon.metric("residuald_http_connections_closed_total{reason=\"no_room\"}");
    assert!(closed >= HELD as f64, "{closed}");
    produce(
        &broker.brokers,
        "in",
        &[Note::new("key", sample(1).remove(0))],
    );
    daemon.await_count("scored", 1);
    let log = daemon.drains().stderr;
    let said = log.matches("HTTP: no room for a new connection").count();
    assert!((1..10).contains(&said), "said {said} times: {log}");
}

#[test]
fn the_same_over_tls() {
    let (broker, authority, etc) = (broker(), Authority::new(), tempfile::tempdir().unwrap());
    let (certificate, key) = (etc.path().join("tls.crt"), etc.path().join("tls.key"));
    authority.issue(&certificate, &key);
    let certificate = format!("http.tls_certificate={}", certificate.display());
    let key = format!("http.tls_key={}", key.display());
    let settings = [certificate.as_str(), &key];
    let daemon = Daemon::start_with_files(FILES, &broker.brokers, &settings);
    let probe = |path: &str| ask(authority.connect(&daemon.address).unwrap(), path, "").0;
    wait_for("readiness", || (probe("/readyz") == 200).then_some(()));
    // Handshakes that never begin, that stall, and that are followed by nothing.
    let hello: &[u8] = b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03";
    for said in [b"", hello] {
        let held: Vec<_> = (0..HELD).map(|_| hold(&daemon.address, said)).collect();
        assert_eq!((probe("/livez"), probe("/readyz")), (200, 200));
        drop(held);
    }
    let held: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = authority.connect(&daemon.address).unwrap();
            let _ = stream.write_all(HTTP2);
            stream
        })
        .collect();
    assert_eq!((probe("/livez"), probe("/readyz")), (200, 200));
    let files = open_files(&daemon);
    assert!(files < FILES * 3 / 4, "{files} files are open");
    drop(held);
    daemon.drains();
}

/// An attack that goes on while the daemon starts.
#[test]
fn a_start_gets_through_clients_that_wait_for_it() {
    let broker = broker();
    let address = format!("127.0.0.1:{}", free_port());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut held = Vec::new();
            while !over.load(Ordering::Relaxed) {
                match hold(&address, HTTP2) {
                    Some(stream) if held.len() < HELD => held.push(stream),
                    _ => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        let _attack = Ends(&over);
        let listen = format!("http.listen={address}");
        let daemon = Daemon::start_with_files(FILES, &broker.brokers, &[&listen]);
        // A probe that meets the attack's rush may be lost, the next one is not.
        wait_for("readiness", || {
            let request = request("GET", "/readyz", "", "");
            (send(&address, &request).0 == 200).then_some(())
        });
        daemon.drains();
    });
}

/// Ends the attack when it is dropped, by a panic too.
struct Ends<'o>(&'o AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn too_few_files_for_kafka_end_the_start_and_say_so() {
    let output = std::process::Command::new("sh")
        .arg("-c")
        .arg("ulimit -n 100; exec \"$0\" \"$@\"")
        .args([env!("CARGO_BIN_EXE_residuald"), "run"])
        .args(["--set", "kafka.brokers=127.0.0.1:1"])
        .args(["--set", "kafka.topics=in"])
        .args(["--set", "http.listen=127.0.0.1:0"])
        .args(["--set", "model.bundle=models/payments"])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{stderr}");
    for said in [
        "may open only 100 files",
        "at least 128",
        "ulimit -n",
        "LimitNOFILE",
    ] {
        assert!(stderr.contains(said), "{said} in {stderr}");
    }
}

#[test]
fn a_connection_that_asks_for_nothing_is_closed() {
    let broker = broker();
    let daemon = Daemon::ready(&broker.brokers, &[]);
    let after_one = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n".as_slice();
    let half_a_body =
        b"PUT /log-level HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nwa".as_slice();
    let held = [HTTP2, after_one, half_a_body, b"GET / HTTP/1.1\r\nHo"]
        .map(|said| hold(&daemon.address, said).unwrap());
    for mut stream in held {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let read = stream.read_to_end(&mut Vec::new());
        let gone = read.as_ref().map_err(std::io::Error::kind);
        assert!(
            matches!(gone, Ok(_) | Err(ErrorKind::ConnectionReset)),
            "still connected after {PATIENCE:?}: {read:?}"
        );
    }
    assert_eq!(daemon.get("/log-level").1, "info\n");
    daemon.drains();
}

/// The client chooses neither by ALPN nor by asking for it at once.
#[test]
fn http_2_is_not_spoken() {
    let (broker, authority, etc) = (broker(), Authority::new(), tempfile::tempdir().unwrap());
    let (certificate, key) = (etc.path().join("tls.crt"), etc.path().join("tls.key"));
    authority.issue(&certificate, &key);
    let certificate = format!("http.tls_certificate={}", certificate.display());
    let key = format!("http.tls_key={}", key.display());
    let daemon = Daemon::start(&broker.brokers, &[&certificate, &key]);
    let offer = |protocols: &[u8]| {
        let mut connector = SslConnector::builder(SslMethod::tls_client()).unwrap();
        connector.set_verify(SslVerifyMode::NONE);
        connector.set_alpn_protos(protocols).unwrap();
        let stream = TcpStream::connect(&daemon.address).unwrap();
        connector.build().connect("127.0.0.1", stream)
    };
    let both = offer(b"\x02h2\x08http/1.1").unwrap();
    assert_eq!(both.ssl().selected_alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(ask(both, "/livez", "").0, 200);
    assert!(offer(b"\x02h2").is_err());
}

#[test]
fn a_name_of_another_machine_is_not_answered_without_a_token() {
    let broker = broker();
    let daemon = Daemon::ready(&broker.brokers, &[]);
    let code = |method: &str, path: &str, headers: &str, body: &str| {
        send(&daemon.address, &request(method, path, headers, body))
    };
    let paths = [
        "/anomalies",
        "/anomalies/1",
        "/events",
        "/status",
        "/log-level",
        "/",
        "/x",
    ];
    for host in [
        "evil.example",
        "evil.example:9464",
        "10.1.2.3",
        "localhost.evil.example",
    ] {
        let host = format!("Host: {host}\r\n");
        for path in paths {
            let (status, answer) = code("GET", path, &host, "");
            assert_eq!(status, 403, "{path} {host}");
            assert!(answer.contains("set http.token"), "{answer}");
        }
        assert_eq!(code("PUT", "/log-level", &host, "off").0, 403, "{host}");
        for path in ["/livez", "/readyz", "/metrics"] {
            assert_eq!(code("GET", path, &host, "").0, 200, "{path} {host}");
        }
    }
    let local = "Host: localhost\r\n";
    assert_eq!(
        code("GET", "http://evil.example/anomalies", local, "").0,
        403
    );
    for header in [
        "Origin: http://evil.example",
        "Origin: http://localhost:1",
        "Origin: null",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
    ] {
        let headers = format!("{local}{header}\r\n");
        assert_eq!(
            code("PUT", "/log-level", &headers, "off").0,
            403,
            "{header}"
        );
        assert_eq!(code("GET", "/anomalies", &headers, "").0, 403, "{header}");
    }
    let port = daemon.address.rsplit_once(':').unwrap().1;
    for host in ["localhost", "LocalHost.", "127.0.0.1", "127.9.9.9", "[::1]"] {
        for host in [
            format!("Host: {host}\r\n"),
            format!("Host: {host}:{port}\r\n"),
        ] {
            assert_eq!(code("GET", "/anomalies", &host, "").0, 200, "{host}");
        }
    }
    let own = format!("{local}Origin: http://localhost\r\nSec-Fetch-Site: same-origin\r\n");
    assert_eq!(code("PUT", "/log-level", &own, "warn").0, 200);
    assert_eq!(daemon.get("/log-level").1, "warn\n");
}

#[test]
fn with_a_token_any_name_will_do() {
    let broker = broker();
    let token = format!("http.token={TOKEN}");
    let daemon = Daemon::ready(&broker.brokers, &[&token]);
    let headers = format!("Host: scorer.example\r\nAuthorization: Bearer {TOKEN}\r\n");
    let request = request("GET", "/anomalies", &headers, "");
    assert_eq!(send(&daemon.address, &request).0, 200);
}

#[test]
fn requests_without_end_are_refused() {
    let broker = broker();
    let daemon = Daemon::ready(&broker.brokers, &[]);
    let local = "Host: localhost\r\n";
    let code = |method: &str, path: &str, headers: &str, body: &str| {
        let headers = format!("{local}{headers}");
        send(&daemon.address, &request(method, path, &headers, body)).0
    };
    let long = "x".repeat(300_000);
    assert_eq!(code("PUT", "/log-level", "", &long), 413);
    assert_eq!(code("PUT", "/log-level", "", &"a=b,".repeat(100_000)), 413);
    assert_eq!(
        code("GET", "/anomalies", &format!("X: {long}\r\n"), ""),
        431
    );
    assert_eq!(code("GET", "/anomalies", &"X: y\r\n".repeat(5000), ""), 431);
    let line = code("GET", &format!("/anomalies?severity={long}"), "", "");
    assert!(matches!(line, 414 | 431), "{line}");
    let many = format!("/anomalies?{}", "limit=1&".repeat(5000));
    assert_eq!(code("GET", &many, "", ""), 400);
    for (path, expected) in [
        ("/anomalies?limit=1&limit=2", 400),
        ("/anomalies?limit=-1", 400),
        ("/anomalies?limit=x", 400),
        ("/anomalies?severty=critical", 400),
        ("/anomalies?limit=18446744073709551615", 200),
        ("/anomalies/-1", 400),
        ("/anomalies/18446744073709551615", 404),
        ("/anomalies/1/image", 404),
    ] {
        assert_eq!(code("GET", path, "", ""), expected, "{path}");
    }
    // An expression that takes gigabytes when it is compiled.
    let regex = "a[{b=((((((x{99}){99}){99}){99}){99}){99})}]=trace";
    let answered = code("PUT", "/log-level", "", regex);
    assert!(matches!(answered, 200 | 400), "{answered}");
    assert_eq!(daemon.get("/livez").0, 200);
    daemon.drains();
}

#[test]
fn live_streams_are_so_many_and_no_more() {
    const STREAMS: usize = 32;
    let broker = broker();
    let daemon = Daemon::ready(&broker.brokers, &[]);
    let open = || {
        let request = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let mut stream = hold(&daemon.address, request).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut begun = Vec::new();
        while !begun
            .windows(8)
            .any(|at| at == b"\"uptime_" || at == b"close on")
        {
            let mut more = [0; 1024];
            let read = stream.read(&mut more).unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&begun));
            begun.extend_from_slice(&more[..read]);
        }
        (stream, String::from_utf8_lossy(&begun).into_owned())
    };
    let mut streams: Vec<_> = (0..STREAMS).map(|_| open().0).collect();
    let (_, refused) = open();
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
    assert!(
        refused.to_lowercase().contains("\r\nretry-after: "),
        "{refused}"
    );
    streams.pop();
    wait_for("the place of the stream that is gone", || {
        open().1.starts_with("HTTP/1.1 200 ").then_some(())
    });
    daemon.drains();
}

#[test]
fn a_client_that_takes_no_answer_is_closed_and_counted() {
    let broker = broker();
    let daemon = Daemon::ready(&broker.brokers, &[]);
    // Requests as long as they are taken: the daemon takes no more while it cannot answer.
    let stream = TcpStream::connect(&daemon.address).unwrap();
    stream.set_nonblocking(true).unwrap();
    let slow = "residuald_http_connections_closed_total{reason=\"slow\"}";
    wait_for("the end of the connection", || {
        let ask = b"GET /triage.js HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(200);
        let _ = (&stream).write(&ask);
        (daemon.metric(slow) == 1.0).then_some(())
    });
    assert_eq!(daemon.get("/livez").0, 200);
    let log = daemon.drains().stderr;
    assert!(log.contains("did not read its response"), "{log}");
}
