//! Writes the log to standard error, as text or JSON and without secrets. The log level can be changed while the
//! process runs.

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::{OnceLock, PoisonError, RwLock};

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_log::{AsLog, log};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::{LogFormat, Secrets, TelemetrySettings, log_filter};
use crate::text::escaped_lines;

/// Texts that this process never prints. They are global like the log itself, so that callers need not pass them
/// around.
static SECRETS: RwLock<Option<Secrets>> = RwLock::new(None);
/// The log filter, once logging has started.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Hides these texts in logs and errors from now on.
pub fn keep(secrets: &Secrets) {
    let mut all = SECRETS.write().unwrap_or_else(PoisonError::into_inner);
    all.get_or_insert_default().extend(secrets);
}

/// Returns `text` without the secrets given to [`keep`].
pub fn hide(text: &str) -> Cow<'_, str> {
    match &*SECRETS.read().unwrap_or_else(PoisonError::into_inner) {
        Some(secrets) => secrets.hide(text),
        None => Cow::Borrowed(text),
    }
}

/// Starts logging for the process. A second call changes nothing.
pub fn init(telemetry: &TelemetrySettings) {
    let filter = log_filter::parse(&telemetry.log_level).unwrap_or_else(|_| EnvFilter::new("info"));
    let (filter, handle) = reload::Layer::new(filter);
    // Colours are off, so that an escape sequence in the log never comes from this process.
    let layer = fmt::layer().with_writer(|| Redacted).with_ansi(false);
    let layer = match telemetry.log_format {
        LogFormat::Text => layer.with_target(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    let started = tracing_subscriber::registry()
        .with(filter)
        .with(filter_fn(may_show))
        .with(layer);
    if started.try_init().is_ok() {
        let _ = FILTER.set(handle);
        log_hidden_trace();
    }
}

/// Returns whether an event may be logged. At trace level, libraries print the data that they send. It may include
/// passwords, in pieces and in hexadecimal that [`hide`] cannot recognise.
fn may_show(event: &Metadata<'_>) -> bool {
    let target = event.target();
    let ours = target == OURS || target.starts_with("residuald::");
    ours || *event.level() <= LIBRARIES
}

const OURS: &str = "residuald";
const LIBRARIES: Level = Level::DEBUG;

fn log_hidden_trace() {
    if LevelFilter::current() == LevelFilter::TRACE {
        tracing::info!(
            "trace applies to residuald only: libraries are logged up to debug, because their trace output holds passwords and tokens"
        );
    }
}

/// Returns the current filter, or `None` if logging was not started.
pub fn log_level() -> Option<String> {
    FILTER.get()?.with_current(EnvFilter::to_string).ok()
}

/// Changes the filter until the process ends.
pub fn set_log_level(filter: EnvFilter) {
    let Some(handle) = FILTER.get() else {
        return;
    };
    let (from, to) = (log_level().unwrap_or_default(), filter.to_string());
    tracing::info!(from, to, "changing the log level");
    if handle.reload(filter).is_ok() {
        // Libraries that use the `log` crate check this separate limit.
        log::set_max_level(LevelFilter::current().as_log());
        log_hidden_trace();
    }
}

/// Escapes control characters and indents all lines except the first, so that data cannot control a terminal or forge
/// an event.
fn printable(event: &str) -> String {
    let lines = event.trim_end_matches('\n').split('\n').enumerate();
    let mut text = String::with_capacity(event.len() + 2);
    for (at, line) in lines {
        if at > 0 && !line.starts_with(' ') {
            text.push_str("  ");
        }
        text.push_str(&escaped_lines(line));
        text.push('\n');
    }
    text
}

/// Standard error without secrets. Each event is one write. Writing never fails, because a closed log must not stop the
/// daemon. The subscriber would report a failure on the same standard error, which panics.
struct Redacted;

impl Write for Redacted {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let _ = io::stderr().write_all(printable(&hide(&text)).as_bytes());
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn an_event_cannot_look_like_two_or_steer_a_terminal() {
        let event = "INFO topic=\u{1b}[2Jx\n2026-01-01 ERROR forged\n  own\n";
        let shown = "INFO topic=\\u001b[2Jx\n  2026-01-01 ERROR forged\n  own\n";
        assert_eq!(printable(event), shown);
    }
}
