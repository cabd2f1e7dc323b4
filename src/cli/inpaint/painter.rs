//! Draws the marked pixels of an image anew, and again where the bundle still finds a defect.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::composed;
use super::marks::Marks;
use crate::cli::shared::image_job::{Outcome, Source, Steps};
use crate::decode::RowError;
use crate::diffusion::{Normals, Repaint, normals};
use crate::failure::Failure;
use crate::image::{ImageReader, Lost, Region, WholeImage, crops, highest};
use crate::onnx::{ImageScores, Scorer, ScorerError, TiledDenoiser, finite, finite_image};
use crate::verdict::Judge;

/// The most regions of an image that are drawn anew in a round.
const REGIONS: usize = 5;

/// What all workers share.
pub struct Painter {
    pub repaint: Repaint,
    pub marks: Marks,
    /// Height and width of the least part of an image that the model sees.
    pub least: [usize; 2],
    pub seed: u64,
    pub channels: usize,
    pub examiner: Option<Examiner>,
}

/// Looks for what is left of a defect.
pub struct Examiner {
    pub reader: ImageReader,
    pub judge: Judge,
    /// How often an image is drawn at most.
    pub rounds: usize,
    /// The number of images that are normal afterwards, and of those that are not.
    pub outcomes: [AtomicUsize; 2],
}

/// What a thread owns.
pub struct Worker {
    pub denoiser: TiledDenoiser,
    pub scorer: Option<Scorer>,
}

impl Painter {
    pub fn paint(
        &self,
        worker: &mut Worker,
        source: &Source,
        steps: &Steps<'_>,
    ) -> Result<Outcome, Failure> {
        let mut marked = match self.marks.of(source) {
            Ok(marked) => marked,
            Err(error) => return Ok(Some(Err(error))),
        };
        let mut image = source.values.clone();
        let mut painted = marked.clone();
        let mut noise = normals(self.seed, source.number);
        for round in 1.. {
            match self.round(&mut image, &marked, source.size, worker, &mut noise, steps)? {
                Some(Ok(())) => {}
                Some(Err(error)) => return Ok(Some(Err(error))),
                None => return Ok(None),
            }
            let (Some(examiner), Some(scorer), true) =
                (&self.examiner, &mut worker.scorer, painted.contains(&true))
            else {
                break;
            };
            let made = composed(source, &painted, &image, self.channels).bytes;
            let left = match examiner.defects(scorer, made, source.size, self.channels)? {
                Ok(left) => left,
                Err(error) => return Ok(Some(Err(error))),
            };
            let is_normal = left.is_none();
            let regions = left.unwrap_or_default();
            // Without regions, there is nothing more to draw, anomaly or not.
            if regions.is_empty() || round == examiner.rounds {
                examiner.outcomes[usize::from(!is_normal)].fetch_add(1, Ordering::Relaxed);
                break;
            }
            marked.fill(false);
            for region in regions {
                region.mark(&mut marked, source.size);
                region.mark(&mut painted, source.size);
            }
        }
        Ok(Some(Ok(composed(source, &painted, &image, self.channels))))
    }

    /// Draws the marked pixels once. `None` after a stop.
    fn round(
        &self,
        image: &mut [f32],
        marked: &[bool],
        size: [usize; 2],
        worker: &mut Worker,
        noise: &mut Normals,
        steps: &Steps<'_>,
    ) -> Result<Option<Result<(), RowError>>, Failure> {
        let crops = crops(marked, size, self.least);
        steps.expect(crops.len() * self.repaint.runs());
        for crop in &crops {
            let known = crop.cut(image, size);
            let denoiser = &mut worker.denoiser;
            let overlap = denoiser.overlap([crop.height, crop.width]);
            let predict = |sample: &[f32], timestep: f32| {
                if steps.must_stop() {
                    return Ok(None);
                }
                let predicted = denoiser.predict(sample, &overlap, timestep, &[])?;
                steps.count();
                Ok::<_, ScorerError>(Some(predicted))
            };
            let marked = crop.cut(marked, size);
            let Some(drawn) = self.repaint.paint(&known, &marked, noise, predict)? else {
                return Ok(None);
            };
            if let Err(error) = finite_image(&drawn) {
                return Ok(Some(Err(error)));
            }
            crop.paste(&drawn, image, size);
        }
        Ok(Some(Ok(())))
    }
}

impl Examiner {
    /// Scores an image of 8 bits in reading order. Returns the regions of its verdict, or `None` if it is normal.
    fn defects(
        &self,
        scorer: &mut Scorer,
        pixels: Vec<u8>,
        [height, width]: [usize; 2],
        channels: usize,
    ) -> Result<Result<Option<Vec<Region>>, RowError>, ScorerError> {
        let image = self.reader.cut(WholeImage {
            width,
            height,
            channels,
            pixels,
            number: 0,
            lost: Lost::default(),
        });
        let mut scores = ImageScores::default();
        scorer.score_pixels(&image.rows, &mut scores)?;
        let regions = |score| {
            let threshold = self.judge.threshold;
            self.judge.is_anomaly(score, None).then(|| {
                image
                    .finding(&scores.heat, &scores.reconstruction, threshold, REGIONS)
                    .regions
            })
        };
        Ok(finite(highest(&scores.scores)).map(regions))
    }
}
