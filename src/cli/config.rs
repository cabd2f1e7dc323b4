//! `residuald config`: prints the settings in force.

use crate::kafka;

use crate::cli::shared::settings::ConfigArguments;
use crate::failure::Failure;

/// Print the settings in force and where each came from; secrets are hidden
#[derive(clap::Args)]
#[command(
    after_help = "Example: residuald config --set kafka.topics=payments --set model.bundle=models/payments"
)]
pub struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Print one JSON array instead of TOML
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let config = arguments.config.load()?;
    // Before printing: the value under a misspelled name is not recognised as a secret.
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
