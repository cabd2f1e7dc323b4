//! Scores rows on all cores, a chunk at a time, and returns the results in order.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::batch::Scores;
use crate::bundle::SegmentBy;
use crate::config::{InferenceSettings, Provider};
use crate::decode::{Reason, RowError};
use crate::image::{Finding, ImageReader, highest};
use crate::onnx::{ImageScores, Scorer, ScorerError};
use crate::verdict::{Scored, is_score};

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

/// Scores chunks of rows or images with several scorers.
pub struct Scoring {
    scorers: Vec<Scorer>,
    width: usize,
}

impl Scoring {
    /// Creates a `Scoring` for rows of `width` columns.
    pub fn new(scorers: Vec<Scorer>, width: usize) -> Scoring {
        Scoring { scorers, width }
    }

    /// Scores `rows` [records, width] and calls `each` with the index of the row and its result.
    ///
    /// # Errors
    /// ONNX Runtime fails, or `each` does.
    pub fn score(
        &mut self,
        rows: &[f32],
        mut each: impl FnMut(usize, Scored<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let width = self.width;
        let records = rows.len() / width;
        let per_scorer = records.div_ceil(self.scorers.len()).max(1) * width;
        let parts = thread::scope(|scope| {
            let threads: Vec<_> = self
                .scorers
                .iter_mut()
                .zip(rows.chunks(per_scorer))
                .map(|(scorer, rows)| {
                    scope.spawn(move || {
                        let mut scores = Scores::default();
                        scorer.score_or_refuse(rows, &mut scores)?;
                        Ok::<_, ScorerError>(scores)
                    })
                })
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.collect::<Vec<_>>()
        });
        let mut row = 0;
        for (part, rows) in parts.into_iter().zip(rows.chunks(per_scorer)) {
            let scores = part.map_err(|_| Failure::internal("a scoring thread panicked"))??;
            for (i, values) in rows.chunks(width).enumerate() {
                each(row, Scored::at(&scores, i, values))?;
                row += 1;
            }
        }
        Ok(())
    }
}

/// The score and finding of an image, or the reason that it has no score.
pub type Judged = Result<(f32, Finding), RowError>;

impl Scoring {
    /// Decodes and scores images. Results are in the order of the payloads, and each has a finding, anomaly or not. Each core
    /// holds the rows and maps of one image at a time.
    ///
    /// # Errors
    /// ONNX Runtime fails. The inner error is the reason that a payload has no score.
    pub fn score_images(
        &mut self,
        reader: &ImageReader,
        payloads: &[&[u8]],
        threshold: f32,
        regions: usize,
    ) -> Result<Vec<Judged>, Failure> {
        let score_image = |scorer: &mut Scorer, scores: &mut ImageScores, payload: &&[u8]| {
            let image = match reader.read(payload) {
                Ok(image) => image,
                Err(error) => return Ok(Err(error.into())),
            };
            scores.clear();
            scorer.score_pixels(&image.rows, scores)?;
            Ok(finite(highest(&scores.scores)).map(|score| {
                let (heat, expected) = (&scores.heat, &scores.reconstruction);
                (score, image.finding(heat, expected, threshold, regions))
            }))
        };
        share_out(&mut self.scorers, payloads, score_image)
    }
}

/// Distributes the items to the scorers and returns the results of `score_item` in the order of the items.
///
/// # Errors
/// `score_item` fails.
pub fn share_out<I: Sync, T: Send>(
    scorers: &mut [Scorer],
    items: &[I],
    score_item: impl Fn(&mut Scorer, &mut ImageScores, &I) -> Result<T, Failure> + Sync,
) -> Result<Vec<T>, Failure> {
    let next = AtomicUsize::new(0);
    let work = |scorer: &mut Scorer| {
        let (mut scores, mut done) = (ImageScores::default(), Vec::new());
        while let i = next.fetch_add(1, Ordering::Relaxed)
            && let Some(item) = items.get(i)
        {
            done.push((i, score_item(scorer, &mut scores, item)?));
        }
        Ok::<_, Failure>(done)
    };
    let parts: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = scorers
            .iter_mut()
            .map(|scorer| scope.spawn(|| work(scorer)))
            .collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    let mut all = Vec::new();
    for part in parts {
        all.extend(part.map_err(|_| Failure::internal("a scoring thread panicked"))??);
    }
    all.sort_by_key(|(i, _)| *i);
    Ok(all.into_iter().map(|(_, outcome)| outcome).collect())
}

/// Checks the score of an image.
///
/// # Errors
/// The score is NaN, infinite or negative.
pub fn finite(score: f32) -> Result<f32, RowError> {
    match is_score(score) {
        true => Ok(score),
        false => Err(RowError {
            reason: Reason::Unscorable,
            detail: format!(
                "the model returned the score {score}, which is not a finite, non-negative number"
            )
            .into(),
        }),
    }
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
