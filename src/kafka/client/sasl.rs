//! Sign-in: the SASL mechanisms of this build, and OAUTHBEARER tokens that librdkafka does not fetch itself.

use std::error::Error;

use rdkafka::client::OAuthToken;
use rdkafka::config::ClientConfig;

use super::super::error::KafkaError;
#[cfg(feature = "aws-msk-iam")]
use super::msk_iam;

/// The first word of `sasl.oauthbearer.config` that selects tokens from AWS.
const MSK_IAM: &str = "aws_msk_iam";

/// The error when an unsecured token (`enable.sasl.oauthbearer.unsecure.jwt`) expires.
pub(super) const UNSECURED: &str =
    "unsecured OAUTHBEARER tokens are for tests only and are not renewed";

/// The mechanisms of this build, by librdkafka's names.
const MECHANISMS: &[&str] = if cfg!(feature = "kerberos") {
    &[
        "PLAIN",
        "SCRAM-SHA-256",
        "SCRAM-SHA-512",
        "OAUTHBEARER",
        "GSSAPI",
    ]
} else {
    &["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]
};

/// Refuses a SASL mechanism that cannot work, before a client connects.
pub(in crate::kafka) fn check(config: &ClientConfig) -> Result<(), KafkaError> {
    let protocol = config.get("security.protocol").unwrap_or_default();
    if !protocol.to_ascii_lowercase().starts_with("sasl") {
        return Ok(());
    }
    let named = ["sasl.mechanisms", "sasl.mechanism"].map(|name| config.get(name));
    let mechanism = named.into_iter().flatten().next();
    let problem = match mechanism {
        None if !cfg!(feature = "kerberos") => format!(
            "it is not set, and librdkafka's default GSSAPI (Kerberos) is not in this build: set one of {}",
            MECHANISMS.join(", ")
        ),
        Some("GSSAPI") if !cfg!(feature = "kerberos") => format!(
            "GSSAPI (Kerberos) is not in this build: use the image, or build with `--features kerberos`. This build has {}",
            MECHANISMS.join(", ")
        ),
        Some("AWS_MSK_IAM") => format!(
            "AWS_MSK_IAM exists only in the Java client: set it to OAUTHBEARER and \"sasl.oauthbearer.config\" to \"{MSK_IAM} region=REGION\""
        ),
        Some("OAUTHBEARER") => return check_tokens(config),
        Some(other) if !MECHANISMS.contains(&other) && other != "GSSAPI" => {
            format!(
                "{other} is not in this build: set one of {}",
                MECHANISMS.join(", ")
            )
        }
        _ => return Ok(()),
    };
    Err(KafkaError::Setting {
        name: "sasl.mechanism".to_owned(),
        problem,
    })
}

/// Checks that OAUTHBEARER has a source of tokens.
fn check_tokens(config: &ClientConfig) -> Result<(), KafkaError> {
    let is = |name: &str, value: &str| {
        let set = config.get(name);
        set.is_some_and(|set| set.eq_ignore_ascii_case(value))
    };
    // For these two sources of tokens, librdkafka checks the other settings.
    if is("sasl.oauthbearer.method", "oidc") || is("enable.sasl.oauthbearer.unsecure.jwt", "true") {
        return Ok(());
    }
    let source = config.get("sasl.oauthbearer.config");
    TokenSource::parse(source)
        .map(drop)
        .map_err(|problem| KafkaError::Setting {
            name: "sasl.oauthbearer.config".to_owned(),
            problem,
        })
}

/// The source of OAUTHBEARER tokens.
#[derive(Debug, PartialEq)]
enum TokenSource {
    /// AWS, for the brokers in this region.
    MskIam(String),
}

impl TokenSource {
    fn parse(text: Option<&str>) -> Result<TokenSource, String> {
        let how = format!(
            "OAUTHBEARER needs a source of tokens: set \"sasl.oauthbearer.method\" to \"oidc\" with \"sasl.oauthbearer.token.endpoint.url\", \
             \"sasl.oauthbearer.client.id\" and \"sasl.oauthbearer.client.secret\"; or, for Amazon MSK, \"sasl.oauthbearer.config\" to \"{MSK_IAM} region=REGION\""
        );
        let mut words = text.unwrap_or_default().split_ascii_whitespace();
        if words.next() != Some(MSK_IAM) {
            return Err(how);
        }
        if !cfg!(feature = "aws-msk-iam") {
            return Err(format!(
                "{MSK_IAM} is not in this build: use the image, or build with `--features aws-msk-iam`"
            ));
        }
        let region = match (words.next(), words.next()) {
            (None, _) => ["AWS_REGION", "AWS_DEFAULT_REGION"]
                .iter()
                .find_map(|name| std::env::var(name).ok()),
            (Some(word), None) => word.strip_prefix("region=").map(str::to_owned),
            _ => None,
        };
        // The region becomes part of a host name.
        let is_region = |region: &String| {
            !region.is_empty()
                && region
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        region.filter(is_region).map(TokenSource::MskIam).ok_or_else(|| {
            format!("expected \"{MSK_IAM} region=REGION\", for example region=eu-central-1; without a region, the environment variable AWS_REGION is used")
        })
    }
}

/// Creates a token. librdkafka requests the first token at once, and each later one after four fifths of the lifetime
/// of the token before it. `source` is the value of `sasl.oauthbearer.config`.
pub(in crate::kafka) fn token(source: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
    // `check` accepts a missing source only for unsecured tokens. librdkafka creates the first of these itself.
    match TokenSource::parse(source).map_err(|_| UNSECURED)? {
        #[cfg(feature = "aws-msk-iam")]
        TokenSource::MskIam(region) => Ok(msk_iam::token(&region)?),
        #[cfg(not(feature = "aws-msk-iam"))]
        TokenSource::MskIam(_) => unreachable!("refused by `parse`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(settings: &[(&str, &str)]) -> Result<(), String> {
        let mut config = ClientConfig::new();
        config.set("security.protocol", "SASL_SSL");
        for (name, value) in settings {
            config.set(*name, *value);
        }
        check(&config).map_err(|e| e.to_string())
    }

    #[test]
    fn a_mechanism_that_cannot_work_is_refused_with_what_to_do() {
        let oauth = ("sasl.mechanism", "OAUTHBEARER");
        let config = |text| [oauth, ("sasl.oauthbearer.config", text)];
        for (settings, said) in [
            (
                &[("sasl.mechanism", "AWS_MSK_IAM")][..],
                "set it to OAUTHBEARER",
            ),
            (&[("sasl.mechanisms", "DIGEST-MD5")], "PLAIN, SCRAM-SHA-256"),
            (&[oauth], "\"sasl.oauthbearer.method\" to \"oidc\""),
            (&config("principal=me"), "\"oidc\""),
            (&config("aws_msk_iam region=a.b"), "region=eu-central-1"),
            (&config("aws_msk_iam region=a b"), "region=eu-central-1"),
        ] {
            let problem = checked(settings).unwrap_err();
            assert!(problem.contains(said), "{said}\nnot in\n{problem}");
        }
        for settings in [
            &[("sasl.mechanism", "SCRAM-SHA-512")][..],
            &[oauth, ("sasl.oauthbearer.method", "oidc")],
            &[oauth, ("enable.sasl.oauthbearer.unsecure.jwt", "true")],
            #[cfg(feature = "aws-msk-iam")]
            &config("aws_msk_iam region=eu-central-1"),
            &[
                ("security.protocol", "ssl"),
                ("sasl.mechanism", "AWS_MSK_IAM"),
            ],
        ] {
            assert_eq!(checked(settings), Ok(()), "{settings:?}");
        }
    }

    #[test]
    #[cfg(not(feature = "kerberos"))]
    fn missing_kerberos_is_named_even_as_librdkafkas_default() {
        for settings in [
            &[("sasl.username", "me")][..],
            &[("sasl.mechanism", "GSSAPI")],
        ] {
            let problem = checked(settings).unwrap_err();
            assert!(
                problem.contains("GSSAPI (Kerberos) is not in this build"),
                "{problem}"
            );
        }
    }
}
