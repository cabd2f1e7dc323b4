//! The `residuald` program. Arguments -> config -> telemetry -> verb -> exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    residuald::cli::main(std::env::args_os())
}
