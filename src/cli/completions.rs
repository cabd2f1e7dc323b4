//! `residuald completions`: prints a completion script for a shell.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::failure::Failure;

/// Print a completion script for a shell
#[derive(clap::Args)]
#[command(after_help = "Example: residuald completions bash > /etc/bash_completion.d/residuald")]
pub struct Arguments {
    shell: Shell,
}

#[allow(
    clippy::unnecessary_wraps,
    reason = "every verb has the same signature"
)]
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut command = super::Arguments::command();
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "residuald", &mut script);
    println!("{}", String::from_utf8_lossy(&script).trim_end());
    Ok(())
}
