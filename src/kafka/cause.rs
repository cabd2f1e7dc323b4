//! From librdkafka's complaints to the setting to look at.

use super::KafkaError;
use crate::config::is_secret;

/// By a part of the complaint; the first that fits.
const ADVICE: [(&str, &str); 16] = [
    (
        "Unsupported SASL mechanism",
        "Set \"sasl.mechanism\" in [kafka.client] to one that the brokers support",
    ),
    (
        "no credentials of AWS",
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the pod or the instance a role",
    ),
    (
        "Failed to acquire SASL OAUTHBEARER token",
        "Check \"sasl.oauthbearer.token.endpoint.url\", \"sasl.oauthbearer.client.id\" and \"sasl.oauthbearer.client.secret\" in [kafka.client]; of a TLS error \"https.ca.location\"",
    ),
    (
        "invalid_token",
        "The brokers refuse the token: compare its issuer, audience, scope and end with what they expect, and the clocks",
    ),
    ("Kerberos", KERBEROS),
    ("GSSAPI", KERBEROS),
    ("current SASL state", LISTENER),
    (
        "SASL",
        "Check \"sasl.username\" and \"sasl.password\" in [kafka.client], or where the token comes from",
    ),
    (
        "certificate verify failed",
        "\"ssl.ca.location\" in [kafka.client] must hold the CA of the brokers' certificates, and these the brokers' names",
    ),
    ("No matching issuer", CLIENT_CERTIFICATE),
    ("alert bad certificate", CLIENT_CERTIFICATE),
    ("certificate required", CLIENT_CERTIFICATE),
    ("alert unknown ca", CLIENT_CERTIFICATE),
    ("alert certificate unknown", CLIENT_CERTIFICATE),
    ("SSL", LISTENER),
    ("APIVERSION_QUERY", LISTENER),
];
const KERBEROS: &str = "Check \"sasl.kerberos.principal\", \"sasl.kerberos.keytab\" and \"sasl.kerberos.service.name\" in [kafka.client], and that the KDC of /etc/krb5.conf answers";
const CLIENT_CERTIFICATE: &str = "The brokers want a client certificate that they trust: check \"ssl.certificate.location\" and \"ssl.key.location\" in [kafka.client]";
const LISTENER: &str =
    "Does \"security.protocol\" in [kafka.client] fit the port: plaintext, ssl, sasl_ssl?";
const ADDRESS: &str = "Is kafka.brokers right, and are the brokers up?";

/// The complaint without librdkafka's bookkeeping, and what to do.
pub(super) fn explain(complaint: &str) -> String {
    let advice = ADVICE.iter().find(|(part, _)| complaint.contains(part));
    let advice = advice.map_or(ADDRESS, |(_, advice)| advice);
    let words = match complaint.split_once("]: ") {
        Some((thread, words)) if thread.starts_with("[thrd:") => words,
        _ => complaint,
    };
    let words = words.rsplit_once(" (after ").map_or(words, |(w, _)| w);
    format!("{words}. {advice}")
}

/// The settings that have names as values, with these names; librdkafka does not say them.
const CHOICES: [(&str, &str); 10] = [
    (
        "security.protocol",
        "plaintext, ssl, sasl_plaintext, sasl_ssl",
    ),
    (
        "auto.offset.reset",
        "smallest, earliest, beginning, largest, latest, end, error",
    ),
    ("isolation.level", "read_uncommitted, read_committed"),
    ("compression.type", COMPRESSIONS),
    ("compression.codec", COMPRESSIONS),
    ("group.protocol", "classic, consumer"),
    ("ssl.endpoint.identification.algorithm", "none, https"),
    ("broker.address.family", "any, v4, v6"),
    (
        "client.dns.lookup",
        "use_all_dns_ips, resolve_canonical_bootstrap_servers_only",
    ),
    ("metadata.recovery.strategy", "none, rebootstrap"),
];
const COMPRESSIONS: &str = "none, gzip, snappy, lz4, zstd";

/// librdkafka's words about a value, and the right ones. The value is left out if it may be a secret: by the name of
/// its setting, or because the name is misspelled.
pub(super) fn wrong_value(problem: &str, name: &str, value: &str, is_known: bool) -> String {
    let problem = match is_known && !is_secret(name) {
        true => problem.to_owned(),
        false => problem.replace(&format!("\"{value}\""), "***"),
    };
    match CHOICES.iter().find(|(setting, _)| *setting == name) {
        Some((_, choices)) => {
            format!("{problem}: expected one of {choices}")
        }
        None => problem,
    }
}

/// Why librdkafka makes no client: it starts with the setting, or else it is about one.
pub(super) fn refused(problem: &str) -> KafkaError {
    let first = problem.split(' ').next().unwrap_or_default();
    let first = first.trim_matches('`');
    let name = match first.contains('.') {
        true => first,
        false if problem.contains("SASL mechanism") => "sasl.mechanism",
        false => return KafkaError::Client(problem.to_owned()),
    };
    let hint = match name {
        "ssl.key.location" | "ssl.key.pem" => {
            ": is it a PEM key, \"ssl.key.password\" its passphrase, and the certificate its own?"
        }
        _ if problem.contains("error:") => ": is it what the setting wants, and can it be read?",
        _ => "",
    };
    KafkaError::Setting {
        name: name.to_owned(),
        problem: format!("{problem}{hint}"),
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::config::ClientConfig;

    use super::*;

    fn refusal(name: &str, value: &str) -> Option<String> {
        let set = ClientConfig::new().set(name, value).create_native_config();
        set.err().map(|e| KafkaError::from(e).to_string())
    }

    #[test]
    fn every_choice_is_one_and_a_wrong_one_is_shown() {
        for (name, choices) in CHOICES {
            for choice in choices.split(", ") {
                assert_eq!(refusal(name, choice), None);
            }
            let problem = refusal(name, "whatever").unwrap();
            assert!(problem.contains("\"whatever\""), "{problem}");
            assert!(problem.contains(choices), "{problem}");
        }
        let range = refusal("fetch.wait.max.ms", "-5").unwrap();
        assert!(
            range.contains("-5") && range.contains("0..300000"),
            "{range}"
        );
    }

    #[test]
    fn what_may_be_a_secret_is_not_shown() {
        for name in ["sasl.passwrd", "no.such.setting"] {
            let problem = refusal(name, "hunter2").unwrap();
            assert!(!problem.contains("hunter2"), "{problem}");
        }
        for name in ["sasl.password", "ssl.key.password"] {
            let words = format!("Invalid value \"hunter2\" for \"{name}\"");
            let problem = wrong_value(&words, name, "hunter2", true);
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }

    #[test]
    fn a_complaint_becomes_advice() {
        for (complaint, explained) in [
            (
                "[thrd:ssl://b:1/1]: ssl://b:1/1: Receive failed: sslv3 alert bad certificate (after 1ms in state UP)",
                format!(
                    "ssl://b:1/1: Receive failed: sslv3 alert bad certificate. {CLIENT_CERTIFICATE}"
                ),
            ),
            (
                "b:1/1: Disconnected (after 1ms in state APIVERSION_QUERY)",
                format!("b:1/1: Disconnected. {LISTENER}"),
            ),
            ("no answer", format!("no answer. {ADDRESS}")),
            (
                "Kerberos ticket refresh failed: kinit: exited with code 1",
                format!("Kerberos ticket refresh failed: kinit: exited with code 1. {KERBEROS}"),
            ),
        ] {
            assert_eq!(explain(complaint), explained);
        }
    }

    #[test]
    fn a_refusal_names_the_setting() {
        let problem = "`sasl.oauthbearer.token.endpoint.url` is mandatory when `sasl.oauthbearer.method=oidc` is set";
        let KafkaError::Setting { name, .. } = refused(problem) else {
            panic!("it is about a setting");
        };
        assert_eq!(name, "sasl.oauthbearer.token.endpoint.url");
    }
}
