//! Decodes and scores images between intake and publisher. The rows and maps of an image exist only from decoding to
//! scoring, not until its batch is finished.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::image_work::ImageWork;
use super::{PipelineError, log_refused};
use crate::batch::{Batch, ImageOutcome, RestoredImage};
use crate::bundle::SegmentId;
use crate::bundle::segments::ScoreLimits;
use crate::decode::{Reason, RowError};
use crate::image::{Image, ImageError, ImageReader, WholeImage, highest};
use crate::memory::{Room, Taken};
use crate::metrics::Metrics;
use crate::onnx::{ImageScores, Scorer};

/// The minimum number of decoded images that may wait for a scorer.
pub const AHEAD: usize = 2;

/// A message from a decoder to its scorer.
pub enum Step {
    /// The next image of the batch with this sequence number.
    Image {
        sequence: u64,
        opened: Option<Instant>,
        segment: Option<SegmentId>,
        /// The image, with the memory reserved for it until it has been scored.
        image: Result<(Decoded, Taken), ImageError>,
    },
    /// The batch itself, after all of its images.
    End(Box<Batch>),
}

/// A decoded image.
pub enum Decoded {
    Rows(Image),
    /// An image that the worker's model works on first.
    Whole(WholeImage),
}

/// A step that is ready for the scorer.
enum Ready {
    Image {
        sequence: u64,
        opened: Option<Instant>,
        segment: Option<SegmentId>,
        image: Result<(Image, Taken), RowError>,
        restored: Option<Box<RestoredImage>>,
    },
    End(Box<Batch>),
}

/// Which images are explained, and how.
#[derive(Clone)]
pub struct Explain {
    pub thresholds: ScoreLimits,
    /// Explains every image, not only anomalies.
    pub all: bool,
    /// The maximum number of regions in an explanation.
    pub most: usize,
}

/// Runs a decoder thread. It takes the next batch and hands over its images one by one.
pub fn decode(
    reader: &ImageReader,
    room: &Room,
    work: &Receiver<Batch>,
    steps: &Sender<Step>,
    metrics: &Metrics,
) -> Result<(), PipelineError> {
    for batch in work {
        for record in batch.records() {
            let started = Instant::now();
            let mut waited = Duration::ZERO;
            let reserve = |bytes| {
                let asked = Instant::now();
                let taken = room.take(bytes);
                waited = asked.elapsed();
                metrics.memory_decoding_bytes.set(room.taken() as i64);
                taken
            };
            let image = match reader.model() {
                None => reader
                    .read_within(record.payload, reserve)
                    .map(|(image, mut taken)| {
                        taken.shrink(image.bytes());
                        (Decoded::Rows(image), taken)
                    }),
                Some(_) => reader
                    .decode_within(record.payload, reserve)
                    .map(|(image, taken)| (Decoded::Whole(image), taken)),
            };
            if let Some(warning) = reader.depth().warning() {
                tracing::warn!("{warning}");
            }
            metrics
                .decode_seconds
                .observe((started.elapsed() - waited).as_secs_f64());
            let step = Step::Image {
                sequence: batch.sequence,
                opened: batch.opened(),
                segment: record.segment,
                image,
            };
            if steps.send(step).is_err() {
                return Ok(());
            }
        }
        if steps.send(Step::End(Box::new(batch))).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// A scorer with its findings for batches that are not complete yet.
pub struct Worker {
    scorer: Scorer,
    /// The model that works on whole images, and the reader that cuts them into rows.
    work: Option<(ImageWork, ImageReader)>,
    explain: Explain,
    metrics: Metrics,
    open: BTreeMap<u64, Part>,
}

struct Part {
    started: Instant,
    scores: Vec<f32>,
    image_outcomes: Vec<ImageOutcome>,
    restored_images: Vec<Option<Box<RestoredImage>>>,
    seconds: f64,
}

impl Worker {
    pub fn new(
        scorer: Scorer,
        work: Option<(ImageWork, ImageReader)>,
        explain: Explain,
        metrics: Metrics,
    ) -> Worker {
        Worker {
            scorer,
            work,
            explain,
            metrics,
            open: BTreeMap::new(),
        }
    }

    /// Scores the images of its decoders. If the scorer accepts several images at once, waiting images are scored
    /// together.
    pub fn run(
        mut self,
        steps: &Receiver<Step>,
        to_publish: &Sender<Batch>,
    ) -> Result<(), PipelineError> {
        let mut seen = ImageScores::default();
        let mut rows = Vec::new();
        while let Ok(first) = steps.recv() {
            let mut together = vec![self.ready(first)?];
            while rows_of(&together) < self.scorer.largest() {
                match steps.try_recv() {
                    Ok(next) => together.push(self.ready(next)?),
                    Err(_) => break,
                }
            }
            let started = Instant::now();
            seen.clear();
            // Free the memory of a huge image, which would otherwise be kept forever.
            rows.clear();
            rows.shrink_to(4 << 20);
            let images = together.iter().filter_map(Ready::image);
            let images: Vec<&[u8]> = images.map(|p| p.rows.as_slice()).collect();
            let refused = self
                .scorer
                .score_images_or_refuse(&images, &mut rows, &mut seen)?;
            log_refused(&refused);
            let mut refused = refused.into_iter().peekable();
            let seconds = started.elapsed().as_secs_f64() / rows_of(&together).max(1) as f64;
            let (mut from, mut place) = (0, 0);
            for step in together {
                match step {
                    Ready::Image {
                        sequence,
                        opened,
                        segment,
                        image,
                        restored,
                    } => {
                        let part = part(&mut self.open, sequence, opened, started, &self.metrics);
                        part.restored_images.push(restored);
                        match image {
                            Ok((image, _taken)) => {
                                let to = from + image.layout.rows();
                                match refused.next_if(|(at, _)| *at == place) {
                                    None => {
                                        let scored = (&image, &seen, from..to);
                                        self.explain.take(part, segment, scored);
                                    }
                                    Some((_, why)) => part.refuse(why),
                                }
                                place += 1;
                                part.seconds += seconds * (to - from) as f64;
                                from = to;
                            }
                            Err(error) => part.push_failure(error),
                        }
                    }
                    Ready::End(batch) => {
                        if to_publish.send(self.close(*batch)).is_err() {
                            return Ok(());
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Has the model work on an image, if there is one.
    fn ready(&mut self, step: Step) -> Result<Ready, PipelineError> {
        let (sequence, opened, segment, image) = match step {
            Step::Image {
                sequence,
                opened,
                segment,
                image,
            } => (sequence, opened, segment, image),
            Step::End(batch) => return Ok(Ready::End(batch)),
        };
        let mut restored = None;
        let image = match (image, &mut self.work) {
            (Err(error), _) => Err(error.into()),
            (Ok((Decoded::Rows(image), taken)), _) => Ok((image, taken)),
            (Ok((Decoded::Whole(_), _)), None) => unreachable!("the reader knows of no model"),
            (Ok((Decoded::Whole(image), mut taken)), Some((work, reader))) => {
                match work.work(image, reader, &self.metrics)? {
                    Ok((image, made)) => {
                        taken.shrink(image.bytes());
                        restored = made;
                        Ok((image, taken))
                    }
                    Err(error) => Err(error),
                }
            }
        };
        Ok(Ready::Image {
            sequence,
            opened,
            segment,
            image,
            restored,
        })
    }

    /// Moves the findings into their batch.
    fn close(&mut self, mut batch: Batch) -> Batch {
        if let Some(part) = self.open.remove(&batch.sequence) {
            self.metrics.inference_seconds.observe(part.seconds);
            self.metrics.batch_size.observe(batch.scorable() as f64);
            batch.scoring = Some((part.started, Instant::now()));
            batch.scores.scores = part.scores;
            batch.image_outcomes = part.image_outcomes;
            batch.restored_images = part.restored_images;
        }
        batch
    }
}

impl Part {
    fn push_failure(&mut self, error: RowError) {
        self.scores.push(f32::NAN);
        self.image_outcomes.push(ImageOutcome::Dead(error));
    }

    fn refuse(&mut self, why: String) {
        self.push_failure(RowError {
            reason: Reason::Unscorable,
            detail: format!("the model failed on this image: {why}").into(),
        });
    }
}

impl Ready {
    fn image(&self) -> Option<&Image> {
        match self {
            Ready::Image { image, .. } => Some(&image.as_ref().ok()?.0),
            Ready::End(_) => None,
        }
    }
}

fn rows_of(steps: &[Ready]) -> usize {
    let images = steps.iter().filter_map(Ready::image);
    images.map(|image| image.layout.rows()).sum()
}

fn part<'w>(
    open: &'w mut BTreeMap<u64, Part>,
    sequence: u64,
    opened: Option<Instant>,
    started: Instant,
    metrics: &Metrics,
) -> &'w mut Part {
    open.entry(sequence).or_insert_with(|| {
        if let Some(opened) = opened {
            let waited = started.saturating_duration_since(opened);
            metrics.queue_seconds.observe(waited.as_secs_f64());
        }
        Part {
            started,
            scores: Vec::new(),
            image_outcomes: Vec::new(),
            restored_images: Vec::new(),
            seconds: 0.0,
        }
    })
}

impl Explain {
    fn take(
        &self,
        part: &mut Part,
        segment: Option<SegmentId>,
        (image, seen, rows): (&Image, &ImageScores, std::ops::Range<usize>),
    ) {
        let score = highest(&seen.scores[rows.clone()]);
        part.scores.push(score);
        let threshold = self.thresholds.of(segment);
        if !score.is_finite() || !(self.all || score > threshold) {
            part.image_outcomes.push(ImageOutcome::Unexplained);
            return;
        }
        let layout = &image.layout;
        let pixels = layout.tile_width * layout.tile_height;
        let values = pixels * layout.channels;
        let finding = image.finding(
            &seen.heat[rows.start * pixels..rows.end * pixels],
            &seen.reconstruction[rows.start * values..rows.end * values],
            threshold,
            self.most,
        );
        part.image_outcomes
            .push(ImageOutcome::Explained(Box::new(finding)));
    }
}
