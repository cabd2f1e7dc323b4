//! Secrets: reads them from their sources (`{ env = … }`, `{ file = … }`) and keeps them out of logs and errors.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::Read as _;

use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use config::{Value, ValueKind};

use super::LARGEST_FILE;
use crate::text::percent_encoded;

/// A password or token. Debug output hides it.
#[derive(Clone, PartialEq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Secret {
        Secret(text)
    }

    /// Returns the secret itself, to check or send it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// Returns the string value of a setting, and whether it came from `{ env = … }` or `{ file = … }`.
pub(super) fn resolve(value: &Value) -> Result<(String, bool), String> {
    let ValueKind::Table(table) = &value.kind else {
        let text = value.clone().into_string();
        return text
            .map(|text| (text, false))
            .map_err(|_| "expected a string, a number or a boolean".into());
    };
    let only = table.iter().next().filter(|_| table.len() == 1);
    let (kind, location) = match only {
        Some((kind, location)) => (kind.as_str(), location.to_string()),
        None => ("", String::new()),
    };
    match kind {
        "env" => std::env::var(&location)
            .map(|text| (text, true))
            .map_err(|_| format!("the environment variable {location} is not set")),
        "file" => {
            read(&location).map(|text| (text.trim_end_matches(['\r', '\n']).to_owned(), true))
        }
        _ => Err("expected a value, { env = \"NAME\" } or { file = \"PATH\" }".into()),
    }
}

/// Reads a secret's file. The size is limited, because the path may be a device or the wrong file.
fn read(path: &str) -> Result<String, String> {
    let problem = |e: std::io::Error| format!("{path}: {e}");
    let mut text = String::new();
    let file = File::open(path).map_err(problem)?;
    let read = file.take(LARGEST_FILE + 1).read_to_string(&mut text);
    match read.map_err(problem)? as u64 > LARGEST_FILE {
        true => Err(format!(
            "{path} has more than {LARGEST_FILE} bytes: is this the right file?"
        )),
        false => Ok(text),
    }
}

/// Returns whether a setting with this name is a secret. This covers all names that librdkafka hides.
pub fn is_secret(name: &str) -> bool {
    const PARTS: [&str; 9] = [
        "password",
        "passphrase",
        "secret",
        "token",
        "key.pem",
        "oauthbearer.config",
        "oauthbearer.extensions",
        "kinit.cmd",
        "jaas",
    ];
    PARTS.iter().any(|part| name.contains(part)) && !name.ends_with(".url")
}

/// Shown in place of a secret.
pub const HIDDEN: &str = "***";

/// Minimum length of a secret that is hidden. Shorter ones would match unrelated text.
const LEAST: usize = 4;

/// Secrets that must not be printed, not even by a library that quotes its settings.
#[derive(Clone, Default)]
pub struct Secrets {
    /// Secrets as plain text, which are replaced wherever they occur.
    texts: Vec<String>,
    /// Secrets as base64. The whole base64 text around them is replaced, because a secret may be encoded together with a name.
    encoded: Vec<String>,
}

impl Secrets {
    /// Adds a secret and its lines. If it is a list of `name=value`, its words and values are added too, because libraries quote
    /// parts of secrets.
    pub fn add(&mut self, text: &str) {
        let lines = text.lines().filter(|line| !line.starts_with("-----"));
        let is_list = text.split_whitespace().any(|word| word.contains('='));
        let words = text.split_whitespace().filter(|_| is_list);
        let values = words.clone().filter_map(|word| word.split_once('='));
        let values = values.map(|(_, value)| value);
        let all = lines.chain(words).chain(values).chain([text]);
        for part in all.filter(|part| part.len() >= LEAST) {
            self.texts.extend(spellings(part));
            self.encoded.extend(encodings(part));
        }
        self.sort();
    }

    pub fn extend(&mut self, others: &Secrets) {
        self.texts.extend_from_slice(&others.texts);
        self.encoded.extend_from_slice(&others.encoded);
        self.sort();
    }

    /// Sorts longer texts first, so that a whole secret is replaced before its parts.
    fn sort(&mut self) {
        for all in [&mut self.texts, &mut self.encoded] {
            all.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
            all.dedup();
        }
    }

    /// Returns `text` with `***` in place of every secret.
    pub fn hide<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut text = Cow::Borrowed(text);
        for secret in &self.texts {
            if text.contains(secret.as_str()) {
                text = Cow::Owned(text.replace(secret.as_str(), HIDDEN));
            }
        }
        for secret in &self.encoded {
            while let Some(at) = text.find(secret.as_str()) {
                text = Cow::Owned(without_base64_around(&text, at));
            }
        }
        text
    }
}

/// Returns a secret as it is, as JSON and Rust quote it, and percent-encoded.
fn spellings(secret: &str) -> [String; 4] {
    let unquoted = |quoted: String| quoted[1..quoted.len() - 1].to_owned();
    [
        secret.to_owned(),
        unquoted(serde_json::Value::from(secret).to_string()),
        unquoted(format!("{secret:?}")),
        percent_encoded(secret),
    ]
}

/// Returns base64 texts such that one of them occurs wherever the secret was encoded. There is one for each offset within a group
/// of three bytes.
fn encodings(secret: &str) -> Vec<String> {
    let mut encodings = Vec::new();
    for before in 0..3 {
        let bytes = [&[0; 2][..before], secret.as_bytes()].concat();
        // The first and the last character also encode neighbouring bytes.
        let first = (before * 8).div_ceil(6);
        let last = bytes.len() * 8 / 6;
        for engine in [BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD] {
            encodings.push(engine.encode(&bytes)[first..last].to_owned());
        }
    }
    encodings
}

fn without_base64_around(text: &str, at: usize) -> String {
    let other = |c: char| !(c.is_ascii_alphanumeric() || "+/-_=".contains(c));
    let start = text[..at].rfind(other).map_or(0, |before| {
        before + text[before..].chars().next().map_or(0, char::len_utf8)
    });
    let end = text[at..].find(other).map_or(text.len(), |end| at + end);
    [&text[..start], HIDDEN, &text[end..]].concat()
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secrets", self.texts.len())
    }
}

/// Returns the user and password of a URL, which is everything between `://` and the last `@`.
pub fn user_of(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("://")?;
    rest.rsplit_once('@').map(|(user, _)| user)
}

pub fn without_user(text: &str) -> Cow<'_, str> {
    match user_of(text) {
        Some(user) => Cow::Owned(text.replacen(user, HIDDEN, 1)),
        None => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{SMALLEST, load};

    #[test]
    fn a_file_without_an_end_is_no_secret() {
        let token = "http.token={ file = \"/dev/zero\" }";
        let refused = load(SMALLEST, &[], &[token]).unwrap_err();
        assert!(
            refused.contains("/dev/zero has more than 1048576 bytes"),
            "{refused}"
        );
    }

    #[test]
    fn a_secret_is_hidden_whole_and_in_part() {
        let mut secrets = Secrets::default();
        secrets.add("hunter2 \"x\"");
        secrets.add("principal=admin key=0p3n loose");
        secrets.add("-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMG\n-----END PRIVATE KEY-----\n");
        secrets.add("abc");
        for (text, shown) in [
            ("password hunter2 \"x\"!", "password ***!"),
            (r#"{"m":"hunter2 \"x\""}"#, r#"{"m":"***"}"#),
            ("beginning at: loose", "beginning at: ***"),
            ("admin has 0p3n", "*** has ***"),
            ("BEGIN MIGHAgEAMBMG END", "BEGIN *** END"),
            ("abc is in many words", "abc is in many words"),
        ] {
            assert_eq!(secrets.hide(text), shown);
        }
        assert_eq!(
            format!("{:?}", Secret::new("hunter2".into())),
            HIDDEN.to_owned()
        );
    }

    #[test]
    fn a_secret_is_hidden_however_it_is_spelled() {
        use base64::prelude::BASE64_STANDARD;

        for secret in [
            "pa55",
            "hunter2",
            "a \"quoted\" one\\",
            "p/ä+ss wörd?",
            "x>>?>>?>>y",
        ] {
            let mut secrets = Secrets::default();
            secrets.add(secret);
            let mut spelled = vec![
                secret.to_owned(),
                format!("{secret:?}"),
                serde_json::json!({ "m": secret }).to_string(),
            ];
            for user in ["", "a:", "me:", "you:", "someone:"] {
                for after in ["", "!", "!!", "!!!"] {
                    let pair = format!("{user}{secret}{after}");
                    spelled.push(BASE64_STANDARD.encode(&pair));
                    spelled.push(BASE64_URL_SAFE_NO_PAD.encode(&pair));
                }
            }
            for spelled in spelled {
                let line = format!("Authorization: Basic {spelled}; é");
                let shown = secrets.hide(&line);
                assert!(shown.contains(HIDDEN), "{secret}: {shown}");
                assert!(!shown.contains(&spelled), "{secret}: {shown}");
                assert!(shown.starts_with("Authorization: Basic "), "{shown}");
                assert!(shown.ends_with("; é"), "{shown}");
            }
        }
    }

    #[test]
    fn the_user_of_a_url_is_hidden() {
        for (text, shown) in [
            ("http://me:pass@host/x", "http://***@host/x"),
            ("http://me:p/a@ss@host", "http://***@host"),
            ("https://host/x?mail=me, you@there", "https://***@there"),
            ("https://host/x", "https://host/x"),
            ("me@host", "me@host"),
        ] {
            assert_eq!(without_user(text), shown);
        }
    }

    #[test]
    fn secrets_come_from_the_environment_or_a_file_and_are_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "hunter2\n").unwrap();
        let text = format!(
            "{SMALLEST}\n[kafka.client]\n\"sasl.username\" = \"me\"\n\"sasl.password\" = {{ file = {:?} }}",
            secret
        );
        let variables = [("RESIDUALD__KAFKA__CLIENT__SSL_KEY_PASSWORD", "open sesame")];
        let config = load(&text, &variables, &[]).unwrap();
        let client = config.kafka.client.iter();
        let client = client.filter(|(name, _)| name.starts_with('s'));
        assert_eq!(
            client.collect::<Vec<_>>(),
            [
                ("sasl.password", "hunter2"),
                ("sasl.username", "me"),
                ("ssl.key.password", "open sesame")
            ]
        );
        let shown = format!("{config:?} {:?}", config.effective);
        assert!(
            !shown.contains("hunter2") && !shown.contains("sesame"),
            "{shown}"
        );
        let missing = load(
            SMALLEST,
            &[],
            &["kafka.client.\"sasl.password\"={ env = \"NOT_SET_ANYWHERE\" }"],
        );
        assert!(missing.unwrap_err().contains("NOT_SET_ANYWHERE"));
    }

    #[test]
    fn a_secret_says_where_it_came_from() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "hunter2").unwrap();
        let file = format!("{{ file = {secret:?} }}");
        let origin = |text: &str, variables: &[(&str, &str)], flags: &[&str], key: &str| {
            let config = load(&format!("{SMALLEST}\n{text}"), variables, flags).unwrap();
            let setting = config.effective.into_iter().find(|e| e.key == key);
            setting.unwrap().origin
        };
        let password = "kafka.client.\"sasl.password\"";
        for key in ["http.token", password] {
            for value in ["\"hunter2\"", &file] {
                let line = format!("{key} = {value}");
                let origin_of_file = origin(&line, &[], &[], key);
                assert!(
                    origin_of_file.ends_with("residuald.toml"),
                    "{origin_of_file}"
                );
                let flag = format!("{key}={value}");
                assert_eq!(origin("", &[], &[&flag], key), "--set", "{flag}");
            }
        }
        let path = secret.to_str().unwrap();
        for (variable, value, key) in [
            ("RESIDUALD__HTTP__TOKEN", "hunter2", "http.token"),
            ("RESIDUALD__HTTP__TOKEN__FILE", path, "http.token"),
            (
                "RESIDUALD__KAFKA__CLIENT__SASL_PASSWORD",
                "hunter2",
                password,
            ),
            (
                "RESIDUALD__KAFKA__CLIENT__SASL_PASSWORD__FILE",
                path,
                password,
            ),
        ] {
            let origin = origin("", &[(variable, value)], &[], key);
            assert_eq!(origin, "the environment", "{variable}");
        }
    }
}
