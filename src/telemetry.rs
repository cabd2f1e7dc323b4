//! Logs: to standard error, as text or JSON, without secrets.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::sync::{PoisonError, RwLock};

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, Secrets, Telemetry};

/// What this process does not print. One for the process, as its log is: whoever prints need not know of it.
static SECRETS: RwLock<Option<Secrets>> = RwLock::new(None);

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
    let filter =
        EnvFilter::try_new(&telemetry.log_level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Redacted)
        .with_ansi(io::stderr().is_terminal());
    let _ = match telemetry.log_format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// Standard error without secrets. An event comes in one write.
struct Redacted;

impl Write for Redacted {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        io::stderr().write_all(hide(&text).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
