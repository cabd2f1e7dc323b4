//! Images between intake and publisher: decoder threads and the scorer that they feed. The rows and maps of an image live
//! only from decoding to scoring, not until its batch is done.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::{PipelineError, log_refused};
use crate::batch::{Batch, Sighting};
use crate::decode::{Reason, RowError};
use crate::memory::{Room, Taken};
use crate::metrics::Metrics;
use crate::onnx::{ImageScores, Scorer};
use crate::picture::{ImageReader, Picture, PictureError, highest};

/// Least number of decoded images that may wait for a scorer.
pub const AHEAD: usize = 2;

/// What a decoder sends to its scorer.
pub enum Step {
    /// The next image of the batch with this sequence number.
    Picture {
        sequence: u64,
        opened: Option<Instant>,
        /// The image, with the memory reserved for it until it is scored.
        picture: Result<(Picture, Taken), PictureError>,
    },
    /// The batch itself, after all of its images.
    End(Box<Batch>),
}

/// Which images are explained, and how.
#[derive(Clone, Copy)]
pub struct Explain {
    pub threshold: f32,
    /// Explain every image, not only anomalies.
    pub all: bool,
    /// Most regions in an explanation.
    pub most: usize,
}

/// Runs a decoder: takes the next batch and hands over its images one by one.
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
            let picture = reader.read_within(record.payload, |bytes| {
                let asked = Instant::now();
                let taken = room.take(bytes);
                waited = asked.elapsed();
                metrics.memory_decoding_bytes.set(room.taken() as i64);
                taken
            });
            let picture = picture.map(|(picture, mut taken)| {
                taken.shrink(picture.bytes());
                (picture, taken)
            });
            metrics
                .decode_seconds
                .observe((started.elapsed() - waited).as_secs_f64());
            let step = Step::Picture {
                sequence: batch.sequence,
                opened: batch.opened(),
                picture,
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

/// A scorer and its findings for batches that are not complete yet.
pub struct Worker {
    scorer: Scorer,
    explain: Explain,
    metrics: Metrics,
    open: BTreeMap<u64, Part>,
}

struct Part {
    started: Instant,
    scores: Vec<f32>,
    sightings: Vec<Sighting>,
    seconds: f64,
}

impl Worker {
    pub fn new(scorer: Scorer, explain: Explain, metrics: Metrics) -> Worker {
        Worker {
            scorer,
            explain,
            metrics,
            open: BTreeMap::new(),
        }
    }

    /// Scores the images of its decoders. If the scorer takes several at once, waiting ones are scored together.
    pub fn run(
        mut self,
        steps: &Receiver<Step>,
        to_publish: &Sender<Batch>,
    ) -> Result<(), PipelineError> {
        let mut seen = ImageScores::default();
        let mut rows = Vec::new();
        while let Ok(first) = steps.recv() {
            let mut together = vec![first];
            while rows_of(&together) < self.scorer.largest() {
                match steps.try_recv() {
                    Ok(next) => together.push(next),
                    Err(_) => break,
                }
            }
            let started = Instant::now();
            seen.clear();
            // One huge image must not keep its memory forever.
            rows.clear();
            rows.shrink_to(4 << 20);
            let pictures = together.iter().filter_map(Step::picture);
            let pictures: Vec<&[u8]> = pictures.map(|p| p.rows.as_slice()).collect();
            let refused = self
                .scorer
                .score_images_or_refuse(&pictures, &mut rows, &mut seen)?;
            log_refused(&refused);
            let mut refused = refused.into_iter().peekable();
            let seconds = started.elapsed().as_secs_f64() / rows_of(&together).max(1) as f64;
            let (mut from, mut place) = (0, 0);
            for step in together {
                match step {
                    Step::Picture {
                        sequence,
                        opened,
                        picture,
                    } => {
                        let part = part(&mut self.open, sequence, opened, started, &self.metrics);
                        match picture {
                            Ok((picture, _taken)) => {
                                let to = from + picture.layout.rows();
                                match refused.next_if(|(at, _)| *at == place) {
                                    None => self.explain.take(part, &picture, &seen, from..to),
                                    Some((_, why)) => part.refuse(why),
                                }
                                place += 1;
                                part.seconds += seconds * (to - from) as f64;
                                from = to;
                            }
                            Err(error) => part.bury(error.into()),
                        }
                    }
                    Step::End(batch) => {
                        if to_publish.send(self.close(*batch)).is_err() {
                            return Ok(());
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Puts the findings into their batch.
    fn close(&mut self, mut batch: Batch) -> Batch {
        if let Some(part) = self.open.remove(&batch.sequence) {
            self.metrics.inference_seconds.observe(part.seconds);
            self.metrics.batch_size.observe(batch.scorable() as f64);
            batch.scoring = Some((part.started, Instant::now()));
            batch.scores.scores = part.scores;
            batch.sightings = part.sightings;
        }
        batch
    }
}

impl Part {
    fn bury(&mut self, error: RowError) {
        self.scores.push(f32::NAN);
        self.sightings.push(Sighting::Dead(error));
    }

    fn refuse(&mut self, why: String) {
        self.bury(RowError {
            reason: Reason::Unscorable,
            detail: format!("the model fails on this image: {why}").into(),
        });
    }
}

impl Step {
    fn picture(&self) -> Option<&Picture> {
        match self {
            Step::Picture { picture, .. } => Some(&picture.as_ref().ok()?.0),
            Step::End(_) => None,
        }
    }
}

fn rows_of(steps: &[Step]) -> usize {
    let pictures = steps.iter().filter_map(Step::picture);
    pictures.map(|picture| picture.layout.rows()).sum()
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
            sightings: Vec::new(),
            seconds: 0.0,
        }
    })
}

impl Explain {
    fn take(
        self,
        part: &mut Part,
        picture: &Picture,
        seen: &ImageScores,
        rows: std::ops::Range<usize>,
    ) {
        let score = highest(&seen.scores[rows.clone()]);
        part.scores.push(score);
        if !score.is_finite() || !(self.all || score > self.threshold) {
            part.sightings.push(Sighting::Unexplained);
            return;
        }
        let layout = &picture.layout;
        let pixels = layout.tile_width * layout.tile_height;
        let values = pixels * layout.channels;
        let finding = picture.finding(
            &seen.heat[rows.start * pixels..rows.end * pixels],
            &seen.reconstruction[rows.start * values..rows.end * values],
            self.threshold,
            self.most,
        );
        part.sightings.push(Sighting::Explained(Box::new(finding)));
    }
}
