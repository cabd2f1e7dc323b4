//! Another model and other settings without a restart: SIGHUP has both read again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crossbeam_channel::Receiver;

use crate::bundle::{self, Bundle, incompatibilities};
use crate::config::{Config, Reloaded, log_filter};
use crate::decode::Input;
use crate::memory::Room;
use crate::metrics::{Metrics, NOT_RELOADED};
use crate::pipeline::{PendingModel, Serving};
use crate::shutdown::Shutdown;
use crate::status::Status;
use crate::telemetry;

use super::model;
use super::watchdog::{self, InUse, panicked};
use crate::failure::Failure;

/// Reads the settings from where they came from.
pub type Settings = Arc<dyn Fn() -> Result<Config, Failure> + Send + Sync>;

/// For a verb that made its settings itself.
pub fn unchanging(config: &Config) -> Settings {
    let same = config.clone();
    Arc::new(move || Ok(same.clone()))
}

/// Reads settings and bundle again when it is told to.
pub struct Reloader {
    pub settings: Settings,
    /// In force, or offered last.
    pub config: Config,
    /// What the bundle in force reads.
    pub schema: bundle::ModelInput,
    pub input: Input,
    pub decoding: Room,
    pub metrics: Metrics,
    pub status: Status,
    pub pending_model: PendingModel,
    pub stop: Shutdown,
}

/// What takes over, if it is let.
struct Prepared {
    serving: Serving,
    schema: bundle::ModelInput,
    settings: Reloaded,
}

impl Reloader {
    /// One at a time; records go on being judged by the model in force.
    pub fn run(mut self, hangups: &Receiver<()>) {
        for () in hangups {
            self.reload();
        }
    }

    fn reload(&mut self) {
        tracing::info!("reading settings and bundle again");
        let _in_use = InUse::begin();
        let prepared = catch_unwind(AssertUnwindSafe(|| self.prepare()));
        let bundle = &self.config.model.bundle;
        match prepared.unwrap_or_else(|_| Err(panicked(bundle))) {
            Ok(prepared) => self.offer(prepared),
            // Nobody has refused it.
            Err(_) if self.stop.is_requested() => {}
            Err(failure) => {
                let failed = self
                    .metrics
                    .model_reloads
                    .with_label_values(&[NOT_RELOADED]);
                failed.inc();
                tracing::error!(
                    "settings and model in force stay, the new ones are refused: {}",
                    failure.message
                );
            }
        }
    }

    /// Whether the bundle reads the records that the one in force reads.
    fn accept(&self, config: &Config, bundle: &Bundle) -> Result<(), Failure> {
        let differences = incompatibilities(&self.schema, &bundle.manifest.input);
        if differences.is_empty() || config.model.allow_schema_change {
            return Ok(());
        }
        Err(Failure::data(format!(
            "bundle {} reads other records than the one in force: set model.allow_schema_change = true if that is meant\n  {}",
            config.model.bundle.display(),
            differences.join("\n  ")
        )))
    }

    fn prepare(&self) -> Result<Prepared, Failure> {
        let read = self.settings.clone();
        let settings = watchdog::settings(move || read(), &self.stop)?;
        let settings = self.config.reloaded(settings)?;
        let config = &settings.config;
        let loaded =
            model::load_configured(config, &self.stop, |bundle| self.accept(config, bundle))?;
        let schema = loaded.bundle.manifest.input.clone();
        let serving = model::serving(
            config,
            loaded,
            Some(&self.input),
            &self.decoding,
            &self.metrics,
        )?;
        Ok(Prepared {
            serving,
            schema,
            settings,
        })
    }

    fn offer(&mut self, prepared: Prepared) {
        let Prepared {
            serving,
            schema,
            settings,
        } = prepared;
        let Reloaded {
            config,
            changed,
            needs_restart,
        } = settings;
        if !changed.is_empty() {
            tracing::info!(
                settings = changed.join(", "),
                "changed settings take effect"
            );
        }
        if !needs_restart.is_empty() {
            tracing::warn!(
                settings = needs_restart.join(", "),
                "changed settings take effect at the next start only"
            );
        }
        self.status.needs_restart(needs_restart);
        let level = &config.telemetry.log_level;
        // A level that was set over HTTP stays until the setting changes.
        if *level != self.config.telemetry.log_level
            && let Ok(filter) = log_filter::parse(level)
        {
            telemetry::set_log_level(filter);
        }
        self.pending_model.offer(serving, config.output.clone());
        self.config = config;
        self.schema = schema;
    }
}
