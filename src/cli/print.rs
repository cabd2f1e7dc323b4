//! Text for the person at the terminal, who may have stopped reading: `residuald score … | head`.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::text::escaped_lines;

/// Unwinds to [`unless_unread`], past everything that is to be closed on the way.
struct Unread;

/// A line on standard output. If nobody reads it any more, the verb ends here, quietly.
pub fn line(text: Arguments<'_>) {
    let mut out = io::stdout().lock();
    let written = out.write_all(safe(text).as_bytes());
    drop(out);
    if written.is_err() {
        // Not `panic_any`, which would print that there was a panic.
        resume_unwind(Box::new(Unread));
    }
}

/// A line on standard error. Where nobody reads it there is nobody to tell.
pub fn error_line(text: Arguments<'_>) {
    let mut out = io::stderr().lock();
    let _ = out.write_all(safe(text).as_bytes());
}

/// A line in which nothing from outside can steer a terminal.
fn safe(text: Arguments<'_>) -> String {
    let mut line = escaped_lines(&text.to_string()).into_owned();
    line.push('\n');
    line
}

/// What `verb` gives; `None` if it ended because nobody reads its output.
pub fn unless_unread<T>(verb: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(verb)) {
        Ok(outcome) => Some(outcome),
        Err(panic) if panic.is::<Unread>() => None,
        Err(panic) => resume_unwind(panic),
    }
}
