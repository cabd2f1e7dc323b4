//! Texts that may be used but not shown.

use std::borrow::Cow;
use std::fmt;

use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD, Engine as _};

/// A password or token. Debug output hides it.
#[derive(Clone, PartialEq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Secret {
        Secret(text)
    }

    /// The text itself, for the one who checks or sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

pub const HIDDEN: &str = "***";

/// Shorter texts are in too many words to hide them wherever they turn up.
const LEAST: usize = 4;

/// What must not be printed by anyone, a library that repeats its settings included.
#[derive(Clone, Default)]
pub struct Secrets {
    /// Hidden where they stand.
    texts: Vec<String>,
    /// Hidden with all of the base64 around them: others encode a secret together with a name.
    encoded: Vec<String>,
}

impl Secrets {
    /// Adds a secret, its lines, and, of a list of `name=value`, each word and value: others quote a secret in part.
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

    /// The whole before its parts.
    fn sort(&mut self) {
        for all in [&mut self.texts, &mut self.encoded] {
            all.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
            all.dedup();
        }
    }

    /// `text` with `***` in place of every secret.
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

/// A secret as it is, as JSON and Rust quote it, and as a URL has it.
fn spellings(secret: &str) -> [String; 4] {
    let unquoted = |quoted: String| quoted[1..quoted.len() - 1].to_owned();
    let in_url = |byte: u8| match byte {
        b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    [
        secret.to_owned(),
        unquoted(serde_json::Value::from(secret).to_string()),
        unquoted(format!("{secret:?}")),
        secret.bytes().map(in_url).collect(),
    ]
}

/// What every base64 that has the secret in it has in it too: it depends on where in a group of three bytes it begins.
fn encodings(secret: &str) -> Vec<String> {
    let mut encodings = Vec::new();
    for before in 0..3 {
        let bytes = [&[0; 2][..before], secret.as_bytes()].concat();
        // The first and the last character also hold bits of what is around.
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

/// User and password of a URL: whatever is between `://` and the last `@`.
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
}
