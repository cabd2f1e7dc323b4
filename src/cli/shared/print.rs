//! Text for the person at the terminal, who may have stopped reading: `residuald score … | head`.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::text::escaped_lines;

/// Unwinds to [`unless_unwritten`], past everything that is to be closed on the way.
struct Unwritten(io::Error);

/// A line on standard output. If it cannot be written, the verb ends here: quietly if nobody reads it any more.
pub fn line(text: Arguments<'_>) {
    let mut out = io::stdout().lock();
    let written = out.write_all(safe(text).as_bytes());
    drop(out);
    if let Err(e) = written {
        // Not `panic_any`, which would print that there was a panic.
        resume_unwind(Box::new(Unwritten(e)));
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

/// What `verb` gives.
///
/// # Errors
/// It ended because standard output could not be written.
pub fn unless_unwritten<T>(verb: impl FnOnce() -> T) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(verb)).or_else(|panic| match panic.downcast::<Unwritten>() {
        Ok(unwritten) => Err(unwritten.0),
        Err(panic) => resume_unwind(panic),
    })
}
