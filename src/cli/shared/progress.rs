//! Progress bars on standard error, and stopping on Ctrl-C.

use indicatif::{ProgressBar, ProgressStyle};

use super::print;
use crate::dataset::{Dataset, Unit};
use crate::failure::Failure;
use crate::shutdown::Shutdown;

const TIMES: &str = "{elapsed}, {eta} left";

/// Creates a progress bar for reading a file.
pub fn of_file(data: &Dataset, hidden: bool) -> ProgressBar {
    let progress = data.progress();
    let amount = match progress.unit {
        Unit::Bytes => "{bytes}/{total_bytes}",
        Unit::Rows => "{human_pos}/{human_len} rows",
    };
    bar(
        progress.total,
        &format!("{{bar:40}} {amount} {TIMES} {{msg}}"),
        hidden,
    )
}

/// Creates a progress bar for the offsets of a range. The total is set later.
pub fn of_range(what: &'static str, hidden: bool) -> ProgressBar {
    let template = format!("{{msg}} {{bar:40}} {{human_pos}}/{{human_len}} {TIMES}");
    bar(0, &template, hidden).with_message(what)
}

/// Clears the bar of a file that was read, and says on standard error what was guessed or changed on the way.
pub fn end(bar: &ProgressBar, data: &Dataset) {
    bar.finish_and_clear();
    for note in data.notes() {
        print::error_line(format_args!("{note}"));
    }
}

pub fn of_images(images: usize, hidden: bool) -> ProgressBar {
    of_count(images as u64, "images", hidden)
}

/// Creates a progress bar for the steps of images, whose number may be set later. Its message stands before the number of steps.
pub fn of_steps(steps: u64, hidden: bool) -> ProgressBar {
    let template = format!("{{bar:40}} {{msg}}{{human_pos}}/{{human_len}} steps {TIMES}");
    bar(steps, &template, hidden)
}

/// Creates a progress bar for a known number of things.
pub fn of_count(count: u64, things: &str, hidden: bool) -> ProgressBar {
    let template = format!("{{bar:40}} {{human_pos}}/{{human_len}} {things} {TIMES}");
    bar(count, &template, hidden)
}

/// Creates a spinner for work without a known end.
pub fn spinner(template: &str, hidden: bool) -> ProgressBar {
    match hidden {
        true => ProgressBar::hidden(),
        false => ProgressBar::new_spinner().with_style(style(template)),
    }
}

fn bar(total: u64, template: &str, hidden: bool) -> ProgressBar {
    match hidden {
        true => ProgressBar::hidden(),
        false => ProgressBar::new(total).with_style(style(template)),
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a valid template")
}

/// Makes Ctrl-C and SIGTERM end the work once in-flight records are done, for verbs without HTTP.
pub fn stop_on_ctrl_c(stop: &Shutdown) -> Result<(), Failure> {
    stop.on_signals().map_err(Failure::internal)
}
