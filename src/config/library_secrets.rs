//! Finds secrets that libraries read from the environment themselves.

use percent_encoding::percent_decode_str;

use super::Variables;
use super::secret::{Secrets, user_of};

/// Variables that contain the URL of a proxy.
const PROXIES: [&str; 3] = ["http_proxy", "https_proxy", "all_proxy"];

/// Collects the headers for a trace collector and the credentials for proxies.
pub fn secrets(variables: &Variables) -> Secrets {
    let mut secrets = Secrets::default();
    for (name, value) in variables {
        if name.starts_with("OTEL_EXPORTER_OTLP") && name.ends_with("_HEADERS") {
            let headers = value.split(',').filter_map(|header| header.split_once('='));
            headers.for_each(|(_, value)| add(&mut secrets, value.trim()));
        }
        if PROXIES.iter().any(|proxy| name.eq_ignore_ascii_case(proxy)) {
            let user = user_of(value).unwrap_or_default();
            let password = user.split_once(':').map_or("", |(_, password)| password);
            add(&mut secrets, user);
            add(&mut secrets, password);
        }
    }
    secrets
}

/// Adds the secret as written and as sent (percent-decoded), each with and without its scheme (`Bearer KEY`).
fn add(secrets: &mut Secrets, written: &str) {
    let sent = percent_decode_str(written).decode_utf8_lossy();
    for text in [written, &sent] {
        secrets.add(text);
        secrets.add(text.rsplit(' ').next().unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_passwords_in_variables_of_libraries_are_secrets() {
        let variables = [
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "x-api-key=k3y-one, authorization=Bearer%20k3y-two",
            ),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=k3y-three"),
            ("https_proxy", "http://me:k3y%2Dfour@proxy:3128"),
            ("ALL_PROXY", "socks5://me:k3y-five@proxy"),
            ("OTEL_SERVICE_NAME", "payments"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let secrets = secrets(&variables.to_vec());
        for text in [
            "k3y-one",
            "Bearer k3y-two",
            "k3y-two",
            "k3y-three",
            "k3y%2Dfour",
            "k3y-four",
            "k3y-five",
        ] {
            assert_eq!(secrets.hide(text), "***", "{text}");
        }
        assert_eq!(secrets.hide("payments me proxy"), "payments me proxy");
    }
}
