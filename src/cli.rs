//! The command line. Each verb is a file or folder. Code that several verbs need is in `shared`.

/// Replaces the standard macro in all verbs, because that one panics when nothing reads standard output any more.
macro_rules! println {
    () => { $crate::cli::shared::print::line(format_args!("")) };
    ($($text:tt)+) => { $crate::cli::shared::print::line(format_args!($($text)+)) };
}

/// The same for standard error.
macro_rules! eprintln {
    ($($text:tt)+) => { $crate::cli::shared::print::error_line(format_args!($($text)+)) };
}

mod backtest;
mod bench;
mod calibrate;
mod check;
mod completions;
mod config;
mod dead_letters;
mod demo;
mod denoise;
mod generate;
mod impute;
mod init;
mod inpaint;
mod man;
mod produce;
mod profile;
mod rehearse;
mod run;
mod score;
mod shared;
mod status;
mod translate;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::daemon::watchdog;
use crate::failure::{Failure, USAGE};
use crate::telemetry;
use shared::print;

/// Scores Kafka records by how badly a diffusion model reconstructs them, and publishes the anomalies with the reason.
#[derive(Parser)]
#[command(name = "residuald", version, max_term_width = 110, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 rehearsal failed, 64 usage, 65 bad data or bundle, 69 Kafka unreachable, 70 internal, 78 config.
Try it: residuald demo --records 5000";

#[derive(Subcommand)]
enum Verb {
    Init(init::Arguments),
    Run(run::Arguments),
    Demo(demo::Arguments),
    Check(check::Arguments),
    Config(config::Arguments),
    Score(score::Arguments),
    Backtest(backtest::Arguments),
    Calibrate(calibrate::Arguments),
    Bench(bench::Arguments),
    Status(status::Arguments),
    Generate(generate::Arguments),
    Impute(impute::Arguments),
    Denoise(denoise::Arguments),
    Inpaint(inpaint::Arguments),
    Translate(translate::Arguments),
    Produce(produce::Arguments),
    Profile(profile::Arguments),
    Rehearse(rehearse::Arguments),
    DeadLetters(dead_letters::Arguments),
    Completions(completions::Arguments),
    Man(man::Arguments),
}

/// Every verb with its arguments, for documentation and tests.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Parses the arguments, runs the verb, and prints the error if it fails.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{}", telemetry::hide(&panic.to_string()));
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            eprintln!("{trace}");
        }
    }));
    let verb = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments.verb,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() {
                ExitCode::from(USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let ended =
        print::unless_unwritten(|| dispatch(verb)).unwrap_or_else(|e| Err(Failure::output(e)));
    // The last line may still be buffered: flush it, so that a full disk is an error here.
    let flushed = ended.and_then(|()| std::io::stdout().flush().map_err(Failure::output));
    let code = match flushed {
        Ok(()) => 0,
        Err(failure) if failure.is_unread() => 0,
        Err(failure) => {
            let kind = if failure.code == 0 { "" } else { "error: " };
            eprintln!("{kind}{}", telemetry::hide(&failure.message));
            failure.code
        }
    };
    if watchdog::is_at_work() {
        // A normal exit would unload ONNX Runtime while a thread still uses it.
        let _ = std::io::stdout().flush();
        signal_hook::low_level::exit(code.into());
    }
    ExitCode::from(code)
}

fn dispatch(verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Init(arguments) => init::run(&arguments),
        Verb::Run(arguments) => run::run(&arguments),
        Verb::Demo(arguments) => demo::run(&arguments),
        Verb::Check(arguments) => check::run(&arguments),
        Verb::Config(arguments) => config::run(&arguments),
        Verb::Score(arguments) => score::run(&arguments),
        Verb::Backtest(arguments) => backtest::run(&arguments),
        Verb::Calibrate(arguments) => calibrate::run(&arguments),
        Verb::Bench(arguments) => bench::run(&arguments),
        Verb::Status(arguments) => status::run(&arguments),
        Verb::Generate(arguments) => generate::run(&arguments),
        Verb::Impute(arguments) => impute::run(&arguments),
        Verb::Denoise(arguments) => denoise::run(&arguments),
        Verb::Inpaint(arguments) => inpaint::run(&arguments),
        Verb::Translate(arguments) => translate::run(&arguments),
        Verb::Produce(arguments) => produce::run(&arguments),
        Verb::Profile(arguments) => profile::run(&arguments),
        Verb::Rehearse(arguments) => rehearse::run(&arguments),
        Verb::DeadLetters(arguments) => dead_letters::run(&arguments),
        Verb::Completions(arguments) => completions::run(&arguments),
        Verb::Man(arguments) => man::run(&arguments),
    }
}
