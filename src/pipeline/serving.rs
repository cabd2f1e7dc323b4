//! The current model, and how another model replaces it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::bundle::Feature;
use crate::config;
use crate::decode::{RecordFormat, SegmentReader};
use crate::memory::Room;
use crate::message::ModelId;
use crate::metrics::Metrics;
use crate::onnx::{Imputer, Nearest, Scorer};
use crate::status::{InForce, Status};
use crate::verdict::Judge;

use super::image_work::ImageWork;
use super::screening::Screening;

/// A proved and warmed-up model, with the parts that read records for it.
pub struct Serving {
    pub features: Vec<Feature>,
    /// Reads the segment of a record, if the bundle is calibrated by segment.
    pub segment: Option<SegmentReader>,
    pub input: RecordFormat,
    /// The memory for decoding images, shared by all models.
    pub decoding: Room,
    /// One scorer per worker.
    pub scorers: Vec<Scorer>,
    /// One screening per worker, or empty if the screen is off.
    pub screenings: Vec<Screening>,
    /// One imputer per worker, or empty if records are not restored.
    pub imputers: Vec<Imputer>,
    /// One model per worker that works on whole images, or empty if none does.
    pub image_work: Vec<ImageWork>,
    /// How long a worker takes to fill in one record, or to run such a model once.
    pub slow_unit: Duration,
    pub judge: Judge,
    pub nearest: Option<Nearest>,
    pub model: ModelId,
    /// The execution provider that the settings request.
    pub asked: &'static str,
}

impl Serving {
    pub fn provider(&self) -> &'static str {
        self.scorers[0].provider.as_str()
    }

    /// Returns the facts about the model that HTTP shows. `bounds` are the histogram buckets of the score.
    pub fn in_force(&self, bounds: &[f64]) -> InForce {
        InForce {
            model: self.model.clone(),
            provider: self.provider(),
            threshold: self.judge.threshold,
            segments: self.judge.segments(),
            normal: self.judge.normal_shares(bounds),
            reader: match &self.input {
                RecordFormat::Images(reader) => Some((reader.clone(), self.decoding.clone())),
                _ => None,
            },
        }
    }

    /// Updates metrics and status to show that this model judges from now on.
    pub fn announce(&self, metrics: &Metrics, status: &Status) {
        let (model, provider) = (&self.model, self.provider());
        metrics.threshold.set(f64::from(self.judge.threshold));
        let expected = self.judge.expected_anomaly_ratio();
        metrics.expected_anomaly_ratio.set(expected);
        metrics.score_drift_ratio.set(1.0);
        let fallback = i64::from(provider != self.asked);
        metrics.provider_fallback.set(fallback);
        metrics.restored_values.reset();
        metrics.model_info.reset();
        metrics
            .model_info
            .with_label_values(&[&model.name, &model.version, &model.sha256, provider])
            .set(1.0);
        status.serves(self.in_force(&metrics.score_buckets().0));
    }
}

/// The model that is about to take over. The reloader offers it; the intake notices it and drains.
#[derive(Clone, Default)]
pub struct PendingModel(Arc<Offered>);

#[derive(Default)]
struct Offered {
    /// An atomic flag, because it is checked for each record and a lock would be too slow.
    is_there: AtomicBool,
    serving: Mutex<Option<(Serving, config::OutputSettings)>>,
}

impl PendingModel {
    /// Offers a model with the output settings for its verdicts. Replaces an earlier offer that is still waiting.
    pub fn offer(&self, serving: Serving, output: config::OutputSettings) {
        *self.lock() = Some((serving, output));
        self.0.is_there.store(true, Ordering::Release);
    }

    pub fn is_there(&self) -> bool {
        self.0.is_there.load(Ordering::Acquire)
    }

    pub fn take(&self) -> Option<(Serving, config::OutputSettings)> {
        self.0.is_there.store(false, Ordering::Release);
        self.lock().take()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Serving, config::OutputSettings)>> {
        // A panic cannot leave the offer incomplete.
        let serving = self.0.serving.lock();
        serving.unwrap_or_else(PoisonError::into_inner)
    }
}
