//! The only file that knows every stage. A record's way, each arrow a channel of whole batches:
//!
//! ```text
//! intake (consume, decode, batch) -> workers (score) -> publisher (judge, produce, await delivery)
//!    ^------------------------------- finished batches, reused -------------------------------|
//! ```
//!
//! Images are decoded between intake and workers, on threads of their own.
//!
//! There are `in_flight` batches and no more, so every channel is bounded. Workers finish in any order; the publisher
//! puts batches back into the order of their sequence, so each partition's verdicts keep its order. The intake alone
//! touches the consumer: it stores a batch's offsets when the batch comes back, which is after every delivery. With
//! exactly-once the publisher commits them, in one transaction with the verdicts.

mod delivery;
mod drift;
mod intake;
mod judging;
mod map_files;
mod maps;
mod media_folder;
mod images;
mod publish;
mod screening;
mod serving;
mod tally;
mod traces;
mod workers;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;

use crate::config;
use crate::decode::Decoder;
use crate::kafka::{KafkaError, Sink, Source};
use crate::message::ModelId;
use crate::metrics::{Metrics, RELOADED};
use crate::onnx::ScorerError;
use crate::recent::Recent;
use crate::shutdown::Shutdown;
use crate::status::Status;
use delivery::{Delivery, TransactionWindow};
use intake::{Channels, Intake};
use judging::Judging;
pub use map_files::{probe as probe_folder, sweep as sweep_folder};
use publish::Publisher;
pub use screening::{Bounds, Screening};
pub use serving::{PendingModel, Serving};
pub use traces::Traces;
use workers::Workers;

/// Everything that a run needs, made and checked before it starts.
pub struct RunParts {
    pub source: Source,
    pub sink: Sink,
    pub serving: Serving,
    pub context: RunContext,
}

/// What stays the same when another model takes over.
pub struct RunContext {
    pub batch: config::BatchSettings,
    pub output: config::OutputSettings,
    /// How long a transaction collects; only with exactly-once.
    pub transaction_window: Option<Duration>,
    pub drain_timeout: Duration,
    /// The most bytes that the batches in flight may take.
    pub in_flight_share: usize,
    /// `None` if traces are off.
    pub traces: Option<Arc<Traces>>,
    pub metrics: Metrics,
    pub recent: Recent,
    pub status: Status,
    /// Where a model is offered that is to take over.
    pub pending_model: PendingModel,
}

/// Why a run ended other than by request.
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
        "everything is delivered, but the brokers did not answer the last commit in time; records since the one before it will be judged again"
    )]
    NotCommitted,
    #[error("the {0} thread panicked; this is a bug, please report it")]
    Panicked(&'static str),
}

impl PipelineError {
    /// Names the model that fails.
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

    /// Whether a stage was told to end: what it was told for is the error.
    fn is_by_request(&self) -> bool {
        matches!(self, PipelineError::Scorer(ScorerError::Interrupted))
    }
}

/// The two latches of a run.
#[derive(Clone, Default)]
struct Stop {
    /// Take no more records and drain.
    drain: Shutdown,
    /// Do not wait for what is in flight either: it cannot finish.
    abandon: Shutdown,
}

/// Ends the others when its thread panics, so that none waits for a batch that never comes.
struct PanicGuard(Stop);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.abandon.request();
            self.0.drain.request();
        }
    }
}

/// Runs until `shutdown` is requested and what is in flight is drained, or until something cannot go on. A model that is
/// offered takes over between two batches: what the old one has begun is delivered first, so no record is judged by
/// both and each partition changes once. Blocks; takes the calling thread for the intake.
///
/// # Errors
/// [`PipelineError`]; whatever it is, no offset of an undelivered verdict was committed.
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

/// Returns the parts of the next run if another model is to take over.
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
    let intake = Intake::new(source, decoder, channels, &context, stop.clone());
    let workers = Workers::new(&mut serving, &context);
    let model = serving.model.clone();
    // Half of the batches, so that the other half can be scored while a transaction is committed.
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
            // Nothing waits for the scorers any more, and a graph may never end.
            interrupt.request();
        }
        let scored = workers
            .into_iter()
            .map(|(name, worker)| joined(name, worker));
        let scored: Vec<_> = scored.collect();
        ended(taken, scored, joined("publisher", publisher))
    });
    let (source, sink) = ended.map_err(|e| e.of(&model))?;
    let Some(source) = source else {
        return Ok(None);
    };
    let pending = context.pending_model.take();
    Ok(pending.map(|(serving, output)| {
        takes_over(&serving, &context);
        RunParts {
            source,
            sink,
            serving,
            context: RunContext { output, ..context },
        }
    }))
}

/// What the stages ended with. An error of their own says more than the drain that it spoiled, and that one was told to end says
/// nothing.
fn ended(
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

fn takes_over(serving: &Serving, context: &RunContext) {
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
        "the new model judges from here on"
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
        .expect("the system gives a thread")
}

fn joined<T>(
    name: &'static str,
    thread: thread::ScopedJoinHandle<'_, Result<T, PipelineError>>,
) -> Result<T, PipelineError> {
    thread.join().unwrap_or(Err(PipelineError::Panicked(name)))
}

/// An error in one stage stops all.
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

/// Logs on how many records the model failed, and how on the first.
fn log_refused(refused: &[(usize, String)]) {
    if let Some((_, why)) = refused.first() {
        let records = refused.len();
        tracing::error!(
            records,
            "the model fails on records, which become dead letters: {why}"
        );
    }
}
