//! Prints to the terminal or to a pipe that may be closed early, as in `residuald score … | head`.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::text::escaped_lines;

/// Unwinds to [`unless_unwritten`], dropping everything on the way.
struct Unwritten(io::Error);

/// Prints a line on standard output. If that fails the verb ends here, quietly if the pipe is closed.
pub fn line(text: Arguments<'_>) {
    let mut out = io::stdout().lock();
    let written = out.write_all(safe(text).as_bytes());
    drop(out);
    if let Err(e) = written {
        // Not `panic_any`, which would print a panic message.
        resume_unwind(Box::new(Unwritten(e)));
    }
}

/// Prints a line on standard error and ignores errors: there is nowhere to report them.
pub fn error_line(text: Arguments<'_>) {
    let mut out = io::stderr().lock();
    let _ = out.write_all(safe(text).as_bytes());
}

/// The line with control characters escaped, so that data cannot steer the terminal.
fn safe(text: Arguments<'_>) -> String {
    let mut line = escaped_lines(&text.to_string()).into_owned();
    line.push('\n');
    line
}

/// Runs `verb`.
///
/// # Errors
/// The verb ended because standard output could not be written.
pub fn unless_unwritten<T>(verb: impl FnOnce() -> T) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(verb)).or_else(|panic| match panic.downcast::<Unwritten>() {
        Ok(unwritten) => Err(unwritten.0),
        Err(panic) => resume_unwind(panic),
    })
}
