//! The arguments that say where settings come from.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::failure::Failure;
use crate::telemetry;

const DEFAULT_FILE: &str = "residuald.toml";

/// Where settings come from.
#[derive(Clone, clap::Args)]
pub struct ConfigArguments {
    /// Settings file (TOML) [default: ./residuald.toml, if it exists]
    #[arg(short, long, value_name = "FILE", env = "RESIDUALD_CONFIG")]
    config: Option<PathBuf>,
    /// One setting, which overrides file and environment; may be given several times
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArguments {
    /// Only this file and the environment.
    pub fn file(path: PathBuf) -> ConfigArguments {
        ConfigArguments {
            config: Some(path),
            set: Vec::new(),
        }
    }

    pub fn load(&self) -> Result<Config, Failure> {
        let file = settings_file(self.config.as_deref());
        // Skips variables that are not UTF-8: they are not ours.
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let config = Config::load(file.as_deref(), variables, &self.set)?;
        telemetry::keep(&config.secrets);
        Ok(config)
    }
}

/// The named file, or residuald.toml in the current folder if it exists.
pub fn settings_file(named: Option<&Path>) -> Option<PathBuf> {
    let default = || {
        let default = Path::new(DEFAULT_FILE);
        default.exists().then_some(default)
    };
    named.or_else(default).map(Path::to_owned)
}
