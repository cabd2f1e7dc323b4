//! Signing in to a real Apache Kafka by OAUTHBEARER: tokens of an identity provider that end in mid-stream, and what is said
//! where there is none or the brokers take none.

use std::fs;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use crate::common::cluster::{Cluster, cluster_with};
use crate::common::kafka::{produce, read_all, spread};
use crate::common::oidc::{CLIENT, Issuer, SECRET};
use crate::common::process::{Daemon, Ended, ended, residuald};
use crate::common::{payments, sample, security_example, wait_for};

/// librdkafka renews a token after four fifths of it and signs in again after nine tenths of the brokers' session, which
/// brokers want to be a second before its end at least.
const LIFETIME: Duration = Duration::from_secs(16);

fn secure() -> Option<&'static Cluster> {
    cluster_with(&["--secure"])
}

fn topics(cluster: &Cluster, name: &str) -> [String; 4] {
    let topics = ["in", "scores", "anomalies", "dead"].map(|part| format!("{name}-{part}"));
    cluster.create_topics(&topics, 1);
    topics
}

fn brokers(cluster: &Cluster) -> String {
    let file = fs::read_to_string(cluster.dir.join("bootstrap-oauth")).unwrap();
    file.trim().to_owned()
}

/// Settings of `[kafka.client]`, their dots without quotes.
fn client(settings: &[(&str, &str)]) -> Vec<String> {
    let flag = |(name, value): &(&str, &str)| format!("kafka.client.{name}={value}");
    settings.iter().map(flag).collect()
}

fn oidc(cluster: &Cluster, issuer: &Issuer, secret: &str) -> Vec<String> {
    let ca = cluster.dir.join("tls/ca.pem");
    client(&[
        ("security.protocol", "sasl_ssl"),
        ("ssl.ca.location", ca.to_str().unwrap()),
        ("sasl.mechanisms", "OAUTHBEARER"),
        ("sasl.oauthbearer.method", "oidc"),
        ("sasl.oauthbearer.token.endpoint.url", &issuer.url),
        ("sasl.oauthbearer.client.id", CLIENT),
        ("sasl.oauthbearer.client.secret", secret),
    ])
}

#[test]
fn oidc_as_documented() {
    let Some(cluster) = secure() else { return };
    let issuer = Issuer::start(&cluster.dir, Duration::from_secs(600));
    let [input, scores, anomalies, dead] = topics(cluster, "readme");
    produce(&cluster.brokers, &input, &spread(&sample(200), 1));
    let etc = tempfile::tempdir().unwrap();
    fs::copy(cluster.dir.join("tls/ca.pem"), etc.path().join("ca.pem")).unwrap();
    let file = etc.path().join("residuald.toml");
    fs::write(&file, security_example("client.secret", etc.path())).unwrap();
    let environment = [
        ("RESIDUALD_CONFIG", file.to_str().unwrap()),
        ("OIDC_SECRET", SECRET),
    ];
    let settings = [
        format!("kafka.topics={input}"),
        format!("output.scores_topic={scores}"),
        format!("output.anomalies_topic={anomalies}"),
        format!("output.dead_letter_topic={dead}"),
        format!(
            "kafka.client.sasl.oauthbearer.token.endpoint.url={}",
            issuer.url
        ),
        "kafka.client.debug=security".to_owned(),
        "telemetry.log_level=trace".to_owned(),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let daemon = Daemon::start_in(&environment, &brokers(cluster), &settings).await_ready();
    daemon.await_count("scored", 200);
    daemon.is_balanced();
    let log = daemon.drains().stderr;
    assert!(log.contains("OAUTHBEARER"), "{log}");
    // Of a token the first part is the same in all: the header.
    for secret in [SECRET, "eyJ"] {
        let spilt = log.lines().find(|line| line.contains(secret));
        assert_eq!(spilt, None);
    }
}

#[test]
fn tokens_that_end_in_mid_stream_and_an_issuer_that_is_away_lose_nothing() {
    let Some(cluster) = secure() else { return };
    thread::scope(|scope| {
        for delivery in ["at-least-once", "exactly-once"] {
            scope.spawn(move || outlives_its_tokens(cluster, delivery));
        }
    });
}

fn outlives_its_tokens(cluster: &Cluster, delivery: &str) {
    let issuer = Issuer::start(&cluster.dir, LIFETIME);
    let [input, scores, anomalies, dead] = topics(cluster, delivery);
    let settings = [
        format!("kafka.topics={input}"),
        format!("kafka.group_id={delivery}"),
        format!("kafka.delivery={delivery}"),
        format!("output.scores_topic={scores}"),
        format!("output.anomalies_topic={anomalies}"),
        format!("output.dead_letter_topic={dead}"),
    ];
    let settings = [&settings[..], &oidc(cluster, &issuer, SECRET)].concat();
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let daemon = Daemon::ready(&brokers(cluster), &settings);

    let payments = spread(&sample(50), 1);
    let mut sent = 0;
    let mut send = || {
        produce(&cluster.brokers, &input, &payments);
        sent += payments.len();
    };
    // The producer's and the consumer's, both twice.
    wait_for("tokens that were renewed", || {
        send();
        (issuer.issued() >= 6).then_some(())
    });
    issuer.is_down(true);
    thread::sleep(2 * LIFETIME);
    let refused = issuer.refused();
    assert!(refused > 0, "nobody asked for a token");
    send();
    issuer.is_down(false);
    daemon.await_count("scored", sent as u64);
    daemon.is_balanced();
    let log = daemon.drains().stderr;
    assert!(
        log.contains("Failed to acquire SASL OAUTHBEARER token"),
        "{log}"
    );
    let read = read_all(&cluster.brokers, &scores).len();
    assert!(read >= sent, "{delivery}: {read} of {sent}");
    assert!(
        read == sent || delivery == "at-least-once",
        "{read} of {sent}"
    );
}

fn refused(cluster: &Cluster, settings: &[String]) -> Ended {
    refused_with(&[], cluster, settings)
}

fn refused_with(environment: &[(&str, &str)], cluster: &Cluster, settings: &[String]) -> Ended {
    static TOPICS: OnceLock<[String; 4]> = OnceLock::new();
    let [input, _, anomalies, dead] = TOPICS.get_or_init(|| topics(cluster, "refused"));
    let mut command = residuald();
    // No credentials of AWS, wherever this runs.
    command
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("HOME", "/nonexistent");
    for name in [
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
    ] {
        command.env_remove(name);
    }
    command.arg("run").envs(environment.iter().copied());
    let own = [
        format!("kafka.brokers={}", brokers(cluster)),
        format!("model.bundle={:?}", payments()),
        "http.listen=127.0.0.1:0".to_owned(),
        format!("kafka.topics={input}"),
        format!("output.anomalies_topic={anomalies}"),
        format!("output.dead_letter_topic={dead}"),
        "kafka.connect_timeout=8s".to_owned(),
    ];
    for setting in own.iter().chain(settings) {
        command.args(["--set", setting]);
    }
    ended(&mut command)
}

#[test]
fn who_gets_no_token_or_one_that_the_brokers_refuse_is_told_what_to_look_at() {
    let Some(cluster) = secure() else { return };
    let issuer = Issuer::start(&cluster.dir, Duration::from_secs(600));
    let elsewhere = Issuer::start(&cluster.dir, Duration::from_secs(600));
    elsewhere.audience("another cluster");
    let nowhere = client(&[(
        "sasl.oauthbearer.token.endpoint.url",
        "http://127.0.0.1:1/token",
    )]);
    let msk = client(&[
        ("sasl.oauthbearer.method", "default"),
        ("sasl.oauthbearer.config", "aws_msk_iam region=eu-central-1"),
    ]);
    let wrong = "wr0ng-s3cret";
    let right = oidc(cluster, &issuer, SECRET);
    for (settings, expected) in [
        (
            oidc(cluster, &issuer, wrong),
            ["the secret is wrong", "sasl.oauthbearer.client.secret"],
        ),
        (
            [&right[..], &nowhere].concat(),
            ["127.0.0.1:1", "sasl.oauthbearer.token.endpoint.url"],
        ),
        (
            oidc(cluster, &elsewhere, SECRET),
            ["invalid_token", "audience"],
        ),
        (
            [&right[..3], &msk].concat(),
            ["no AWS credentials", "AWS_ACCESS_KEY_ID"],
        ),
    ] {
        let ended = refused(cluster, &settings);
        let line = ended.one_line(69);
        for part in expected {
            assert!(line.contains(part), "{part} not in {line}");
        }
        for secret in [SECRET, wrong, "eyJ"] {
            assert!(!ended.stderr.contains(secret), "{}", ended.stderr);
        }
    }
}

/// There is no Amazon MSK here: these brokers get the token and refuse it.
#[test]
#[cfg(feature = "aws-msk-iam")]
fn a_token_of_aws_reaches_the_brokers_and_no_log() {
    let Some(cluster) = secure() else { return };
    let ca = cluster.dir.join("tls/ca.pem");
    let settings = client(&[
        ("security.protocol", "sasl_ssl"),
        ("ssl.ca.location", ca.to_str().unwrap()),
        ("sasl.mechanisms", "OAUTHBEARER"),
        ("sasl.oauthbearer.config", "aws_msk_iam region=eu-central-1"),
        ("debug", "all"),
    ]);
    let talkative = ["telemetry.log_level=trace".to_owned()];
    let secrets = [
        ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "aws-s3cret"),
        ("AWS_SESSION_TOKEN", "session-s3cret"),
    ];
    let ended = refused_with(&secrets, cluster, &[&settings[..], &talkative].concat());
    let line = ended.one_line(69);
    assert!(line.contains("invalid_token"), "{line}");
    // The last is how each of these tokens begins: https://
    for secret in ["s3cret", "X-Amz-Signature", "aHR0cHM6Ly9"] {
        let spilt = ended.stderr.lines().find(|line| line.contains(secret));
        assert_eq!(spilt, None);
    }
}

#[test]
fn a_mechanism_that_this_build_cannot_do_is_78_with_what_to_do() {
    let Some(cluster) = secure() else { return };
    let ssl = client(&[("security.protocol", "sasl_ssl")]);
    for (settings, said) in [
        (
            &[("sasl.mechanisms", "AWS_MSK_IAM")][..],
            "aws_msk_iam region=",
        ),
        (&[("sasl.mechanisms", "OAUTHBEARER")], "\"oidc\""),
        #[cfg(not(feature = "kerberos"))]
        (&[("sasl.mechanisms", "GSSAPI")], "--features kerberos"),
    ] {
        let ended = refused(cluster, &[&ssl[..], &client(settings)].concat());
        let line = ended.one_line(78);
        assert!(line.contains(said), "{said} not in {line}");
    }
}
