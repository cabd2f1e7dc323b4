//! Advice for librdkafka's errors: which setting to check, and which values it accepts.

use crate::config::is_secret;

/// Pairs of a part of an error text and the advice for it. The first match applies.
const ADVICE: [(&str, &str); 16] = [
    (
        "Unsupported SASL mechanism",
        "Set \"sasl.mechanism\" in [kafka.client] to one that the brokers support",
    ),
    (
        "no AWS credentials",
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the pod or the instance a role",
    ),
    (
        "Failed to acquire SASL OAUTHBEARER token",
        "Check \"sasl.oauthbearer.token.endpoint.url\", \"sasl.oauthbearer.client.id\" and \"sasl.oauthbearer.client.secret\" in [kafka.client]; after a TLS error check \"https.ca.location\"",
    ),
    (
        "invalid_token",
        "The brokers refuse the token: compare its issuer, audience, scope and expiry with what they expect, and compare the clocks",
    ),
    ("Kerberos", KERBEROS),
    ("GSSAPI", KERBEROS),
    ("current SASL state", LISTENER),
    (
        "SASL",
        "Check \"sasl.username\" and \"sasl.password\" in [kafka.client], or the source of the token",
    ),
    (
        "certificate verify failed",
        "\"ssl.ca.location\" in [kafka.client] must hold the CA that signed the brokers' certificates, and the certificates must contain the brokers' names",
    ),
    ("No matching issuer", CLIENT_CERTIFICATE),
    ("alert bad certificate", CLIENT_CERTIFICATE),
    ("certificate required", CLIENT_CERTIFICATE),
    ("alert unknown ca", CLIENT_CERTIFICATE),
    ("alert certificate unknown", CLIENT_CERTIFICATE),
    ("SSL", LISTENER),
    ("APIVERSION_QUERY", LISTENER),
];
const KERBEROS: &str = "Check \"sasl.kerberos.principal\", \"sasl.kerberos.keytab\" and \"sasl.kerberos.service.name\" in [kafka.client], and that the KDC in /etc/krb5.conf answers";
const CLIENT_CERTIFICATE: &str = "The brokers want a client certificate that they trust: check \"ssl.certificate.location\" and \"ssl.key.location\" in [kafka.client]";
const LISTENER: &str =
    "Check that \"security.protocol\" in [kafka.client] matches the port: plaintext, ssl, sasl_ssl";
const ADDRESS: &str = "Check kafka.brokers, and that the brokers are up";

/// Returns librdkafka's error text without its thread name and timing, followed by advice.
pub(super) fn explain(error: &str) -> String {
    let advice = ADVICE.iter().find(|(part, _)| error.contains(part));
    let advice = advice.map_or(ADDRESS, |(_, advice)| advice);
    let words = match error.split_once("]: ") {
        Some((thread, words)) if thread.starts_with("[thrd:") => words,
        _ => error,
    };
    let words = words.rsplit_once(" (after ").map_or(words, |(w, _)| w);
    format!("{words}. {advice}")
}

/// Settings with a fixed set of values, because librdkafka's errors do not list the valid ones.
pub(super) const CHOICES: [(&str, &str); 10] = [
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

/// Returns librdkafka's error about a value, followed by the valid values. The value is hidden if its setting holds a
/// secret. It is also hidden if the setting is unknown, because the name of a secret may be misspelled.
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

/// Returns the setting that prevents librdkafka from creating a client, with the problem. Returns `None` if the error
/// names no setting. The error begins with the setting's name.
pub(super) fn refused_setting(problem: &str) -> Option<(String, String)> {
    let first = problem.split(' ').next().unwrap_or_default();
    let first = first.trim_matches('`');
    let name = match first.contains('.') {
        true => first,
        false if problem.contains("SASL mechanism") => "sasl.mechanism",
        false => return None,
    };
    let hint = match name {
        "ssl.key.location" | "ssl.key.pem" => {
            ": check that it is a PEM key, that \"ssl.key.password\" is its passphrase, and that the certificate belongs to it"
        }
        _ if problem.contains("error:") => {
            ": check that the file exists, can be read and has the expected format"
        }
        _ => "",
    };
    Some((name.to_owned(), format!("{problem}{hint}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_becomes_advice() {
        for (error, explained) in [
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
            assert_eq!(explain(error), explained);
        }
    }
}
