//! Scores rows or images on all cores, a chunk at a time, and returns the results in order.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::{ImageScores, Scorer, ScorerError};
use crate::batch::Scores;
use crate::config::{InferenceSettings, Provider};
use crate::decode::{Reason, RowError};
use crate::image::{Finding, ImageReader, highest};
use crate::verdict::{Scored, is_score};

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

/// Returns the inference settings outside of the daemon (all cores or the first GPU) and the number of rows per batch.
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
pub struct ScorerPool {
    scorers: Vec<Scorer>,
    width: usize,
}

impl ScorerPool {
    /// Creates a pool for rows of `width` columns.
    pub fn new(scorers: Vec<Scorer>, width: usize) -> ScorerPool {
        ScorerPool { scorers, width }
    }

    /// Scores `rows` [records, width] and calls `each` with the index of the row and its result.
    ///
    /// # Errors
    /// ONNX Runtime fails, or `each` does.
    pub fn score<E: From<ScorerError>>(
        &mut self,
        rows: &[f32],
        mut each: impl FnMut(usize, Scored<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
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
            let scores = part.unwrap_or_else(|panic| resume_unwind(panic))?;
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

impl ScorerPool {
    /// Decodes and scores images. Results are in the order of the payloads, and each has a finding, anomaly or not. Each core
    /// holds the rows and maps of one image at a time.
    ///
    /// # Errors
    /// ONNX Runtime fails. The inner error is the reason that a payload has no score.
    pub fn score_images(
        &mut self,
        reader: &ImageReader,
        images: &[(&[u8], f32)],
        regions: usize,
    ) -> Result<Vec<Judged>, ScorerError> {
        let score_image =
            |scorer: &mut Scorer, scores: &mut ImageScores, (payload, threshold): &(&[u8], f32)| {
                let image = match reader.read(payload) {
                    Ok(image) => image,
                    Err(error) => return Ok(Err(error.into())),
                };
                scores.clear();
                scorer.score_pixels(&image.rows, scores)?;
                Ok(finite(highest(&scores.scores)).map(|score| {
                    let (heat, expected) = (&scores.heat, &scores.reconstruction);
                    (score, image.finding(heat, expected, *threshold, regions))
                }))
            };
        share_out(&mut self.scorers, images, score_image)
    }
}

/// Distributes the items to the scorers and returns the results of `score_item` in the order of the items.
///
/// # Errors
/// `score_item` fails.
pub fn share_out<I: Sync, T: Send, E: Send>(
    scorers: &mut [Scorer],
    items: &[I],
    score_item: impl Fn(&mut Scorer, &mut ImageScores, &I) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let next = AtomicUsize::new(0);
    let work = |scorer: &mut Scorer| {
        let (mut scores, mut done) = (ImageScores::default(), Vec::new());
        while let i = next.fetch_add(1, Ordering::Relaxed)
            && let Some(item) = items.get(i)
        {
            done.push((i, score_item(scorer, &mut scores, item)?));
        }
        Ok::<_, E>(done)
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
        all.extend(part.unwrap_or_else(|panic| resume_unwind(panic))?);
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
