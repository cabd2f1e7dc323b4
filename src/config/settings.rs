//! Reads the merged tree of settings key by key. A key that is never read is an unknown setting.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use config::{Value, ValueKind};

use crate::bundle::sha256_hex;

use super::dotted;
use super::secret::{HIDDEN, Secret, Secrets, is_secret, resolve, user_of, without_user};

/// Settings for a librdkafka client by librdkafka's names. Debug output hides the values.
#[derive(Clone, Default, PartialEq)]
pub struct ClientSettings(BTreeMap<String, String>);

impl ClientSettings {
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), value.to_owned());
    }

    /// Returns the values whose names mark them as secret.
    pub fn secrets(&self) -> Secrets {
        let mut secrets = Secrets::default();
        let hidden = self.iter().filter(|(name, _)| is_secret(name));
        hidden.for_each(|(_, value)| secrets.add(value));
        secrets
    }
}

impl fmt::Debug for ClientSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The effective value of a setting.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Effective {
    pub key: String,
    /// The value as TOML, or `"***"` for a secret.
    pub value: String,
    /// The source: `default`, the file, `the environment` or `--set`.
    pub origin: String,
    /// A hash of the value, if it is a secret.
    #[serde(skip)]
    hidden: Option<String>,
}

impl Effective {
    /// Returns a string that differs if the value differs, even for secrets.
    pub fn identity(&self) -> String {
        self.hidden.clone().unwrap_or_else(|| self.value.clone())
    }
}

/// The merged tree of settings, with the problems found while reading it.
pub struct Settings {
    tree: Value,
    /// Keys that were read, present or not.
    known: BTreeSet<String>,
    effective: Vec<Effective>,
    secrets: Secrets,
    problems: Vec<String>,
}

impl Settings {
    pub fn new(tree: Value) -> Settings {
        Settings {
            tree,
            known: BTreeSet::new(),
            effective: Vec::new(),
            secrets: Secrets::default(),
            problems: Vec::new(),
        }
    }

    pub fn problem(&mut self, problem: String) {
        self.problems.push(problem);
    }

    /// Looks up a dotted key, marks it as known and records its effective value.
    fn get(&mut self, key: &str) -> Option<Value> {
        let value = self.find(key)?;
        if !matches!(value.kind, ValueKind::Table(_)) {
            self.show(key, literal(&value), origin(&value));
        }
        Some(value)
    }

    fn find(&mut self, key: &str) -> Option<Value> {
        self.known.insert(key.to_owned());
        let value = key
            .split('.')
            .try_fold(&self.tree, |at, part| match &at.kind {
                ValueKind::Table(table) => table.get(part),
                _ => None,
            })?;
        Some(value.clone())
    }

    /// Adds the user and password of a URL to the secrets.
    fn keep_user(&mut self, text: &str) {
        if let Some(user) = user_of(text) {
            self.secrets.add(user);
            let password = user.split_once(':').map(|(_, password)| password);
            self.secrets.add(password.unwrap_or_default());
        }
    }

    fn show(&mut self, key: &str, value: String, origin: String) {
        self.effective.push(Effective {
            key: key.to_owned(),
            value,
            origin,
            hidden: None,
        });
    }

    /// Like [`Settings::show`], but for a secret, whose value is hidden.
    fn show_hidden(&mut self, key: &str, secret: &str, origin: String) {
        self.show(key, format!("\"{HIDDEN}\""), origin);
        self.remember(secret);
    }

    /// Stores a hash of the secret that was shown last.
    fn remember(&mut self, secret: &str) {
        if let Some(shown) = self.effective.last_mut() {
            shown.hidden = Some(sha256_hex(secret.as_bytes()));
        }
    }

    fn wrong(&mut self, key: &str, value: &Value, expected: &str) {
        let origin = match value.origin() {
            Some(origin) => format!(" ({origin})"),
            None => String::new(),
        };
        self.problem(format!(
            "{key} = {}: expected {expected}{origin}",
            literal(value)
        ));
    }

    /// Returns a string setting that has a default.
    pub fn text(&mut self, key: &str) -> String {
        self.required_text(key, "set it to a string")
    }

    pub fn required_text(&mut self, key: &str, what: &str) -> String {
        let text = self.optional_text(key);
        text.unwrap_or_else(|| {
            self.problem(format!("{key} is not set: {what}"));
            String::new()
        })
    }

    /// Returns the base URL of an HTTP service without a trailing slash. The messages use `example`, and `credentials` to tell
    /// where credentials belong.
    pub fn url(&mut self, key: &str, example: &str, credentials: &str) -> Option<String> {
        let url = self.optional_text(key)?;
        let rest = url
            .strip_prefix("http://")
            .or_else(|| url.strip_prefix("https://"));
        match rest {
            None | Some("") => self.problem(format!(
                "{key}: expected http://… or https://…, for instance \"{example}\""
            )),
            // The text before an @ may be a password, so the value is not quoted.
            Some(rest) if rest.contains(['@', '?', '#']) => self.problem(format!(
                "{key}: the URL must not contain credentials, ? or #: {credentials}"
            )),
            _ => {}
        }
        Some(url.trim_end_matches('/').to_owned())
    }

    /// Returns a string setting. An empty string counts as not set.
    pub fn optional_text(&mut self, key: &str) -> Option<String> {
        let value = self.get(key)?;
        match value.clone().into_string() {
            Ok(text) => {
                self.keep_user(&text);
                Some(text).filter(|text| !text.is_empty())
            }
            Err(_) => {
                self.wrong(key, &value, "a string");
                Some(String::new())
            }
        }
    }

    /// Returns a secret of visible ASCII characters, given as a string, `{ env = … }` or `{ file = … }`. It is never shown. An
    /// empty secret is an error, not the same as an unset one.
    pub fn secret(&mut self, key: &str) -> Option<Secret> {
        let value = self.find(key)?;
        let resolved = resolve(&value);
        let text = resolved.as_ref().map_or("", |(text, _)| text);
        self.show_hidden(key, text, origin(&value));
        match resolved {
            Ok((text, _)) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic()) => {
                self.secrets.add(&text);
                return Some(Secret::new(text));
            }
            Ok((text, _)) if text.is_empty() => self.problem(format!(
                "{key} is empty: give a value or remove the setting"
            )),
            Ok(_) => self.problem(format!(
                "{key} must have only visible ASCII characters and no spaces"
            )),
            Err(problem) => self.problem(format!("{key}: {problem}")),
        }
        None
    }

    /// Returns a list of strings: one string, a comma-separated list or an array. It must not be empty.
    pub fn texts(&mut self, key: &str, what: &str) -> Vec<String> {
        let Some(value) = self.get(key) else {
            self.problem(format!("{key} is not set: {what}"));
            return Vec::new();
        };
        let texts: Option<Vec<String>> = match value.kind.clone() {
            ValueKind::Array(items) => items.into_iter().map(|i| i.into_string().ok()).collect(),
            _ => value.clone().into_string().ok().map(|text| {
                let parts = text.split(',').map(str::trim);
                parts.filter(|p| !p.is_empty()).map(str::to_owned).collect()
            }),
        };
        match texts {
            Some(texts) if !texts.is_empty() => texts,
            _ => {
                self.wrong(key, &value, "one or more names");
                Vec::new()
            }
        }
    }

    pub fn boolean(&mut self, key: &str) -> bool {
        let Some(value) = self.get(key) else {
            return false;
        };
        value.clone().into_bool().unwrap_or_else(|_| {
            self.wrong(key, &value, "true or false");
            false
        })
    }

    pub fn integer(&mut self, key: &str, least: usize, most: usize) -> usize {
        self.optional_integer(key, least, most).unwrap_or(least)
    }

    pub fn optional_integer(&mut self, key: &str, least: usize, most: usize) -> Option<usize> {
        let value = self.get(key)?;
        let integer = match value.kind {
            ValueKind::Float(_) | ValueKind::Boolean(_) => None,
            _ => value.clone().into_int().ok(),
        };
        let number = integer.and_then(|i| usize::try_from(i).ok());
        let fits = number.filter(|number| (least..=most).contains(number));
        if fits.is_none() {
            self.wrong(
                key,
                &value,
                &format!("a whole number from {least} to {most}"),
            );
        }
        fits
    }

    /// Returns a list of integers: one number, a comma-separated list or an array. It must not be empty.
    pub fn integers(&mut self, key: &str, least: i32, most: i32) -> Vec<i32> {
        let texts = self.texts(key, "one or more whole numbers");
        let numbers = texts.iter().map(|text| text.parse().ok());
        let numbers: Option<Vec<i32>> = numbers
            .map(|n| n.filter(|n| (least..=most).contains(n)))
            .collect();
        numbers.unwrap_or_else(|| {
            let found = texts.join(", ");
            self.problem(format!(
                "{key} = {found}: expected whole numbers from {least} to {most}"
            ));
            Vec::new()
        })
    }

    pub fn number(&mut self, key: &str, range: &str, fits: impl Fn(f64) -> bool) -> Option<f64> {
        let value = self.get(key)?;
        match value.clone().into_float() {
            Ok(number) if fits(number) => Some(number),
            _ => {
                self.wrong(key, &value, &format!("a number {range}"));
                None
            }
        }
    }

    /// Returns a duration such as `5ms`, `30s` or `1m 30s` that has a default.
    pub fn duration(&mut self, key: &str) -> Duration {
        self.optional_duration(key).unwrap_or_default()
    }

    pub fn optional_duration(&mut self, key: &str) -> Option<Duration> {
        let value = self.get(key)?;
        let parsed = value
            .clone()
            .into_string()
            .ok()
            .and_then(|text| text.parse::<jiff::SignedDuration>().ok())
            .and_then(|duration| Duration::try_from(duration).ok());
        if parsed.is_none() {
            self.wrong(key, &value, "a duration such as \"5ms\" or \"30s\"");
        }
        parsed
    }

    pub fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let value = self.get(key)?;
        let text = value.clone().into_string().unwrap_or_default();
        let chosen = choices.iter().find(|(name, _)| *name == text);
        if chosen.is_none() {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            self.wrong(key, &value, &format!("one of {}", names.join(", ")));
        }
        chosen.map(|(_, choice)| *choice)
    }

    /// Returns the librdkafka settings under `key`, with secrets resolved.
    pub fn client_settings(&mut self, key: &str, reserved: &[&str]) -> ClientSettings {
        let mut settings = ClientSettings::default();
        let table = match self.find(key).map(|value| value.kind) {
            Some(ValueKind::Table(table)) => table,
            Some(_) => {
                self.problem(format!("{key}: expected a table of librdkafka settings"));
                return settings;
            }
            None => return settings,
        };
        self.known
            .extend(table.keys().map(|name| format!("{key}.{name}")));
        for (name, value) in dotted::entries(table) {
            if reserved.contains(&name.as_str()) {
                self.problem(format!(
                    "{key}: `{name}` is set by residuald, because delivery depends on it: remove it"
                ));
                continue;
            }
            match resolve(&value) {
                Ok((text, secret)) => {
                    let shown_key = format!("{key}.\"{name}\"");
                    self.effective.retain(|e| e.key != shown_key);
                    if secret || is_secret(&name) {
                        self.secrets.add(&text);
                        self.show_hidden(&shown_key, &text, origin(&value));
                    } else {
                        self.keep_user(&text);
                        self.show(&shown_key, literal(&value), origin(&value));
                        if user_of(&text).is_some() {
                            self.remember(&text);
                        }
                    }
                    if let Some(problem) = unreadable(&name, &text) {
                        self.problem(format!("{key}.\"{name}\": {problem}"));
                    }
                    settings.set(&name, &text);
                }
                Err(problem) => self.problem(format!("{key}.\"{name}\": {problem}")),
            }
        }
        settings
    }

    /// Returns the effective settings, or all problems, including unknown keys.
    pub fn finish(mut self) -> Result<(Vec<Effective>, Secrets), Vec<String>> {
        let mut leaves = Vec::new();
        collect_leaves("", &self.tree, &self.known, &mut leaves);
        for leaf in leaves {
            let nearest = self
                .known
                .iter()
                .map(|known| (strsim::damerau_levenshtein(known, &leaf), known))
                .min();
            let hint = match nearest {
                Some((distance, known)) if distance <= 2 + leaf.len() / 4 => {
                    format!(", did you mean `{known}`?")
                }
                _ => ": `residuald config` lists all settings".to_owned(),
            };
            self.problems
                .push(format!("unknown setting `{leaf}`{hint}"));
        }
        if self.problems.is_empty() {
            Ok((self.effective, self.secrets))
        } else {
            let hidden = |problem: &String| self.secrets.hide(problem).into_owned();
            Err(self.problems.iter().map(hidden).collect())
        }
    }
}

/// Collects the dotted keys of the tree that were never read.
fn collect_leaves(prefix: &str, value: &Value, known: &BTreeSet<String>, leaves: &mut Vec<String>) {
    if !prefix.is_empty() && known.contains(prefix) {
        return;
    }
    match &value.kind {
        ValueKind::Table(table) => {
            for (name, child) in table {
                let key = if prefix.is_empty() {
                    name.clone()
                } else {
                    format!("{prefix}.{name}")
                };
                collect_leaves(&key, child, known, leaves);
            }
        }
        _ => leaves.push(prefix.to_owned()),
    }
    leaves.sort();
}

pub(super) const ENVIRONMENT: &str = "the environment";

fn origin(value: &Value) -> String {
    origin_of(value).unwrap_or("default").to_owned()
}

/// Returns the source of a value. A table such as `{ file = … }` has no origin itself, but its values do.
pub(super) fn origin_of(value: &Value) -> Option<&str> {
    match &value.kind {
        ValueKind::Table(table) => table.values().find_map(origin_of),
        _ => value.origin(),
    }
}

/// Sets the origin of a value and of all values in it.
pub fn set_origin(value: &mut Value, origin: &str) {
    let origin = origin.to_owned();
    let mut kind = value.kind.clone();
    if let ValueKind::Table(table) = &mut kind {
        table
            .values_mut()
            .for_each(|child| set_origin(child, &origin));
    }
    *value = Value::new(Some(&origin), kind);
}

/// Returns why a file that librdkafka reads at the start cannot be read, because librdkafka's own errors do not tell.
fn unreadable(name: &str, path: &str) -> Option<String> {
    const FILES: [&str; 7] = [
        "https.ca.location",
        "sasl.kerberos.keytab",
        "ssl.ca.location",
        "ssl.certificate.location",
        "ssl.key.location",
        "ssl.keystore.location",
        "ssl.crl.location",
    ];
    // The value `probe` makes librdkafka look for the system's CAs.
    if !FILES.contains(&name) || path == "probe" {
        return None;
    }
    let opened = std::fs::File::open(path);
    opened.err().map(|e| format!("{path}: {e}"))
}

/// Formats a value in TOML syntax.
fn literal(value: &Value) -> String {
    match &value.kind {
        ValueKind::String(text) => format!("{:?}", without_user(text)),
        ValueKind::Array(items) => {
            let items: Vec<String> = items.iter().map(literal).collect();
            format!("[{}]", items.join(", "))
        }
        _ => value.to_string(),
    }
}
