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

/// Rows in a chunk that is shared out to the cores.
pub const CHUNK: usize = 16_384;
/// Rows in a batch on a core.
pub const BATCH: usize = 256;
/// Encoded images in a chunk that is shared out to the cores.
pub const PICTURES: usize = 64;

/// Rows in a batch on a GPU. Large, because a launch costs the same for any number of rows.
const GPU_BATCH: usize = 4_096;

/// One session per core.
pub fn all_cores() -> InferenceSettings {
    InferenceSettings::on_cpu(thread::available_parallelism().map_or(1, usize::from))
}

/// Where a verb scores (all cores or the first GPU), and the rows per batch.
pub fn on(provider: Provider) -> (InferenceSettings, usize) {
    if provider == Provider::Cpu {
        return (all_cores(), BATCH);
    }
    let inference = InferenceSettings {
        provider,
        ..InferenceSettings::on_cpu(1)
    };
    (inference, GPU_BATCH)
}

pub struct Scoring {
    scorers: Vec<Scorer>,
    width: usize,
}

impl Scoring {
    /// For rows of `width` columns.
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

/// The score and finding of an image, or why it has none.
pub type Judged = Result<(f32, Finding), RowError>;

impl Scoring {
    /// Decodes and scores images, in the order of the payloads. Each result has a finding, anomaly or not. Each core holds the rows
    /// and maps of one image at a time.
    ///
    /// # Errors
    /// ONNX Runtime fails. The inner error is why a payload has no score.
    pub fn score_images(
        &mut self,
        reader: &ImageReader,
        payloads: &[&[u8]],
        threshold: f32,
        regions: usize,
    ) -> Result<Vec<Judged>, Failure> {
        let look = |scorer: &mut Scorer, seen: &mut ImageScores, payload: &&[u8]| {
            let image = match reader.read(payload) {
                Ok(image) => image,
                Err(error) => return Ok(Err(error.into())),
            };
            seen.clear();
            scorer.score_pixels(&image.rows, seen)?;
            Ok(finite(highest(&seen.scores)).map(|score| {
                let (heat, expected) = (&seen.heat, &seen.reconstruction);
                (score, image.finding(heat, expected, threshold, regions))
            }))
        };
        share_out(&mut self.scorers, payloads, look)
    }
}

/// Shares the items out to the scorers and returns the results of `look` in the order of the items.
///
/// # Errors
/// `look` fails.
pub fn share_out<I: Sync, T: Send>(
    scorers: &mut [Scorer],
    items: &[I],
    look: impl Fn(&mut Scorer, &mut ImageScores, &I) -> Result<T, Failure> + Sync,
) -> Result<Vec<T>, Failure> {
    let next = AtomicUsize::new(0);
    let work = |scorer: &mut Scorer| {
        let (mut seen, mut done) = (ImageScores::default(), Vec::new());
        while let i = next.fetch_add(1, Ordering::Relaxed)
            && let Some(item) = items.get(i)
        {
            done.push((i, look(scorer, &mut seen, item)?));
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

/// # Errors
/// The score is NaN, infinite or negative.
pub fn finite(score: f32) -> Result<f32, RowError> {
    match is_score(score) {
        true => Ok(score),
        false => Err(RowError {
            reason: Reason::Unscorable,
            detail: format!("the model's score is {score}").into(),
        }),
    }
}

/// The entries with the highest scores, the highest first.
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

    /// Whether an entry with this score would be kept.
    pub fn takes(&self, score: f32) -> bool {
        match self.entries.last() {
            _ if self.entries.len() < self.most => true,
            Some((least, _)) => score > *least,
            None => false,
        }
    }

    pub fn insert(&mut self, score: f32, entry: T) {
        let place = self.entries.partition_point(|(s, _)| *s >= score);
        self.entries.insert(place, (score, entry));
        self.entries.truncate(self.most);
    }

    pub fn iter(&self) -> impl Iterator<Item = &(f32, T)> {
        self.entries.iter()
    }
}

/// Checks `--key`: a file has no message keys, so a bundle with segments by key needs the field that holds it.
///
/// # Errors
/// `--key` is missing, or is given but not needed.
pub fn key_fits(by: Option<&SegmentBy>, key: Option<&str>) -> Result<(), Failure> {
    match (by, key) {
        (Some(SegmentBy::Key), None) => Err(Failure::usage(
            "the bundle is calibrated by message key, which a file does not have: pass --key FIELD to name the field that holds the key",
        )),
        (None | Some(SegmentBy::Field(_)), Some(_)) => Err(Failure::usage(
            "--key: only for a bundle that is calibrated by message key",
        )),
        _ => Ok(()),
    }
}
