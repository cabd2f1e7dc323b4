//! The model in force, and how another one takes its place.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::bundle::Feature;
use crate::config;
use crate::decode::{Input, SegmentReader};
use crate::memory::Room;
use crate::message::Model;
use crate::metrics::Metrics;
use crate::onnx::{Nearest, Scorer};
use crate::status::{InForce, Status};
use crate::verdict::Judge;

use super::screening::Screening;

/// A model that has proved itself, warm, and what reads records for it.
pub struct Serving {
    pub features: Vec<Feature>,
    /// Where the segments of records are, if it judges by them.
    pub segment: Option<SegmentReader>,
    pub input: Input,
    /// Where pictures are decoded, the same for every model.
    pub decoding: Room,
    /// One a worker.
    pub scorers: Vec<Scorer>,
    /// One a worker, or none at all.
    pub screenings: Vec<Screening>,
    pub judge: Judge,
    pub nearest: Option<Nearest>,
    pub model: Model,
    /// The provider that was asked for.
    pub asked: &'static str,
}

impl Serving {
    pub fn provider(&self) -> &'static str {
        self.scorers[0].provider.as_str()
    }

    /// What HTTP says of it; `bounds` are those of the score's histogram.
    pub fn in_force(&self, bounds: &[f64]) -> InForce {
        InForce {
            model: self.model.clone(),
            provider: self.provider(),
            threshold: self.judge.threshold,
            segments: self.judge.segments(),
            normal: self.judge.normal_shares(bounds),
            reader: match &self.input {
                Input::Pictures(reader) => Some((reader.clone(), self.decoding.clone())),
                _ => None,
            },
        }
    }

    /// Tells metrics and status that it judges from now on.
    pub fn announce(&self, metrics: &Metrics, status: &Status) {
        let (model, provider) = (&self.model, self.provider());
        metrics.threshold.set(f64::from(self.judge.threshold));
        let expected = self.judge.expected_anomaly_ratio();
        metrics.expected_anomaly_ratio.set(expected);
        metrics.score_drift_ratio.set(1.0);
        let fallback = i64::from(provider != self.asked);
        metrics.provider_fallback.set(fallback);
        metrics.model_info.reset();
        metrics
            .model_info
            .with_label_values(&[&model.name, &model.version, &model.sha256, provider])
            .set(1.0);
        status.serves(self.in_force(&metrics.score_buckets().0));
    }
}

/// The model that is to take over. The reloader offers it; the intake sees it and drains.
#[derive(Clone, Default)]
pub struct PendingModel(Arc<Offered>);

#[derive(Default)]
struct Offered {
    /// Looked at for each record, which a lock is too dear for.
    is_there: AtomicBool,
    serving: Mutex<Option<(Serving, config::Output)>>,
}

impl PendingModel {
    /// With what is said of its verdicts. The newest counts, if one that was offered before is still waiting.
    pub fn offer(&self, serving: Serving, output: config::Output) {
        *self.lock() = Some((serving, output));
        self.0.is_there.store(true, Ordering::Release);
    }

    pub fn is_there(&self) -> bool {
        self.0.is_there.load(Ordering::Acquire)
    }

    pub fn take(&self) -> Option<(Serving, config::Output)> {
        self.0.is_there.store(false, Ordering::Release);
        self.lock().take()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Serving, config::Output)>> {
        // It is whole or not there, whoever panicked.
        let serving = self.0.serving.lock();
        serving.unwrap_or_else(PoisonError::into_inner)
    }
}
