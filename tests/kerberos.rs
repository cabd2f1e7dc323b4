//! Signing in to a real Apache Kafka by Kerberos, with a KDC of its own.
#![cfg(feature = "kerberos")]

mod common;

use std::fs;

use common::cluster::cluster_with;
use common::kafka::{produce, spread};
use common::kdc::{CLIENT, Kdc};
use common::process::{Daemon, ended, residuald};
use common::{payments, sample, security_example};

#[test]
fn kerberos_as_documented_and_a_wrong_principal() {
    let etc = tempfile::tempdir().unwrap();
    let Some(kdc) = Kdc::start(etc.path()) else {
        return;
    };
    let folder = etc.path().to_str().unwrap();
    let Some(cluster) = cluster_with(&["--kerberos", folder]) else {
        return;
    };
    let brokers = fs::read_to_string(cluster.dir.join("bootstrap-kerberos")).unwrap();
    let brokers = brokers.trim();
    cluster.create_topics(&["in", "anomalies", "dead"], 1);
    produce(&cluster.brokers, "in", &spread(&sample(200), 1));

    fs::copy(kdc.file("client.keytab"), kdc.file("residuald.keytab")).unwrap();
    let file = kdc.file("residuald.toml");
    fs::write(&file, security_example("kerberos.keytab", etc.path())).unwrap();
    let (config, tickets) = (kdc.file("krb5.conf"), kdc.file("tickets"));
    let environment = [
        ("RESIDUALD_CONFIG", file.as_str()),
        ("KRB5_CONFIG", &config),
        ("KRB5CCNAME", &tickets),
    ];
    // The listener has no TLS.
    let plain = "kafka.client.security.protocol=sasl_plaintext";
    let principal = format!("kafka.client.sasl.kerberos.principal={CLIENT}");
    let no_ca = "kafka.client.ssl.ca.location=probe";
    let settings = [plain, no_ca, &principal];
    let daemon = Daemon::start_in(&environment, brokers, &settings).await_ready();
    daemon.await_count("scored", 200);
    daemon.is_balanced();
    daemon.drains();

    let mut command = residuald();
    command.arg("run").envs(environment);
    command.env("KRB5CCNAME", kdc.file("no-tickets"));
    for setting in [
        format!("kafka.brokers={brokers}"),
        format!("model.bundle={:?}", payments()),
        "kafka.topics=in".to_owned(),
        "output.dead_letter_topic=dead".to_owned(),
        "http.listen=127.0.0.1:0".to_owned(),
        "kafka.connect_timeout=8s".to_owned(),
        plain.to_owned(),
        no_ca.to_owned(),
        "kafka.client.sasl.kerberos.principal=nobody@RESIDUALD.TEST".to_owned(),
    ] {
        command.args(["--set", &setting]);
    }
    let ended = ended(&mut command);
    let line = ended.one_line(69);
    assert!(line.contains("sasl.kerberos.keytab"), "{line}");
}
