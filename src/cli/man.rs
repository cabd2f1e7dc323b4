//! `residuald man`: prints or writes manual pages.

use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::failure::Failure;

/// Print the manual page, or write one per verb into a folder
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald man | man -l -
  residuald man /usr/local/share/man/man1")]
pub struct Arguments {
    /// Existing folder for residuald.1, residuald-run.1 and so on
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut command = super::Arguments::command().disable_help_subcommand(true);
    // Gives each verb its full name.
    command.build();
    match &arguments.folder {
        None => {
            println!("{}", page(&manual(&command))?.trim_end_matches('\n'));
            Ok(())
        }
        Some(folder) => write(&command, folder),
    }
}

fn write(command: &Command, folder: &Path) -> Result<(), Failure> {
    let manual = manual(command);
    let file = folder.join(manual.get_filename());
    std::fs::write(&file, page(&manual)?)
        .map_err(|e| Failure::usage(format!("{}: {e}", file.display())))?;
    command
        .get_subcommands()
        .try_for_each(|verb| write(verb, folder))
}

fn manual(command: &Command) -> Man {
    Man::new(command.clone()).source(concat!("residuald ", env!("CARGO_PKG_VERSION")))
}

/// Renders the page as roff. Examples are set verbatim, because clap_mangen would justify them.
fn page(manual: &Man) -> Result<String, Failure> {
    let mut roff = Vec::new();
    manual.render(&mut roff).map_err(Failure::internal)?;
    let roff = String::from_utf8(roff).map_err(Failure::internal)?;
    Ok(roff.replace(".SH EXTRA\n", ".SH NOTES\n.nf\n"))
}
