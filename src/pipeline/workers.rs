//! The scoring threads. A worker for tables takes whole batches. A worker for images has its own decoders, which hand
//! over one image at a time.

use std::thread::{Scope, ScopedJoinHandle, available_parallelism};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::batch::Batch;
use crate::decode::RecordFormat;
use crate::image::ImageReader;
use crate::kafka::Topics;
use crate::memory::Room;
use crate::metrics::Metrics;
use crate::onnx::{Interrupt, Scorer};

use super::image_work::ImageWork;
use super::images::{self, Explain};
use super::restoration::Restoration;
use super::screening::Screening;
use super::serving::Serving;
use super::{PipelineError, RunContext, Stop, guarded, log_refused, spawn};

/// The name and the handle of a thread.
pub type Thread<'scope> = (
    &'static str,
    ScopedJoinHandle<'scope, Result<(), PipelineError>>,
);

/// The workers of the current model, one per scorer.
pub struct Workers {
    scorers: Vec<Scorer>,
    screenings: Vec<Screening>,
    /// One for each scorer, or empty if records are not restored.
    restorations: Vec<Restoration>,
    /// One for each scorer, or empty if no model works on whole images.
    image_work: Vec<ImageWork>,
    /// Set only if the records are images.
    images: Option<Images>,
    metrics: Metrics,
}

#[derive(Clone)]
struct Images {
    reader: ImageReader,
    room: Room,
    explain: Explain,
    /// The number of decoder threads of each worker.
    decoders: usize,
}

impl Workers {
    /// Creates the workers. Moves scorers, screenings and imputers out of `serving`.
    pub fn new(serving: &mut Serving, topics: &Topics, context: &RunContext) -> Workers {
        let scorers = std::mem::take(&mut serving.scorers);
        let cores = available_parallelism().map_or(1, usize::from);
        let images = match &serving.input {
            RecordFormat::Images(reader) => Some(Images {
                reader: reader.clone(),
                room: serving.decoding.clone(),
                explain: Explain {
                    thresholds: serving.judge.thresholds(),
                    all: context.output.scores_topic.is_some(),
                    most: context.output.attributions,
                },
                decoders: cores.div_ceil(scorers.len()),
            }),
            _ => None,
        };
        Workers {
            scorers,
            screenings: std::mem::take(&mut serving.screenings),
            restorations: restorations(serving, topics, context),
            image_work: std::mem::take(&mut serving.image_work),
            images,
            metrics: context.metrics.clone(),
        }
    }

    /// Returns a handle that interrupts the running graphs of the scorers.
    pub fn interrupt(&self) -> Interrupt {
        self.scorers[0].interrupt()
    }

    /// Starts all threads. They end when `work` is closed.
    pub fn spawn<'scope>(
        self,
        scope: &'scope Scope<'scope, '_>,
        work: &Receiver<Batch>,
        to_publish: &Sender<Batch>,
        stop: &Stop,
    ) -> Vec<Thread<'scope>> {
        let mut threads = Vec::new();
        let mut screenings = self.screenings.into_iter();
        let mut restorations = self.restorations.into_iter();
        let mut image_work = self.image_work.into_iter();
        for scorer in self.scorers {
            let (work, to_publish) = (work.clone(), to_publish.clone());
            let (metrics, stop) = (self.metrics.clone(), stop.clone());
            if let Some(images) = self.images.clone() {
                let models = (scorer, image_work.next());
                threads.extend(images.spawn(scope, models, work, to_publish, metrics, &stop));
                continue;
            }
            let extras = (screenings.next(), restorations.next());
            let worker = move || {
                guarded(&stop, || {
                    score(scorer, extras, &work, &to_publish, &metrics)
                })
            };
            threads.push(("scorer", spawn(scope, "scorer", worker)));
        }
        threads
    }
}

impl Images {
    /// Starts one worker and its decoders.
    fn spawn<'scope>(
        self,
        scope: &'scope Scope<'scope, '_>,
        (scorer, image_work): (Scorer, Option<ImageWork>),
        work: Receiver<Batch>,
        to_publish: Sender<Batch>,
        metrics: Metrics,
        stop: &Stop,
    ) -> Vec<Thread<'scope>> {
        let ahead = scorer.largest().max(images::AHEAD);
        let (steps, decoded) = bounded(ahead);
        let mut threads = Vec::new();
        for _ in 0..self.decoders {
            let (work, steps, metrics) = (work.clone(), steps.clone(), metrics.clone());
            let (reader, room, stop) = (self.reader.clone(), self.room.clone(), stop.clone());
            let decoder = move || {
                guarded(&stop, || {
                    images::decode(&reader, &room, &work, &steps, &metrics)
                })
            };
            threads.push(("decoder", spawn(scope, "decoder", decoder)));
        }
        let image_work = image_work.map(|work| (work, self.reader));
        let worker = images::Worker::new(scorer, image_work, self.explain, metrics);
        let stop = stop.clone();
        let worker = move || guarded(&stop, || worker.run(&decoded, &to_publish));
        threads.push(("scorer", spawn(scope, "scorer", worker)));
        threads
    }
}

/// Moves the imputers out of `serving`, one for each worker.
fn restorations(serving: &mut Serving, topics: &Topics, context: &RunContext) -> Vec<Restoration> {
    let Some(settings) = &context.output.restored else {
        return Vec::new();
    };
    let imputers = std::mem::take(&mut serving.imputers).into_iter();
    let restorations = imputers.map(|imputer| Restoration {
        imputer,
        seed: settings.seed,
        topics: topics.clone(),
        metrics: context.metrics.clone(),
    });
    restorations.collect()
}

/// Scores and restores batches until the channel is closed.
fn score(
    mut scorer: Scorer,
    (mut screening, mut restoration): (Option<Screening>, Option<Restoration>),
    work: &Receiver<Batch>,
    to_publish: &Sender<Batch>,
    metrics: &Metrics,
) -> Result<(), PipelineError> {
    for mut batch in work {
        let started = Instant::now();
        if batch.scorable() > 0 {
            if let Some(opened) = batch.opened() {
                let waited = started.duration_since(opened);
                metrics.queue_seconds.observe(waited.as_secs_f64());
            }
            match &mut screening {
                Some(screening) => screening.score(&mut scorer, &mut batch)?,
                None => {
                    batch.refused = scorer.score_or_refuse(&batch.rows, &mut batch.scores)?;
                }
            }
            log_refused(&batch.refused);
            let ended = Instant::now();
            batch.scoring = Some((started, ended));
            metrics
                .inference_seconds
                .observe(ended.duration_since(started).as_secs_f64());
            metrics.batch_size.observe(batch.scorable() as f64);
        }
        if let Some(restoration) = &mut restoration {
            restoration.restore(&mut batch)?;
        }
        if to_publish.send(batch).is_err() {
            break;
        }
    }
    Ok(())
}
