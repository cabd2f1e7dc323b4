//! Arguments that select the sources of the settings.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::failure::Failure;
use crate::telemetry;

const DEFAULT_FILE: &str = "residuald.toml";

/// The settings file and `--set` flags of a verb.
#[derive(Clone, clap::Args)]
pub struct ConfigArguments {
    /// Settings file (TOML) [default: ./residuald.toml, if it exists]
    #[arg(short, long, value_name = "FILE", env = "RESIDUALD_CONFIG")]
    config: Option<PathBuf>,
    /// One setting, which overrides the file and the environment; may be given several times
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArguments {
    /// Returns arguments with this file and no flags.
    pub fn file(path: PathBuf) -> ConfigArguments {
        ConfigArguments {
            config: Some(path),
            set: Vec::new(),
        }
    }

    pub fn load(&self) -> Result<Config, Failure> {
        let file = settings_file(self.config.as_deref());
        // Variables that are not UTF-8 cannot be settings, so they are skipped.
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let config = Config::load(file.as_deref(), variables, &self.set)?;
        telemetry::keep(&config.secrets);
        Ok(config)
    }
}

/// Returns the given file, or residuald.toml in the current folder if it exists.
pub fn settings_file(given: Option<&Path>) -> Option<PathBuf> {
    let default = || {
        let default = Path::new(DEFAULT_FILE);
        default.exists().then_some(default)
    };
    given.or_else(default).map(Path::to_owned)
}
