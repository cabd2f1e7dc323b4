//! `residuald config`: the settings in force.

use crate::kafka;

use crate::cli::shared::settings::ConfigArguments;
use crate::failure::Failure;

/// Print the settings in force, where each came from, secrets hidden
#[derive(clap::Args)]
#[command(
    after_help = "Example: residuald config --set kafka.topics=payments --set model.bundle=models/payments"
)]
pub struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// One JSON array instead of TOML
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let config = arguments.config.load()?;
    // A misspelled name does not say that its value is a secret.
    kafka::check_settings(&config.kafka)?;
    let mut settings = config.effective;
    settings.sort_by(|a, b| a.key.cmp(&b.key));
    if arguments.json {
        println!("{}", serde_json::json!(settings));
        return Ok(());
    }
    for setting in settings {
        println!("{} = {}  # {}", setting.key, setting.value, setting.origin);
    }
    Ok(())
}
