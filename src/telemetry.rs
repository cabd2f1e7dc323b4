//! Logs: to standard error, as text or JSON, without secrets, at a level that can be changed.

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

use crate::config::{LogFormat, Secrets, Telemetry, log_filter};
use crate::text::escaped_lines;

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
    let filter = log_filter::parse(&telemetry.log_level).unwrap_or_else(|_| EnvFilter::new("info"));
    let (filter, handle) = reload::Layer::new(filter);
    // Without colours: an escape sequence in the log is then never ours.
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
        say_what_is_left_out();
    }
}

/// Whether an event may be logged at all. At trace libraries print what they send, passwords among it, in pieces and as
/// hexadecimal numbers that [`hide`] cannot know.
fn may_show(event: &Metadata<'_>) -> bool {
    let target = event.target();
    let ours = target == OURS || target.starts_with("residuald::");
    ours || *event.level() <= LIBRARIES
}

const OURS: &str = "residuald";
const LIBRARIES: Level = Level::DEBUG;

fn say_what_is_left_out() {
    if LevelFilter::current() == LevelFilter::TRACE {
        tracing::info!(
            "trace is residuald's own: libraries are logged up to debug, because their trace holds passwords and tokens"
        );
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
        say_what_is_left_out();
    }
}

/// An event whose text cannot steer a terminal, nor look like another event: lines after the first are set in.
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

/// Standard error without secrets. An event comes in one write. It never fails: a log that nobody can read any more is no reason
/// to stop working, and the subscriber would print that it failed on the same standard error, which panics.
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
