//! Starts and runs the daemon. It starts the model, HTTP, Kafka and the pipeline, in this order.

pub mod budget;
mod descriptors;
mod http;
pub mod image_model;
pub mod image_work;
pub mod input;
pub mod media_folder;
pub mod model;
pub mod reload;
pub mod restoration;
pub mod watchdog;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crate::config::Config;
use crate::failure::Failure;
use crate::http::Shown;
use crate::kafka::{self, Sink, Source};
use crate::memory::{self, Budget, Room};
use crate::metrics::Metrics;
use crate::otlp::Spans;
use crate::pipeline::{self, PendingModel, PipelineError, RunContext, RunParts, Traces};
use crate::recent::Recent;
use crate::shutdown::Shutdown;
use crate::status::Status;
use reload::{Reloader, Settings};

/// A running daemon.
pub struct Daemon {
    pub metrics: Metrics,
    pub address: SocketAddr,
    pipeline: JoinHandle<Result<(), PipelineError>>,
    http: JoinHandle<()>,
    done: Shutdown,
}

/// Loads the model, serves HTTP, connects to Kafka, and starts the pipeline. On SIGHUP, `settings` reads the settings
/// again.
///
/// # Errors
/// The error of the first part that cannot start.
pub fn start(config: Config, settings: Settings, shutdown: &Shutdown) -> Result<Daemon, Failure> {
    let started = Instant::now();
    // Signal handlers come first, because a signal may arrive at any time.
    let hangups = shutdown.on_signals_and_hangups();
    let hangups = hangups.map_err(Failure::internal)?;
    let connections = descriptors::for_http()?;
    let mut config = config;
    config.output.media = media_folder::checked(&config.output)?;
    media_folder::sweep(&config.output);
    memory::give_back();
    let before = memory::resident();
    let loaded = model::load_configured(&config, shutdown, |_| Ok(()))?;
    let metrics = Metrics::new(loaded.judge.threshold);
    let budget = budget::of(config.memory_limit, &loaded.bundle, before)?;
    let decoding = share(&mut config, budget.as_ref(), &metrics);
    let golden_records = loaded.golden.records;
    let schema = loaded.bundle.manifest.input.clone();
    let traces = traces(&config, &metrics)?.map(Arc::new);
    let serving = model::serving(&config, loaded, None, &decoding, &metrics)?;
    let status = Status::new(serving.in_force(&metrics.score_buckets().0), started);
    serving.announce(&metrics, &status);
    status.model_is_warm();
    log_ready(&serving, golden_records);

    let done = Shutdown::default();
    let recent = budget.as_ref().map(|budget| Recent::within(budget.recent));
    let recent = recent.unwrap_or_default();
    let pending_model = PendingModel::default();
    let reloader = Reloader {
        settings,
        config: config.clone(),
        schema,
        input: serving.input.clone(),
        decoding,
        metrics: metrics.clone(),
        status: status.clone(),
        pending_model: pending_model.clone(),
        stop: shutdown.clone(),
    };
    // This thread runs until the process ends.
    spawn_named("reloader", move || reloader.run(&hangups));
    let shown = Shown {
        recent: recent.clone(),
        metrics: metrics.clone(),
        status: status.clone(),
    };
    let (address, http) = http::serve(&config.http, connections, shown, &done)?;
    tracing::info!(%address, tls = config.http.tls.is_some(), "serving /livez /readyz /metrics /status and the triage page at /");

    let connected = connect(&config, &metrics, &status, shutdown);
    let (source, sink) = connected.inspect_err(|_| done.request())?;
    let parts = RunParts {
        source,
        sink,
        serving,
        context: RunContext {
            batch: config.batch,
            output: config.output,
            transaction_window: config.kafka.guarantee.window(),
            drain_timeout: config.kafka.drain_timeout,
            in_flight_share: budget.map_or(usize::MAX, |budget| budget.batches() as usize),
            traces,
            metrics: metrics.clone(),
            recent,
            status,
            pending_model,
        },
    };
    let stop = shutdown.clone();
    let pipeline = spawn_named("intake", move || pipeline::run(parts, &stop));
    Ok(Daemon {
        metrics,
        address,
        pipeline,
        http,
        done,
    })
}

fn log_ready(serving: &pipeline::Serving, golden_records: usize) {
    let model = &serving.model;
    tracing::info!(
        model = model.name,
        version = model.version,
        sha256 = &model.sha256[..8],
        provider = serving.provider(),
        placement = %serving.scorers[0].placement,
        threshold = serving.judge.threshold,
        golden_records,
        workers = serving.scorers.len(),
        "model ready"
    );
}

impl Daemon {
    /// Waits until the pipeline and the HTTP server have ended.
    ///
    /// # Errors
    /// The error that ended the pipeline, unless a stop was requested.
    pub fn wait(self) -> Result<(), Failure> {
        let result = self
            .pipeline
            .join()
            .unwrap_or(Err(PipelineError::Panicked("intake")));
        self.done.request();
        let _ = self.http.join();
        Ok(result?)
    }
}

/// Gives each part its share of the memory budget. Returns the room for decoding images.
fn share(config: &mut Config, budget: Option<&Budget>, metrics: &Metrics) -> Room {
    let Some(budget) = budget else {
        tracing::warn!(
            "the amount of memory is unknown (no cgroup limit, nothing from the system), so no memory budget is applied: set memory.limit"
        );
        return Room::of(u64::MAX);
    };
    tracing::info!("memory: {budget}");
    for (share, bytes) in budget.shares() {
        let gauge = metrics.memory_budget_bytes.with_label_values(&[share]);
        gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
    kafka::queues::fit(&mut config.kafka, budget.fetch);
    kafka::decompression::bound(budget.fetch / 2);
    config.images.limits.memory = budget.decoding;
    Room::of(budget.decoding)
}

/// Creates the exporter of traces if the settings name an endpoint.
fn traces(config: &Config, metrics: &Metrics) -> Result<Option<Traces>, Failure> {
    let Some(settings) = &config.traces else {
        return Ok(None);
    };
    let spans = Spans::to(&settings.endpoint, metrics.trace_spans_lost.clone())
        .map_err(|problem| Failure::config(format!("telemetry.otlp_endpoint: {problem}")))?;
    let (ratio, group_id) = (settings.sample_ratio, &config.kafka.group_id);
    Ok(Some(Traces::new(spans, ratio, group_id, &config.output)))
}

fn connect(
    config: &Config,
    metrics: &Metrics,
    status: &Status,
    stop: &Shutdown,
) -> Result<(Source, Sink), Failure> {
    let topics = config.output.topics();
    let source = Source::connect(
        &config.kafka,
        &topics,
        metrics.clone(),
        status.clone(),
        stop,
    )?;
    let sink = Sink::connect(&config.kafka, &topics, stop)?;
    status.producer_is_connected();
    Ok((source, sink))
}

fn spawn_named<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .expect("the system can start a thread")
}
