//! Reloads the model and the settings on SIGHUP, without a restart.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crossbeam_channel::Receiver;

use crate::bundle::{self, Bundle, incompatibilities};
use crate::config::{Config, Reloaded, log_filter};
use crate::decode::RecordFormat;
use crate::memory::Room;
use crate::metrics::{Metrics, NOT_RELOADED};
use crate::pipeline::{PendingModel, Serving};
use crate::shutdown::Shutdown;
use crate::status::Status;
use crate::telemetry;

use super::model;
use super::watchdog::{self, InUse, panicked};
use crate::failure::Failure;

/// Reads the settings again from their sources.
pub type Settings = Arc<dyn Fn() -> Result<Config, Failure> + Send + Sync>;

/// Returns settings that never change, for a verb that builds its own settings.
pub fn unchanging(config: &Config) -> Settings {
    let same = config.clone();
    Arc::new(move || Ok(same.clone()))
}

/// Reloads the settings and the bundle on request.
pub struct Reloader {
    pub settings: Settings,
    /// The current settings, or the last ones offered to the pipeline.
    pub config: Config,
    /// The input schema of the current bundle.
    pub schema: bundle::ModelInput,
    pub input: RecordFormat,
    pub decoding: Room,
    pub metrics: Metrics,
    pub status: Status,
    pub pending_model: PendingModel,
    pub stop: Shutdown,
}

/// A checked model with its settings, which takes over if the pipeline accepts it.
struct Prepared {
    serving: Serving,
    schema: bundle::ModelInput,
    settings: Reloaded,
}

impl Reloader {
    /// Handles one reload at a time. Meanwhile the current model keeps judging records.
    pub fn run(mut self, hangups: &Receiver<()>) {
        for () in hangups {
            self.reload();
        }
    }

    fn reload(&mut self) {
        tracing::info!("reloading settings and bundle");
        let _in_use = InUse::begin();
        let prepared = catch_unwind(AssertUnwindSafe(|| self.prepare()));
        let bundle = &self.config.model.bundle;
        match prepared.unwrap_or_else(|_| Err(panicked(bundle))) {
            Ok(prepared) => self.offer(prepared),
            // The reload was stopped, not refused.
            Err(_) if self.stop.is_requested() => {}
            Err(failure) => {
                let failed = self
                    .metrics
                    .model_reloads
                    .with_label_values(&[NOT_RELOADED]);
                failed.inc();
                tracing::error!(
                    "the reload failed, and the old settings and model stay in use: {}",
                    failure.message
                );
            }
        }
    }

    /// Checks that the bundle reads the same records as the current one.
    fn accept(&self, config: &Config, bundle: &Bundle) -> Result<(), Failure> {
        let differences = incompatibilities(&self.schema, &bundle.manifest.input);
        if differences.is_empty() || config.model.allow_schema_change {
            return Ok(());
        }
        Err(Failure::data(format!(
            "bundle {} does not read the same records as the current bundle; if this is intended, set model.allow_schema_change = true\n  {}",
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
                "changed settings take effect only after a restart"
            );
        }
        self.status.needs_restart(needs_restart);
        let level = &config.telemetry.log_level;
        // The level is set only if the setting changed, so that a level set over HTTP stays.
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
