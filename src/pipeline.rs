//! The only file that knows every stage. A record's way, each arrow a channel of whole batches:
//!
//! ```text
//! intake (consume, decode, batch) -> workers (score) -> publisher (judge, produce, await delivery)
//!    ^------------------------------- finished batches, reused -------------------------------|
//! ```
//!
//! Pictures are decoded between intake and workers, on threads of their own.
//!
//! There are `in_flight` batches and no more, so every channel is bounded. Workers finish in any order; the publisher
//! puts batches back into the order of their sequence, so each partition's verdicts keep its order. The intake alone
//! touches the consumer: it stores a batch's offsets when the batch comes back, which is after every delivery. With
//! exactly-once the publisher commits them, in one transaction with the verdicts.

mod drift;
mod folder;
mod intake;
mod media;
mod outbox;
mod oversize;
mod pictures;
mod publish;
mod refused;
mod screening;
mod serving;
mod tally;
mod traces;
mod window;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::batch::Batch;
use crate::config;
use crate::decode::{Decoder, Input};
use crate::kafka::{KafkaError, Sink, Source};
use crate::message::Model;
use crate::metrics::{Metrics, RELOADED};
use crate::onnx::{Scorer, ScorerError};
use crate::recent::Recent;
use crate::shutdown::Shutdown;
use crate::status::Status;
pub use folder::{probe as probe_folder, sweep as sweep_folder};
pub use screening::{Bounds, Screening};
pub use serving::{Next, Serving};
pub use traces::Traces;

/// Everything that a run needs, made and checked before it starts.
pub struct Stages {
    pub source: Source,
    pub sink: Sink,
    pub serving: Serving,
    pub lasting: Lasting,
}

/// What stays the same whatever the model.
pub struct Lasting {
    pub batch: config::Batch,
    pub output: config::Output,
    /// How long a transaction collects; only with exactly-once.
    pub transaction_window: Option<Duration>,
    pub drain_timeout: Duration,
    /// Bytes of the batches under way, at most.
    pub in_flight_share: usize,
    /// Off without it.
    pub traces: Option<Arc<Traces>>,
    pub metrics: Metrics,
    pub recent: Recent,
    pub status: Status,
    /// Where a model is offered that is to take over.
    pub next: Next,
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
    fn of(self, model: &Model) -> PipelineError {
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
pub fn run(stages: Stages, shutdown: &Shutdown) -> Result<(), PipelineError> {
    let traces = stages.lasting.traces.clone();
    let mut stages = Ok(Some(stages));
    while let Ok(Some(with)) = stages {
        stages = run_with(with, shutdown);
    }
    if let Some(traces) = traces {
        traces.end();
    }
    stages.map(|_| ())
}

/// Runs with one model. If another is to take over: the stages with that.
fn run_with(stages: Stages, shutdown: &Shutdown) -> Result<Option<Stages>, PipelineError> {
    let Stages {
        source,
        sink,
        serving,
        lasting,
    } = stages;
    let metrics = &lasting.metrics;
    let stop = Stop {
        drain: shutdown.clone(),
        abandon: Shutdown::default(),
    };
    let in_flight = lasting.batch.in_flight;
    let (to_score, work) = bounded(in_flight);
    let (to_publish, scored) = bounded(in_flight);
    let (give_back, finished) = bounded(in_flight);
    let membership = source.membership();
    // Half of the batches, so that the other half can be scored while a transaction is committed.
    let half = in_flight.div_ceil(2);
    let window = lasting.transaction_window;
    let window = window.map(|length| window::Window::new(length, half));
    let intake = intake::Intake::new(
        source,
        Decoder::new(
            &serving.features,
            serving.input.clone(),
            serving.segment.clone(),
        ),
        lasting.batch.clone(),
        lasting.in_flight_share,
        lasting.drain_timeout,
        metrics.clone(),
        lasting.status.clone(),
        intake::Channels { to_score, finished },
        lasting.next.clone(),
        stop.clone(),
    );
    let reader = match &serving.input {
        Input::Pictures(reader) => Some((reader.clone(), serving.decoding.clone())),
        _ => None,
    };
    let explain = pictures::Explain {
        threshold: serving.judge.threshold,
        all: lasting.output.scores_topic.is_some(),
        most: lasting.output.attributions,
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let decoders = cores.div_ceil(serving.scorers.len());
    let interrupt = serving.scorers[0].interrupt();
    let model = serving.model.clone();
    let publisher = publish::Publisher::new(
        sink,
        serving.judge,
        serving.nearest,
        serving.model,
        serving.input,
        lasting.output.clone(),
        intake.topics(),
        metrics.clone(),
        lasting.recent.clone(),
        stop.abandon.clone(),
        membership,
        window,
        lasting.traces.clone(),
    );
    let mut screenings = serving.screenings.into_iter();
    let (source, sink) = thread::scope(|scope| {
        let mut threads = Vec::new();
        for scorer in serving.scorers {
            let (work, to_publish) = (work.clone(), to_publish.clone());
            let (metrics, stop) = (metrics.clone(), stop.clone());
            if let Some(reader) = &reader {
                let ahead = scorer.largest().max(pictures::AHEAD);
                let (steps, decoded) = bounded(ahead);
                for _ in 0..decoders {
                    let (work, steps, (reader, room)) =
                        (work.clone(), steps.clone(), reader.clone());
                    let (metrics, stop) = (metrics.clone(), stop.clone());
                    let decoder = move || {
                        guarded(&stop, || {
                            pictures::decode(&reader, &room, &work, &steps, &metrics)
                        })
                    };
                    threads.push(("decoder", spawn(scope, "decoder", decoder)));
                }
                let worker = pictures::Worker {
                    scorer,
                    explain,
                    metrics,
                    open: std::collections::BTreeMap::new(),
                };
                let worker = move || guarded(&stop, || worker.run(&decoded, &to_publish));
                threads.push(("scorer", spawn(scope, "scorer", worker)));
                continue;
            }
            let screening = screenings.next();
            let worker = move || {
                guarded(&stop, || {
                    score(scorer, screening, &work, &to_publish, &metrics)
                })
            };
            threads.push(("scorer", spawn(scope, "scorer", worker)));
        }
        drop((work, to_publish));
        let stop_publisher = stop.clone();
        let publisher = move || guarded(&stop_publisher, || publisher.run(&scored, &give_back));
        let publisher = spawn(scope, "publisher", publisher);

        let taken = guarded(&stop, || intake.run());
        if taken.is_err() || stop.abandon.is_requested() {
            // Nobody waits for what the scorers are at, and a graph may never end.
            interrupt.request();
        }
        // A stage's own error says more than the drain that it spoiled.
        let mut results = Vec::new();
        for (name, thread) in threads {
            results.push(thread.join().unwrap_or(Err(PipelineError::Panicked(name))));
        }
        let published = publisher.join();
        let published = published.unwrap_or(Err(PipelineError::Panicked("publisher")));
        let own =
            |result: &Result<(), PipelineError>| !matches!(result, Err(e) if e.is_by_request());
        let results = results.into_iter().filter(own);
        results
            .collect::<Result<(), _>>()
            .map_err(|e| e.of(&model))?;
        let sink = match published {
            Err(e) if e.is_by_request() => {
                taken?;
                return Err(e);
            }
            published => published.map_err(|e| e.of(&model))?,
        };
        Ok::<_, PipelineError>((taken?, sink))
    })?;
    let (Some(source), Some((serving, output))) = (source, lasting.next.take()) else {
        return Ok(None);
    };
    serving.announce(metrics, &lasting.status);
    metrics.model_reloads.with_label_values(&[RELOADED]).inc();
    let (model, threshold) = (&serving.model, serving.judge.threshold);
    tracing::info!(
        model = model.name,
        version = model.version,
        sha256 = &model.sha256[..8],
        provider = serving.provider(),
        threshold,
        "the new model judges from here on"
    );
    Ok(Some(Stages {
        source,
        sink,
        serving,
        lasting: Lasting { output, ..lasting },
    }))
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

/// Says in the log what the model fails on.
fn report(refused: &[(usize, String)]) {
    if let Some((_, why)) = refused.first() {
        let records = refused.len();
        tracing::error!(
            records,
            "the model fails on records, which become dead letters: {why}"
        );
    }
}

/// A worker: owns its session, scores whatever batch comes next.
fn score(
    mut scorer: Scorer,
    mut screening: Option<Screening>,
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
            report(&batch.refused);
            let ended = Instant::now();
            batch.scoring = Some((started, ended));
            metrics
                .inference_seconds
                .observe(ended.duration_since(started).as_secs_f64());
            metrics.batch_size.observe(batch.scorable() as f64);
        }
        if to_publish.send(batch).is_err() {
            break;
        }
    }
    Ok(())
}
