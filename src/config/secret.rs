//! Texts that may be used but not shown.

use std::borrow::Cow;
use std::fmt;

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
pub struct Secrets(Vec<String>);

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
            // As it is, and as a JSON log has it.
            let quoted = serde_json::Value::from(part).to_string();
            self.0.push(quoted[1..quoted.len() - 1].to_owned());
            self.0.push(part.to_owned());
        }
        self.sort();
    }

    pub fn extend(&mut self, others: &Secrets) {
        self.0.extend_from_slice(&others.0);
        self.sort();
    }

    /// The whole before its parts.
    fn sort(&mut self) {
        self.0
            .sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        self.0.dedup();
    }

    /// `text` with `***` in place of every secret.
    pub fn hide<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut text = Cow::Borrowed(text);
        for secret in &self.0 {
            if text.contains(secret.as_str()) {
                text = Cow::Owned(text.replace(secret.as_str(), HIDDEN));
            }
        }
        text
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secrets", self.0.len())
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
