//! `residuald config`: prints the effective settings.

use crate::kafka;

use crate::cli::shared::settings::ConfigArguments;
use crate::failure::Failure;

/// Print the effective settings and the source of each; secrets are hidden
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
    // Checked before printing, because the value of a misspelled setting is not recognised as a secret.
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
