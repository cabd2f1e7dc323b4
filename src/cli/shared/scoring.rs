//! What the verbs that score a file share: sizes, inference settings and the highest scores.

use std::thread;

use crate::bundle::SegmentBy;
use crate::config::{InferenceSettings, Provider};

use crate::failure::Failure;

/// Number of rows in a chunk that is distributed to the cores.
pub const CHUNK: usize = 16_384;
/// Number of rows in a batch on one core.
pub const BATCH: usize = 256;
/// Number of encoded images in a chunk that is distributed to the cores.
pub const IMAGE_CHUNK: usize = 64;

/// Number of rows in a batch on a GPU. It is large because a launch costs the same for any number of rows.
const GPU_BATCH: usize = 4_096;

/// Returns inference settings with one session per core.
pub fn all_cores() -> InferenceSettings {
    InferenceSettings::on_cpu(thread::available_parallelism().map_or(1, usize::from))
}

/// Returns the inference settings of a verb (all cores or the first GPU) and the number of rows per batch.
pub fn inference_on(provider: Provider) -> (InferenceSettings, usize) {
    if provider == Provider::Cpu {
        return (all_cores(), BATCH);
    }
    let inference = InferenceSettings {
        provider,
        ..InferenceSettings::on_cpu(1)
    };
    (inference, GPU_BATCH)
}

/// The entries with the highest scores, in descending order.
pub struct Highest<T> {
    most: usize,
    entries: Vec<(f32, T)>,
}

impl<T> Highest<T> {
    pub fn new(most: usize) -> Highest<T> {
        Highest {
            most,
            entries: Vec::new(),
        }
    }

    /// Returns whether an entry with this score would be kept.
    pub fn takes(&self, score: f32) -> bool {
        match self.entries.last() {
            _ if self.entries.len() < self.most => true,
            Some((least, _)) => score > *least,
            None => false,
        }
    }

    pub fn insert(&mut self, score: f32, entry: T) {
        let index = self.entries.partition_point(|(s, _)| *s >= score);
        self.entries.insert(index, (score, entry));
        self.entries.truncate(self.most);
    }

    pub fn iter(&self) -> impl Iterator<Item = &(f32, T)> {
        self.entries.iter()
    }
}

/// Checks `--key`. A file has no message keys, so a bundle that is calibrated by message key requires the field that holds the
/// key.
///
/// # Errors
/// `--key` is missing, or is given but not needed.
pub fn key_fits(by: Option<&SegmentBy>, key: Option<&str>) -> Result<(), Failure> {
    match (by, key) {
        (Some(SegmentBy::Key), None) => Err(Failure::usage(
            "the bundle is calibrated by message key, which a file does not have: give the field that holds the key with --key FIELD",
        )),
        (None | Some(SegmentBy::Field(_)), Some(_)) => Err(Failure::usage(
            "--key applies only to a bundle that is calibrated by message key: remove it",
        )),
        _ => Ok(()),
    }
}
