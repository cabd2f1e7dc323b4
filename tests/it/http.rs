//! Who may see what over HTTP: loopback, the token, TLS, renewed certificates, clients that hold a connection.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use crate::common::kafka::{Note, produce};
use crate::common::process::{Daemon, ask, bearer, ended, http_get, residuald};
use crate::common::tls::Authority;
use crate::common::{PATIENCE, parse, payments, sample, security_example, wait_for};
use residuald::kafka::embedded::EmbeddedBroker;

const TOKEN: &str = "t0ken-of-the-tests";

fn broker() -> EmbeddedBroker {
    EmbeddedBroker::start(&[("in", 1), ("anomalies", 1), ("dead", 1)]).unwrap()
}

#[test]
fn the_token_is_wanted_for_all_but_the_probes() {
    let broker = broker();
    let token = format!("http.token={TOKEN}");
    let daemon = Daemon::start(&broker.brokers, &[&token]).await_ready();
    let code = |path: &str, authorisation: &str| {
        let stream = TcpStream::connect(&daemon.address).unwrap();
        let (code, head, _) = ask(stream, path, authorisation);
        (code, head)
    };
    for probe in ["/livez", "/readyz"] {
        assert_eq!(code(probe, "").0, 200, "{probe}");
    }
    for path in [
        "/metrics",
        "/status",
        "/log-level",
        "/events",
        "/anomalies",
        "/anomalies/1",
        "/anomalies/1/image",
        "//",
        "/livez/",
        "/readyz/../status",
    ] {
        for wrong in [
            "",
            &bearer("wrong"),
            &bearer(""),
            &bearer(&TOKEN[1..]),
            &format!("Authorization: Basic {TOKEN}\r\n"),
            &format!("Authorization: {TOKEN}\r\n"),
        ] {
            let (code, head) = code(path, wrong);
            assert_eq!(code, 401, "{path} with {wrong}");
            let head = head.to_lowercase();
            assert!(head.contains("www-authenticate: bearer\r\n"), "{head}");
        }
    }
    for page in ["/", "/triage.js", "/triage.css"] {
        assert_eq!(
            code(page, "").0,
            200,
            "{page}: it asks for the token itself"
        );
    }
    assert_eq!(put(&daemon.address, "/log-level", "off", "").0, 401);
    let changed = put(&daemon.address, "/log-level", "info", &bearer(TOKEN));
    assert_eq!(changed, (200, "info\n".to_owned()));
    for path in ["/metrics", "/status", "/log-level", "/anomalies"] {
        assert_eq!(code(path, &bearer(TOKEN)).0, 200, "{path}");
        let other_case = format!("authorization: bearer {TOKEN}\r\n");
        assert_eq!(code(path, &other_case).0, 200, "{path}");
    }
    let ended = daemon.terminate();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains(TOKEN), "{}", ended.stderr);
}

#[test]
fn the_log_level_changes_while_the_daemon_runs() {
    let broker = broker();
    let daemon = Daemon::ready(&broker.brokers, &[]);
    let mut records = sample(3).into_iter();
    let mut scored = 0;
    let mut score_one = || {
        produce(
            &broker.brokers,
            "in",
            &[Note::new("key", records.next().unwrap())],
        );
        scored += 1;
        daemon.await_count("scored", scored);
    };
    let level = || daemon.get("/log-level");
    let change = |to: &str| put(&daemon.address, "/log-level", to, "");
    assert_eq!(level(), (200, "info\n".into()));
    score_one();
    assert_eq!(change("info,residuald=debug\n").0, 200);
    assert_eq!(level(), (200, "residuald=debug,info\n".into()));
    score_one();
    assert_eq!(change("warn"), (200, "warn\n".into()));
    score_one();
    for bad in ["debgu", "", "residuald=loud"] {
        let (code, why) = change(bad);
        assert_eq!(code, 400, "{bad}: {why}");
        assert!(why.contains("expected error, warn, info"), "{why}");
    }
    assert_eq!(level(), (200, "warn\n".into()));
    let log = daemon.terminate().stderr;
    let delivered: Vec<_> = log
        .lines()
        .filter(|l| l.contains("batch delivered"))
        .collect();
    assert_eq!(delivered.len(), 1, "of the second record only: {log}");
    let line = parse(delivered[0].as_bytes());
    assert_eq!(
        (&line["level"], &line["records"]),
        (&"DEBUG".into(), &1.into())
    );
    assert!(
        log.contains("\"from\":\"info\",\"to\":\"residuald=debug,info\""),
        "{log}"
    );
}

/// Status code and body of a PUT.
fn put(address: &str, path: &str, body: &str, header: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "PUT {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n{header}\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap();
    (code.parse().unwrap(), body.to_owned())
}

#[test]
fn status_asks_the_daemon() {
    let broker = broker();
    let token = format!("http.token={TOKEN}");
    let record = Note::new("key", sample(1).remove(0));
    produce(&broker.brokers, "in", &[record]);
    let daemon = Daemon::ready(&broker.brokers, &[&token]);
    let url = format!("http://{}/", daemon.address);
    let status = |token: &str, flags: &[&str]| {
        let mut command = residuald();
        command.env("RESIDUALD_TOKEN", token).args(["status", &url]);
        ended(command.args(flags))
    };
    let shown = wait_for("a table of partitions", || {
        let shown = status(TOKEN, &[]);
        shown.with_code(0);
        shown.stdout.contains("finished to").then_some(shown.stdout)
    });
    for said in ["ready", "payments 1", "on cpu", "unaccounted    0"] {
        assert!(shown.contains(said), "{said} in {shown}");
    }
    let json = status(TOKEN, &["--json"]);
    json.with_code(0);
    assert_eq!(parse(json.stdout.as_bytes())["ready"], true);
    assert!(
        status("wrong", &[])
            .one_line(64)
            .contains("RESIDUALD_TOKEN")
    );
    daemon.drains();
    assert!(
        status(TOKEN, &[])
            .one_line(69)
            .contains("Check that the daemon is running")
    );
}

#[test]
fn an_open_address_without_a_token_is_warned_of_once() {
    let broker = broker();
    let seen = |settings: &[&str]| {
        let daemon = Daemon::ready(&broker.brokers, settings);
        let port = daemon.address.rsplit_once(':').unwrap().1;
        let stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
        let (records, ..) = ask(stream, "/anomalies", "");
        let local = format!("127.0.0.1:{port}");
        assert_eq!(put(&local, "/log-level", "info", "").0, records);
        let log = daemon.drains().stderr;
        (
            log.matches("are open to every client that can reach")
                .count(),
            records,
        )
    };
    assert_eq!(seen(&["http.listen=0.0.0.0:0"]), (1, 403));
    let token = format!("http.token={TOKEN}");
    assert_eq!(seen(&["http.listen=0.0.0.0:0", &token]), (0, 401));
    assert_eq!(seen(&["http.listen=127.0.0.1:0"]), (0, 200));
}

#[test]
fn loopback_is_the_default() {
    let config = ended(
        residuald()
            .args(["config", "--set", "kafka.topics=in"])
            .args(["--set", "model.bundle=m"]),
    );
    let listen = "http.listen = \"127.0.0.1:9464\"  # default";
    assert!(config.with_code(0).is_empty());
    assert!(config.stdout.contains(listen), "{}", config.stdout);
}

#[test]
fn status_says_what_is_missing_over_tls() {
    let (broker, authority, etc) = (broker(), Authority::new(), tempfile::tempdir().unwrap());
    let daemon = with_tls(&authority, etc.path(), &broker);
    let (known, other) = (etc.path().join("ca.pem"), etc.path().join("other.pem"));
    authority.write(&known);
    Authority::new().write(&other);
    let status = |url: String, ca: Option<&Path>| {
        let mut command = residuald();
        command.env("RESIDUALD_TOKEN", TOKEN).args(["status", &url]);
        command.args(ca.iter().flat_map(|ca| ["--ca-file", ca.to_str().unwrap()]));
        ended(&mut command)
    };
    let (http, https) = ("http://", "https://");
    let url = |scheme: &str| format!("{scheme}{}", daemon.address);
    wait_for("an answer", || {
        (status(url(https), Some(&known)).code == Some(0)).then_some(())
    });
    for (scheme, ca, said) in [
        (https, None, "--ca-file"),
        (https, Some(&*other), "CA in --ca-file signed"),
        (http, None, "try https://"),
    ] {
        let ended = status(url(scheme), ca);
        let line = ended.one_line(69);
        assert!(line.contains(said), "{said} in {line}");
    }
    let plain = Daemon::ready(&broker.brokers, &["kafka.group_id=plain"]);
    let ended = status(format!("https://{}", plain.address), None);
    let line = ended.one_line(69);
    assert!(line.contains("try http://"), "{line}");
}

/// A folder with the files that the example in docs/src/security.md names, and the daemon on it.
fn with_tls(authority: &Authority, etc: &Path, broker: &EmbeddedBroker) -> Daemon {
    authority.issue(&etc.join("tls.crt"), &etc.join("tls.key"));
    std::fs::write(etc.join("http-token"), format!("{TOKEN}\n")).unwrap();
    let file = etc.join("residuald.toml");
    std::fs::write(&file, security_example("tls_certificate", etc)).unwrap();
    let environment = [("RESIDUALD_CONFIG", file.to_str().unwrap())];
    Daemon::start_in(&environment, &broker.brokers, &[])
}

#[test]
fn tls_as_documented() {
    let (broker, authority, etc) = (broker(), Authority::new(), tempfile::tempdir().unwrap());
    let daemon = with_tls(&authority, etc.path(), &broker);
    let get = |path: &str, authorisation: &str| {
        let stream = authority.connect(&daemon.address).unwrap();
        ask(stream, path, authorisation).0
    };
    wait_for("readiness", || (get("/readyz", "") == 200).then_some(()));
    assert_eq!(get("/metrics", ""), 401);
    assert_eq!(get("/metrics", &bearer(TOKEN)), 200);

    let stranger = Authority::new().connect(&daemon.address);
    assert!(stranger.is_err(), "a certificate of another CA is accepted");
    let mut plain = TcpStream::connect(&daemon.address).unwrap();
    write!(plain, "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "plain HTTP is answered");

    // A client that never says a word does not hold the end up.
    let _silent = TcpStream::connect(&daemon.address).unwrap();
    let ended = daemon.terminate();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.took < Duration::from_secs(15), "{:?}", ended.took);
}

#[test]
fn a_renewed_certificate_is_taken_up_and_a_bad_one_is_not() {
    let (broker, old, etc) = (broker(), Authority::new(), tempfile::tempdir().unwrap());
    let daemon = with_tls(&old, etc.path(), &broker);
    wait_for("TLS", || old.connect(&daemon.address).ok());
    let renewed = Authority::new();
    // As Kubernetes does it: the same names, of links, lead to new files.
    for name in ["tls.crt", "tls.key"] {
        std::fs::remove_file(etc.path().join(name)).unwrap();
    }
    let new = etc.path().join("new");
    std::fs::create_dir(&new).unwrap();
    renewed.issue(&new.join("tls.crt"), &new.join("tls.key"));
    for name in ["tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(new.join(name), etc.path().join(name)).unwrap();
    }
    wait_for("the new certificate", || {
        renewed.connect(&daemon.address).ok()
    });
    assert!(old.connect(&daemon.address).is_err());

    std::fs::write(new.join("tls.crt"), "no certificate").unwrap();
    std::thread::sleep(Duration::from_secs(12)); // two looks of the daemon
    renewed.connect(&daemon.address).unwrap();
}

#[test]
fn clients_that_hold_their_connection_do_not_hold_up_the_end() {
    let broker = broker();
    let daemon = Daemon::ready(&broker.brokers, &[]);
    let _silent = TcpStream::connect(&daemon.address).unwrap();
    let mut half = TcpStream::connect(&daemon.address).unwrap();
    write!(half, "GET /status HTTP/1.1\r\nHost:").unwrap();
    let mut kept = TcpStream::connect(&daemon.address).unwrap();
    write!(kept, "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert_eq!(http_get(&daemon.address, "/livez").0, 200);
    let ended = daemon.drains();
    assert!(ended.took < Duration::from_secs(15), "{:?}", ended.took);
}

#[test]
fn who_brings_no_request_is_sent_away() {
    let broker = broker();
    let daemon = Daemon::ready(&broker.brokers, &[]);
    for begun in ["", "GET /livez HTTP/1.1\r\nHost:"] {
        let mut stream = TcpStream::connect(&daemon.address).unwrap();
        write!(stream, "{begun}").unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        assert!(read.is_ok(), "still connected after {PATIENCE:?}");
    }
    daemon.drains();
}

#[test]
fn files_that_make_no_tls_are_78_and_named() {
    let (authority, etc) = (Authority::new(), tempfile::tempdir().unwrap());
    let path = |name: &str| etc.path().join(name).to_str().unwrap().to_owned();
    authority.issue(Path::new(&path("tls.crt")), Path::new(&path("tls.key")));
    authority.issue(Path::new(&path("other.crt")), Path::new(&path("other.key")));
    let (certificate, key) = (path("tls.crt"), path("tls.key"));
    for (certificate, key, said) in [
        (&path("none.crt"), &key, "http.tls_certificate"),
        (&certificate, &path("none.key"), "http.tls_key"),
        (&key, &key, "not a PEM certificate"),
        (&certificate, &certificate, "not a PEM key"),
        (&certificate, &path("other.key"), "key values mismatch"),
        (&certificate, &String::new(), "set both or neither"),
        (&String::new(), &key, "set both or neither"),
    ] {
        for verb in ["run", "check"] {
            let mut command = residuald();
            command.arg(verb);
            for setting in [
                "kafka.brokers=127.0.0.1:1".to_owned(),
                "kafka.topics=in".to_owned(),
                "http.listen=127.0.0.1:0".to_owned(),
                format!("model.bundle={:?}", payments()),
                format!("http.tls_certificate={certificate}"),
                format!("http.tls_key={key}"),
            ] {
                command.args(["--set", &setting]);
            }
            let ended = ended(&mut command);
            let stderr = ended.with_code(78);
            assert!(stderr.contains(said), "{verb}: {said} in {stderr}");
        }
    }
}
