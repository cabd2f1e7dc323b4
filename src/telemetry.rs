//! Logs: to standard error, as text or JSON, without secrets, at a level that can be changed.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::sync::{OnceLock, PoisonError, RwLock};

use tracing::level_filters::LevelFilter;
use tracing_log::{AsLog, log};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::{LogFormat, Secrets, Telemetry};

/// What this process does not print. One for the process, as its log is: whoever prints need not know of it.
static SECRETS: RwLock<Option<Secrets>> = RwLock::new(None);
/// The filter of the process's log, once there is one.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Hides these texts from all that is logged and from errors.
pub fn keep(secrets: &Secrets) {
    let mut all = SECRETS.write().unwrap_or_else(PoisonError::into_inner);
    all.get_or_insert_default().extend(secrets);
}

/// `text` without the secrets given to [`keep`].
pub fn hide(text: &str) -> Cow<'_, str> {
    match &*SECRETS.read().unwrap_or_else(PoisonError::into_inner) {
        Some(secrets) => secrets.hide(text),
        None => Cow::Borrowed(text),
    }
}

/// Starts logging for the process; a second call changes nothing.
pub fn init(telemetry: &Telemetry) {
    let filter = filter(&telemetry.log_level).unwrap_or_else(|_| EnvFilter::new("info"));
    let (filter, handle) = reload::Layer::new(filter);
    let layer = fmt::layer()
        .with_writer(|| Redacted)
        .with_ansi(io::stderr().is_terminal());
    let layer = match telemetry.log_format {
        LogFormat::Text => layer.with_target(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    let started = tracing_subscriber::registry().with(filter).with(layer);
    if started.try_init().is_ok() {
        let _ = FILTER.set(handle);
    }
}

/// A level, or levels by module with commas between them: "info,residuald::kafka=debug".
///
/// # Errors
/// What is wrong with it, in words.
pub fn filter(text: &str) -> Result<EnvFilter, String> {
    let expected = "expected error, warn, info, debug, trace or off; also per module, for instance \"info,residuald::kafka=debug\"";
    let words: Vec<&str> = text.split(',').map(str::trim).collect();
    let filter = EnvFilter::try_new(words.join(",")).map_err(|e| format!("{e}: {expected}"))?;
    // EnvFilter takes a word that is no level for a module, and then shows nothing else: "debgu" would end the log.
    let mut bare = words
        .into_iter()
        .filter(|word| !word.contains(['=', '[', ']']));
    match bare.find(|word| word.parse::<LevelFilter>().is_err() || word.is_empty()) {
        Some(word) => Err(format!("`{word}` is no level: {expected}")),
        None => Ok(filter),
    }
}

/// The filter in force; none if the process has no log.
pub fn log_level() -> Option<String> {
    FILTER.get()?.with_current(EnvFilter::to_string).ok()
}

/// Changes what is logged from now on, until the process ends.
pub fn set_log_level(filter: EnvFilter) {
    let Some(handle) = FILTER.get() else {
        return;
    };
    let (from, to) = (log_level().unwrap_or_default(), filter.to_string());
    tracing::info!(from, to, "the log level changes");
    if handle.reload(filter).is_ok() {
        // What logs by the `log` crate asks for its own limit, which is set once otherwise.
        log::set_max_level(LevelFilter::current().as_log());
    }
}

/// Standard error without secrets. An event comes in one write. It never fails: a log that nobody can read any more is no reason
/// to stop working, and the subscriber would print that it failed on the same standard error, which panics.
struct Redacted;

impl Write for Redacted {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let _ = io::stderr().write_all(hide(&text).as_bytes());
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::filter;

    #[test]
    fn a_filter_is_levels_and_modules() {
        for good in [
            "info",
            "WARN",
            "off",
            "info,residuald::kafka=debug",
            "residuald=trace",
            "info, ureq=debug",
        ] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for (bad, said) in [
            ("", "`` is no level"),
            ("debgu", "`debgu` is no level"),
            ("info,", "`` is no level"),
            ("residuald::kafka", "`residuald::kafka` is no level"),
            ("residuald=loud", "expected error, warn"),
            ("info,=,", "expected error, warn"),
        ] {
            let problem = filter(bad).unwrap_err();
            assert!(problem.contains(said), "{bad}: {problem}");
        }
    }
}
