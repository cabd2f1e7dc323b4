//! Connects the stages of the pipeline. This is the only file that knows all of them. Each arrow is a channel of whole
//! batches:
//!
//! ```text
//! intake (consume, decode, batch) -> workers (score) -> publisher (judge, produce, await delivery)
//!    ^------------------------------- finished batches, reused -------------------------------|
//! ```
//!
//! Images are decoded between the intake and the workers, on separate threads.
//!
//! At most `in_flight` batches exist, so every channel is bounded. Workers finish in any order. The publisher puts the
//! batches back into the order of their sequence, so each partition's verdicts keep their order. Only the intake uses
//! the consumer. It stores a batch's offsets when the batch comes back, which is after every delivery. With
//! exactly-once, the publisher commits the offsets instead, in one transaction with the verdicts.

mod delivery;
mod drift;
mod intake;
mod judging;
mod map_files;
mod maps;
mod media_folder;
mod image_work;
mod images;
mod incomplete;
mod publish;
mod restoration;
mod restored;
mod restored_images;
mod screening;
mod serving;
mod slow_work;
mod tally;
mod traces;
mod workers;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;

use crate::config;
use crate::decode::{Decoder, RecordFormat};
use crate::kafka::{KafkaError, Sink, Source, Topics};
use crate::message::ModelId;
use crate::metrics::{Metrics, RELOADED};
use crate::onnx::ScorerError;
use crate::recent::Recent;
use crate::shutdown::Shutdown;
use crate::status::Status;
use delivery::{Delivery, TransactionWindow};
pub use image_work::ImageWork;
use incomplete::Incompletes;
use intake::{Channels, Intake};
use judging::Judging;
pub use map_files::{probe as probe_folder, sweep as sweep_folder};
use publish::Publisher;
use restored::{RecordRestorer, Restorer};
use restored_images::ImageRestorer;
pub use screening::{Screening, bounds};
pub use serving::{PendingModel, Serving};
use slow_work::SlowWork;
pub use traces::Traces;
use workers::Workers;

/// The parts of a run, created and checked before it starts.
pub struct RunParts {
    pub source: Source,
    pub sink: Sink,
    pub serving: Serving,
    pub context: RunContext,
}

/// The parts that stay the same when another model takes over.
pub struct RunContext {
    pub batch: config::BatchSettings,
    pub output: config::OutputSettings,
    /// How long a transaction collects batches. `None` with at-least-once.
    pub transaction_window: Option<Duration>,
    pub drain_timeout: Duration,
    /// The maximum number of bytes of the batches in flight.
    pub in_flight_share: usize,
    /// `None` if traces are off.
    pub traces: Option<Arc<Traces>>,
    pub metrics: Metrics,
    pub recent: Recent,
    pub status: Status,
    /// The model that is offered to take over, if any.
    pub pending_model: PendingModel,
}

/// The reason why a run ended without a stop request.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error(transparent)]
    Scorer(#[from] ScorerError),
    #[error("model {name} version {version}: {error}")]
    Model {
        name: String,
        version: String,
        error: ScorerError,
    },
    #[error(
        "{records} records were still in flight when the drain ended; their offsets are not committed, so they will be judged again"
    )]
    NotDrained { records: i64 },
    #[error(
        "all verdicts are delivered, but the brokers did not answer the last commit in time; the records since the commit before it will be judged again"
    )]
    NotCommitted,
    #[error("the {0} thread panicked; this is a bug, please report it")]
    Panicked(&'static str),
}

impl PipelineError {
    /// Adds the name of the model to its errors.
    fn of(self, model: &ModelId) -> PipelineError {
        match self {
            PipelineError::Scorer(error) => PipelineError::Model {
                name: model.name.clone(),
                version: model.version.clone(),
                error,
            },
            other => other,
        }
    }

    /// Returns whether a stage ended only because it was told to. The cause is then the error of another stage.
    fn is_by_request(&self) -> bool {
        matches!(self, PipelineError::Scorer(ScorerError::Interrupted))
    }
}

/// The two ways to stop a run.
#[derive(Clone, Default)]
struct Stop {
    /// Requested when the run takes no more records and drains.
    drain: Shutdown,
    /// Requested when the run does not wait for in-flight records either, because they cannot finish.
    abandon: Shutdown,
}

/// Stops the other threads when its own thread panics, so that none waits for a batch that never comes.
struct PanicGuard(Stop);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.abandon.request();
            self.0.drain.request();
        }
    }
}

/// Runs until `shutdown` is requested and the in-flight records are drained, or until an error ends the run. An offered
/// model takes over between two batches. The batches of the old model are delivered first, so no record is judged by
/// both models. Blocks, and uses the calling thread for the intake.
///
/// # Errors
/// [`PipelineError`]. In every case, no offset of an undelivered verdict was committed.
pub fn run(parts: RunParts, shutdown: &Shutdown) -> Result<(), PipelineError> {
    let traces = parts.context.traces.clone();
    let mut parts = Ok(Some(parts));
    while let Ok(Some(with)) = parts {
        parts = run_with_one_model(with, shutdown);
    }
    if let Some(traces) = traces {
        traces.end();
    }
    parts.map(|_| ())
}

/// Runs with one model. Returns the parts of the next run if another model is to take over.
fn run_with_one_model(
    parts: RunParts,
    shutdown: &Shutdown,
) -> Result<Option<RunParts>, PipelineError> {
    let RunParts {
        source,
        sink,
        mut serving,
        context,
    } = parts;
    let stop = Stop {
        drain: shutdown.clone(),
        abandon: Shutdown::default(),
    };
    let in_flight = context.batch.in_flight;
    let (to_score, work) = bounded(in_flight);
    let (to_publish, scored) = bounded(in_flight);
    let (give_back, finished) = bounded(in_flight);
    let decoder = Decoder::new(
        &serving.features,
        serving.input.clone(),
        serving.segment.clone(),
    );
    let membership = source.membership();
    let channels = Channels { to_score, finished };
    let reading = (
        decoder,
        incompletes(&serving),
        slow_work(&serving, &context),
    );
    let intake = Intake::new(source, reading, channels, &context, stop.clone());
    let workers = Workers::new(&mut serving, &intake.topics(), &context);
    let model = serving.model.clone();
    // A transaction takes half of the batches, so that the other half can be scored while it is committed.
    let half = in_flight.div_ceil(2);
    let window = context.transaction_window;
    let delivery = Delivery::new(
        sink,
        membership,
        window.map(|length| TransactionWindow::new(length, half)),
        context.metrics.clone(),
        stop.abandon.clone(),
    );
    let judging = Judging {
        restorer: restorer(&serving, &context, intake.topics()),
        judge: serving.judge,
        nearest: serving.nearest,
        model: serving.model,
        input: serving.input,
        output: context.output.clone(),
        topics: intake.topics(),
        traces: context.traces.clone(),
    };
    let publisher = Publisher::new(
        judging,
        delivery,
        context.metrics.clone(),
        context.recent.clone(),
        stop.abandon.clone(),
    );
    let ended = thread::scope(|scope| {
        let interrupt = workers.interrupt();
        let workers = workers.spawn(scope, &work, &to_publish, &stop);
        drop((work, to_publish));
        let of_publisher = stop.clone();
        let publisher = move || guarded(&of_publisher, || publisher.run(&scored, &give_back));
        let publisher = spawn(scope, "publisher", publisher);
        let taken = guarded(&stop, || intake.run());
        if taken.is_err() || stop.abandon.is_requested() {
            // Nothing waits for the scorers any more, and a run of a graph may never end.
            interrupt.request();
        }
        let scored = workers
            .into_iter()
            .map(|(name, worker)| joined(name, worker));
        let scored: Vec<_> = scored.collect();
        combine_results(taken, scored, joined("publisher", publisher))
    });
    let (source, sink) = ended.map_err(|e| e.of(&model))?;
    Ok(source.and_then(|source| next_run(source, sink, context)))
}

/// Returns what finds the records that lack something, if they are restored.
fn incompletes(serving: &Serving) -> Option<Incompletes> {
    let restores = !serving.imputers.is_empty();
    restores.then(|| Incompletes::new(&serving.features, serving.input.clone()))
}

/// Returns the bounds of work that takes much longer than scoring, if there is any.
fn slow_work(serving: &Serving, context: &RunContext) -> Option<SlowWork> {
    let (what, workers) = match (serving.image_work.first(), serving.imputers.len()) {
        (None, 0) => return None,
        (None, imputers) => ("to fill in a record", imputers),
        (Some(ImageWork::Translate(_)), _) => (
            "to translate an image by a step on one tile",
            serving.image_work.len(),
        ),
        (Some(ImageWork::Denoise { .. }), _) => (
            "to denoise an image by a step on one tile",
            serving.image_work.len(),
        ),
    };
    let unit = serving.slow_unit;
    let slow = SlowWork::new(unit, workers, context.drain_timeout);
    tracing::info!(
        milliseconds = unit.as_secs_f64() * 1e3,
        workers,
        in_flight = slow.most,
        "a worker takes this long {what}, and so many of these may be in flight"
    );
    if let RecordFormat::Images(reader) = &serving.input {
        let (pixels, runs) = reader.largest();
        let seconds = unit.as_secs_f64() * runs as f64;
        if seconds > context.drain_timeout.as_secs_f64() {
            tracing::warn!(
                "an image of {pixels} pixels would take {seconds:.0} s, which is longer than kafka.drain_timeout, so it could not be drained: set input.max_pixels to what your images have"
            );
        }
    }
    Some(slow)
}

/// Returns what builds the messages of restored records, if they are published.
fn restorer(serving: &Serving, context: &RunContext, topics: Topics) -> Option<Restorer> {
    let restored = context.output.restored.as_ref()?;
    let (topic, model) = (restored.topic.clone(), serving.model.clone());
    Some(match &serving.input {
        RecordFormat::Images(reader) => Restorer::Images(ImageRestorer {
            topic,
            reader: reader.clone(),
            model,
            topics,
        }),
        input => Restorer::Records(RecordRestorer {
            topic,
            features: serving.features.clone(),
            input: input.clone(),
            model,
            topics,
        }),
    })
}

/// Returns the parts of the next run if a model waits to take over.
fn next_run(source: Source, sink: Sink, context: RunContext) -> Option<RunParts> {
    let (serving, output) = context.pending_model.take()?;
    announce_takeover(&serving, &context);
    Some(RunParts {
        source,
        sink,
        serving,
        context: RunContext { output, ..context },
    })
}

/// Combines the results of the stages. A stage's own error takes precedence over a failed drain, which it may have
/// caused. The error of a stage that was told to end is ignored if another stage has an error.
fn combine_results(
    taken: Result<Option<Source>, PipelineError>,
    scored: Vec<Result<(), PipelineError>>,
    published: Result<Sink, PipelineError>,
) -> Result<(Option<Source>, Sink), PipelineError> {
    let by_request = |error: &PipelineError| error.is_by_request();
    for result in scored {
        if let Err(error) = result
            && !by_request(&error)
        {
            return Err(error);
        }
    }
    match published {
        Err(error) if by_request(&error) => {
            taken?;
            Err(error)
        }
        published => {
            let sink = published?;
            Ok((taken?, sink))
        }
    }
}

fn announce_takeover(serving: &Serving, context: &RunContext) {
    serving.announce(&context.metrics, &context.status);
    let reloaded = context.metrics.model_reloads.with_label_values(&[RELOADED]);
    reloaded.inc();
    let (model, threshold) = (&serving.model, serving.judge.threshold);
    tracing::info!(
        model = model.name,
        version = model.version,
        sha256 = &model.sha256[..8],
        provider = serving.provider(),
        threshold,
        "the new model is in use"
    );
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    name: &str,
    body: impl FnOnce() -> T + Send + 'scope,
) -> thread::ScopedJoinHandle<'scope, T> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn_scoped(scope, body)
        .expect("the system can start a thread")
}

fn joined<T>(
    name: &'static str,
    thread: thread::ScopedJoinHandle<'_, Result<T, PipelineError>>,
) -> Result<T, PipelineError> {
    thread.join().unwrap_or(Err(PipelineError::Panicked(name)))
}

/// Runs a stage, and stops all stages if it fails.
fn guarded<T>(
    stop: &Stop,
    body: impl FnOnce() -> Result<T, PipelineError>,
) -> Result<T, PipelineError> {
    let _guard = PanicGuard(stop.clone());
    let result = body();
    if result.is_err() {
        stop.abandon.request();
        stop.drain.request();
    }
    result
}

/// Logs on how many records the model failed, with the reason for the first of them.
fn log_refused(refused: &[(usize, String)]) {
    if let Some((_, why)) = refused.first() {
        let records = refused.len();
        tracing::error!(
            records,
            "the model failed on some records, which become dead letters: {why}"
        );
    }
}
