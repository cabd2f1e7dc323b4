//! `residuald run`: runs the daemon.

use std::sync::Arc;

use crate::shutdown::Shutdown;
use crate::telemetry;

use crate::cli::shared::settings::ConfigArguments;
use crate::daemon;
use crate::failure::Failure;

/// Consume, score and publish until SIGTERM or Ctrl-C, then drain; SIGHUP reloads settings and bundle
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald run --config residuald.toml
  residuald run --set kafka.brokers=kafka:9092 --set kafka.topics=payments --set model.bundle=models/payments
To see more in the log while it runs:
  curl -X PUT -d info,residuald=debug http://127.0.0.1:9464/log-level")]
pub struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let config = arguments.config.load()?;
    telemetry::init(&config.telemetry);
    let shutdown = Shutdown::default();
    let source = arguments.config.clone();
    let settings = Arc::new(move || source.load());
    daemon::start(config, settings, &shutdown)?.wait()
}
