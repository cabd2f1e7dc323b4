//! TLS and SASL on a real Apache Kafka: right credentials score records, wrong ones end the start with one clear line,
//! and no secret is printed anywhere.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;

use crate::common::cluster::{Cluster, cluster_with};
use crate::common::kafka::{produce, spread};
use crate::common::process::{Daemon, Ended, ask, bearer, ended, residuald, run};
use crate::common::{payments, sample, security_example};

const RECORDS: usize = 200;
/// Of `kafka.sh start --secure`.
const SCRAM_PASSWORD: &str = "scram-s3cret";
const PLAIN_PASSWORD: &str = "plain-s3cret";
const KEY_PASSWORD: &str = "key-s3cret";

/// The cluster with its topics, `in` filled.
fn secure() -> Option<&'static Cluster> {
    static READY: OnceLock<Option<&'static Cluster>> = OnceLock::new();
    *READY.get_or_init(|| {
        let cluster = cluster_with(&["--secure"])?;
        cluster.create_topics(&["in", "anomalies", "dead"], 1);
        produce(&cluster.brokers, "in", &spread(&sample(RECORDS), 1));
        Some(cluster)
    })
}

fn brokers(cluster: &Cluster, listener: &str) -> String {
    let file = cluster.dir.join(format!("bootstrap-{listener}"));
    fs::read_to_string(file).unwrap().trim().to_owned()
}

fn tls(cluster: &Cluster, file: &str) -> PathBuf {
    cluster.dir.join("tls").join(file)
}

/// Settings of `[kafka.client]` for `--set`.
fn client(settings: &[(&str, &str)]) -> Vec<String> {
    let flag = |(name, value): &(&str, &str)| format!("kafka.client.\"{name}\"={value}");
    settings.iter().map(flag).collect()
}

/// Waits until the daemon has scored what is in `in`, and drains.
fn scores(daemon: Daemon) -> Ended {
    let daemon = daemon.await_ready();
    daemon.await_count("scored", RECORDS as u64);
    daemon.is_balanced();
    daemon.drains()
}

#[test]
fn tls_and_scram_as_documented() {
    let Some(cluster) = secure() else { return };
    let etc = tempfile::tempdir().unwrap();
    let etc = etc.path();
    for (file, as_file) in [
        ("ca.pem", "ca.pem"),
        ("client.pem", "client.pem"),
        ("client.encrypted.key", "client.key"),
    ] {
        fs::copy(tls(cluster, file), etc.join(as_file)).unwrap();
    }
    fs::write(etc.join("key-password"), format!("{KEY_PASSWORD}\n")).unwrap();
    for (listener, word) in [
        ("tls", "ssl.key.password"),
        ("mtls", "ssl.key.password"),
        ("sasl", "sasl.password"),
    ] {
        let file = etc.join(format!("{listener}.toml"));
        fs::write(&file, security_example(word, etc)).unwrap();
        let environment = [
            ("RESIDUALD_CONFIG", file.to_str().unwrap()),
            ("KAFKA_PASSWORD", SCRAM_PASSWORD),
        ];
        let group = format!("kafka.group_id=readme-{listener}");
        let brokers = brokers(cluster, listener);
        scores(Daemon::start_in(&environment, &brokers, &[&group]));
    }
}

/// What a right and a wrong credential share, by listener.
struct Settings {
    tls: Vec<String>,
    sasl: Vec<String>,
}

fn settings(cluster: &Cluster) -> Settings {
    let ca = tls(cluster, "ca.pem");
    let with = |protocol| {
        client(&[
            ("security.protocol", protocol),
            ("ssl.ca.location", ca.to_str().unwrap()),
        ])
    };
    Settings {
        tls: with("ssl"),
        sasl: with("sasl_ssl"),
    }
}

fn refused(brokers: &str, settings: &[String]) -> Ended {
    let mut command = residuald();
    command.arg("run");
    let own = [
        format!("kafka.brokers={brokers}"),
        format!("model.bundle={:?}", payments()),
        "http.listen=127.0.0.1:0".to_owned(),
        "kafka.topics=in".to_owned(),
        "output.dead_letter_topic=dead".to_owned(),
        "kafka.connect_timeout=8s".to_owned(),
    ];
    for setting in own.iter().chain(settings) {
        command.args(["--set", setting]);
    }
    ended(&mut command)
}

#[test]
fn wrong_credentials_are_69_with_the_cause_and_the_setting() {
    let Some(cluster) = secure() else { return };
    let Settings { tls: ssl, sasl } = settings(cluster);
    let pem = |name: &str| tls(cluster, name).to_str().unwrap().to_owned();
    let certificate = |name: &str| {
        client(&[
            ("ssl.certificate.location", &pem(&format!("{name}.pem"))),
            ("ssl.key.location", &pem(&format!("{name}.key"))),
        ])
    };
    let user = |mechanism, name, password| {
        client(&[
            ("sasl.mechanism", mechanism),
            ("sasl.username", name),
            ("sasl.password", password),
        ])
    };
    let other_ca = client(&[("ssl.ca.location", &pem("untrusted-ca.pem"))]);
    let (no_one, wrong) = ("nobody", "wr0ng-s3cret");
    let cases: Vec<(&str, Vec<String>, [&str; 2])> = vec![
        (
            "tls",
            [ssl.clone(), other_ca].concat(),
            ["certificate verify failed", "ssl.ca.location"],
        ),
        (
            "tls",
            client(&[("security.protocol", "ssl")]),
            ["certificate verify failed", "ssl.ca.location"],
        ),
        (
            "mtls",
            ssl.clone(),
            ["bad certificate", "ssl.certificate.location"],
        ),
        (
            "mtls",
            [ssl.clone(), certificate("untrusted-client")].concat(),
            ["certificate", "ssl.certificate.location"],
        ),
        // The broker hangs up, which is seen while reading or while writing.
        ("tls", vec![], ["127.0.0.1", "security.protocol"]),
        ("sasl", ssl.clone(), ["127.0.0.1", "security.protocol"]),
        (
            "tls",
            [sasl.clone(), user("PLAIN", "plain", PLAIN_PASSWORD)].concat(),
            ["SASL PLAIN mechanism handshake failed", "security.protocol"],
        ),
        (
            "sasl",
            [sasl.clone(), user("SCRAM-SHA-256", "scram", SCRAM_PASSWORD)].concat(),
            ["Unsupported SASL mechanism", "sasl.mechanism"],
        ),
        (
            "sasl",
            [sasl.clone(), user("PLAIN", "plain", wrong)].concat(),
            ["SASL authentication error", "sasl.password"],
        ),
        (
            "sasl",
            [sasl.clone(), user("PLAIN", no_one, wrong)].concat(),
            ["SASL authentication error", "sasl.username"],
        ),
        (
            "sasl",
            [sasl.clone(), user("SCRAM-SHA-512", "scram", wrong)].concat(),
            ["SASL authentication error", "sasl.password"],
        ),
        (
            "sasl",
            [sasl.clone(), user("SCRAM-SHA-512", no_one, wrong)].concat(),
            ["SASL authentication error", "sasl.username"],
        ),
    ];
    // All at once: most of their time is waiting.
    thread::scope(|scope| {
        for (listener, settings, expected) in cases {
            scope.spawn(move || {
                let ended = refused(&brokers(cluster, listener), &settings);
                let line = ended.one_line(69);
                for part in expected {
                    assert!(line.contains(part), "{listener} {settings:?}: {line}");
                }
                for secret in [SCRAM_PASSWORD, PLAIN_PASSWORD, wrong] {
                    assert!(!ended.stderr.contains(secret), "{}", ended.stderr);
                }
            });
        }
    });
}

#[test]
fn files_and_settings_that_make_no_client_are_78() {
    let Some(cluster) = secure() else { return };
    let Settings { tls: ssl, sasl } = settings(cluster);
    let path = |name: &str| tls(cluster, name).to_str().unwrap().to_owned();
    let pair = |certificate: &str, key: &str| {
        client(&[
            ("ssl.certificate.location", &path(certificate)),
            ("ssl.key.location", &path(key)),
        ])
    };
    let wrong_passphrase = client(&[("ssl.key.password", "wr0ng-s3cret")]);
    let encrypted = pair("client.pem", "client.encrypted.key");
    for (settings, said) in [
        (
            client(&[("ssl.ca.location", "/no/ca.pem")]),
            "\"ssl.ca.location\": /no/ca.pem: No such file",
        ),
        (pair("client.pem", "none.key"), "\"ssl.key.location\": "),
        (
            client(&[("ssl.ca.location", &path("ca.key"))]),
            "`ssl.ca.location` is refused",
        ),
        (
            pair("client.pem", "ca.key"),
            "`ssl.key.location` is refused",
        ),
        (
            [encrypted, wrong_passphrase].concat(),
            "`ssl.key.location` is refused",
        ),
        (
            [sasl, client(&[("sasl.mechanism", "PLAIN")])].concat(),
            "`sasl.username` is refused",
        ),
    ] {
        let ended = refused("127.0.0.1:1", &[ssl.clone(), settings].concat());
        let stderr = ended.with_code(78);
        assert!(stderr.contains(said), "{said} in {stderr}");
        assert!(!stderr.contains("wr0ng-s3cret"), "{stderr}");
    }
}

#[test]
fn no_secret_is_printed_at_the_most_talkative() {
    let Some(cluster) = secure() else { return };
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, format!("{PLAIN_PASSWORD}\n")).unwrap();
    let from_file = format!("{{ file = {:?} }}", file.path());
    let variable = "RESIDUALD__KAFKA__CLIENT__SASL_PASSWORD";
    let Settings { sasl, .. } = settings(cluster);
    let user = client(&[
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", "plain"),
        ("debug", "all"),
    ]);
    let talkative = [
        "telemetry.log_level=trace".to_owned(),
        "http.token=t0ken-s3cret".to_owned(),
    ];
    let common = [&sasl[..], &user, &talkative].concat();
    for (how, password, environment) in [
        ("inline", Some(PLAIN_PASSWORD), None),
        ("file", Some(from_file.as_str()), None),
        ("env", Some("{ env = \"OURS\" }"), Some("OURS")),
        ("variable", None, Some(variable)),
    ] {
        let environment: Vec<_> = environment
            .map(|name| (name, PLAIN_PASSWORD))
            .into_iter()
            .collect();
        let password = password.map(|p| client(&[("sasl.password", p)]));
        let group = format!("kafka.group_id=quiet-{how}");
        let all = [&common[..], &password.unwrap_or_default(), &[group]].concat();

        for verb in [&["config"][..], &["config", "--json"], &["check"]] {
            let mut command = residuald();
            command.args(verb).envs(environment.iter().copied());
            let bundle = format!("model.bundle={:?}", payments());
            for setting in all.iter().chain([&bundle, &"kafka.topics=in".to_owned()]) {
                command.args(["--set", setting]);
            }
            let ended = ended(&mut command);
            ended.with_code(0);
            let shown = ended.stdout + &ended.stderr;
            assert!(!shown.contains("s3cret"), "{how} {verb:?}: {shown}");
            assert!(verb == ["check"] || shown.contains("***"), "{shown}");
        }

        let settings: Vec<&str> = all.iter().map(String::as_str).collect();
        let brokers = brokers(cluster, "sasl");
        let daemon = Daemon::start_in(&environment, &brokers, &settings).await_ready();
        let answers = ["/livez", "/readyz", "/status", "/metrics"].map(|path| {
            let stream = TcpStream::connect(&daemon.address).unwrap();
            let (code, head, body) = ask(stream, path, &bearer("t0ken-s3cret"));
            assert_eq!(code, 200, "{path}");
            head + &body
        });
        let answers = answers.concat();
        assert!(!answers.contains("s3cret"), "{how}: {answers}");
        let log = daemon.drains().stderr;
        assert!(log.contains("SASLPLAIN") || log.contains("SASL"), "{log}");
        let spilt = log.lines().find(|line| line.contains("s3cret"));
        assert_eq!(spilt, None, "{how}");
    }
}

/// `verb` with a configuration file of `text` besides what it needs; it must end badly.
fn spoilt(verb: &str, text: &str, flag: Option<&str>) -> Ended {
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    let needed = format!("kafka.topics = \"in\"\nmodel.bundle = {:?}\n", payments());
    fs::write(&file, needed + text).unwrap();
    let path = file.path().to_str().unwrap();
    let mut arguments = vec![verb, "--config", path, "--set", "http.listen=127.0.0.1:0"];
    arguments.extend(["--set", "kafka.connect_timeout=8s"]);
    arguments.extend(flag.map(|flag| ["--set", flag]).into_iter().flatten());
    run(&arguments)
}

#[test]
fn no_error_repeats_a_secret() {
    const S: &str = "h1dden-s3cret";
    for (text, flag, says) in [
        // What TOML's own message would quote.
        (
            format!("kafka.client.\"sasl.password\" = {S}"),
            None,
            "line 3: ",
        ),
        (format!("http.token = \"{S}"), None, "line 3: "),
        (format!("kafka.client = \"{S}\""), None, "kafka.client"),
        (
            format!("kafka.client.\"sasl.password\" = [\"{S}\"]"),
            None,
            "sasl.password",
        ),
        (format!("http.token = \"{S} {S}\""), None, "http.token"),
        (format!("http.tokn = \"{S}\""), None, "`http.tokn`"),
        ("http.token = \"\"".to_owned(), None, "http.token is empty"),
        (
            String::new(),
            Some(format!("kafka.client.\"sasl.password\":{S}")),
            "--set kafka.client.\"sasl.password\": expected",
        ),
        (
            format!("kafka.client.\"sasl.passwrd\" = \"{S}\""),
            None,
            "`sasl.passwrd` is refused",
        ),
    ] {
        for verb in ["config", "run"] {
            let ended = spoilt(verb, &text, flag.as_deref());
            let stderr = ended.with_code(78);
            assert!(stderr.contains(says), "{verb} {text}: {stderr}");
            assert!(!stderr.contains("s3cret"), "{verb} {text}: {stderr}");
        }
    }
}

#[test]
fn secrets_in_flags_are_hidden_too() {
    let sample = "models/payments/sample.ndjson.gz";
    let bearer = "sasl.oauthbearer.config=principal=me h1dden-s3cret";
    for verb in [
        &["produce", sample, "--topic", "in"][..],
        &["dead-letters", "list"],
    ] {
        let with = |setting| run(&[verb, &["--brokers", "127.0.0.1:1", "-X", setting]].concat());
        with("sasl.password").with_code(64);
        let flags = ["-X", "security.protocol=sasl_plaintext"].into_iter();
        let flags = flags.chain(["-X", "sasl.mechanism=OAUTHBEARER"]);
        let flags = flags.chain(["-X", "enable.sasl.oauthbearer.unsecure.jwt=true"]);
        let flags: Vec<_> = flags.chain(["-X", bearer]).collect();
        let ended = run(&[verb, &["--brokers", "127.0.0.1:1"], &flags].concat());
        let stderr = ended.with_code(69);
        assert!(stderr.contains("beginning at: ***"), "{stderr}");
        assert!(!stderr.contains("s3cret"), "{stderr}");
    }
}

#[test]
fn what_librdkafka_repeats_of_its_settings_is_hidden() {
    let text = r#"
        kafka.brokers = "127.0.0.1:1"
        [kafka.client]
        "security.protocol" = "sasl_plaintext"
        "sasl.mechanism" = "OAUTHBEARER"
        "enable.sasl.oauthbearer.unsecure.jwt" = true
        "sasl.oauthbearer.config" = "principal=me h1dden-s3cret"
        "client.rack" = "https://me:url-s3cret@rack/token"
        "debug" = "conf"
        [telemetry]
        log_level = "trace"
    "#;
    let ended = spoilt("run", text, None);
    let line = ended.one_line(69);
    assert!(line.contains("beginning at: ***"), "{line}");
    let spilt = ended.stderr.lines().find(|line| line.contains("s3cret"));
    assert_eq!(spilt, None);
    let shown = spoilt("config", text, None);
    shown.with_code(0);
    let url = "\"https://***@rack/token\"";
    assert!(shown.stdout.contains(url), "{}", shown.stdout);
    assert!(!shown.stdout.contains("s3cret"), "{}", shown.stdout);
}

#[test]
fn a_secret_file_that_is_not_there_is_named() {
    let missing = Path::new("/no/such/secret");
    let text = format!("http.token = {{ file = {missing:?} }}");
    let ended = spoilt("config", &text, None);
    assert!(ended.with_code(78).contains("/no/such/secret"));
}
