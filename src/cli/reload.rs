//! Another model without a restart: SIGHUP reads the bundle again.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::decode::Input;
use crate::memory::Room;
use crate::metrics::{Metrics, NOT_RELOADED};
use crate::pipeline::{Next, Serving};

use super::failure::Failure;
use super::{input, model};

/// The model that the settings name, proved and warm.
pub fn load(config: &Config) -> Result<model::Loaded, Failure> {
    model::load(
        &config.model.bundle,
        &config.inference,
        config.batch.max_records,
        |_| config.threshold,
    )
}

/// With it what reads records for it. `before`: the input in force, which stays if it is a schema registry's.
pub fn serving(
    config: &Config,
    mut loaded: model::Loaded,
    before: Option<&Input>,
    decoding: &Room,
    metrics: &Metrics,
) -> Result<Serving, Failure> {
    let input = match (input::open_here(config, &loaded.bundle)?, before) {
        (Some(input), _) => input,
        (None, Some(before)) => before.clone(),
        (None, None) => input::open(config, &loaded.bundle, metrics)?,
    };
    let screenings = loaded.screenings(config.screen)?;
    Ok(Serving {
        features: loaded.bundle.features().to_vec(),
        segment: loaded.segment(),
        input,
        decoding: decoding.clone(),
        scorers: loaded.scorers,
        screenings,
        judge: loaded.judge,
        nearest: loaded.nearest,
        model: loaded.model,
        asked: config.inference.provider.as_str(),
    })
}

/// Reads the bundle again when it is told to.
pub struct Reloader {
    pub config: Config,
    pub input: Input,
    pub decoding: Room,
    pub metrics: Metrics,
    pub next: Next,
}

impl Reloader {
    /// Catches SIGHUP from this call on, which wants the context of a runtime.
    ///
    /// # Errors
    /// When the system does not let it be caught.
    pub fn on_signals(self) -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
        let mut hangup = signal(SignalKind::hangup())?;
        let reloader = Arc::new(self);
        Ok(async move {
            while hangup.recv().await.is_some() {
                let reloader = Arc::clone(&reloader);
                // One at a time; records go on being judged by the model in force.
                let _ = tokio::task::spawn_blocking(move || reloader.reload()).await;
            }
        })
    }

    fn reload(&self) {
        let bundle = self.config.model.bundle.display();
        tracing::info!(%bundle, "reading the bundle again");
        let loaded = load(&self.config).and_then(|new| {
            let before = Some(&self.input);
            serving(&self.config, new, before, &self.decoding, &self.metrics)
        });
        match loaded {
            Ok(serving) => self.next.offer(serving),
            Err(failure) => {
                let failed = self
                    .metrics
                    .model_reloads
                    .with_label_values(&[NOT_RELOADED]);
                failed.inc();
                tracing::error!(
                    "the model in force stays, the new one is refused: {}",
                    failure.message
                );
            }
        }
    }
}
