//! Prints to the terminal, or to a pipe that may be closed early as in `residuald score … | head`.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::text::escaped_lines;

/// The payload of an unwind to [`unless_unwritten`], which drops everything on the way.
struct Unwritten(io::Error);

/// Prints a line on standard output. If that fails, the verb ends, without a message if the pipe is closed.
pub fn line(text: Arguments<'_>) {
    let mut out = io::stdout().lock();
    let written = out.write_all(safe(text).as_bytes());
    drop(out);
    if let Err(e) = written {
        // `panic_any` would print a panic message.
        resume_unwind(Box::new(Unwritten(e)));
    }
}

/// Prints a line on standard error. Errors are ignored, because they cannot be reported anywhere.
pub fn error_line(text: Arguments<'_>) {
    let mut out = io::stderr().lock();
    let _ = out.write_all(safe(text).as_bytes());
}

/// Returns the line with control characters escaped, so that data cannot control the terminal.
fn safe(text: Arguments<'_>) -> String {
    let mut line = escaped_lines(&text.to_string()).into_owned();
    line.push('\n');
    line
}

/// Runs `verb` and returns its result.
///
/// # Errors
/// Standard output could not be written, which ended the verb.
pub fn unless_unwritten<T>(verb: impl FnOnce() -> T) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(verb)).or_else(|panic| match panic.downcast::<Unwritten>() {
        Ok(unwritten) => Err(unwritten.0),
        Err(panic) => resume_unwind(panic),
    })
}
