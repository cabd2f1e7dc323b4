//! The daemon: model, HTTP, Kafka and pipeline, started in the order in which they can fail.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crate::config::{self, Config, Media, Output};
use crate::http::{self, Access, Shown, Tls};
use crate::kafka::{self, Sink, Source};
use crate::memory::{self, Budget, Room};
use crate::metrics::Metrics;
use crate::otlp::Spans;
use crate::pipeline::{self, Lasting, Next, PipelineError, Stages, Traces};
use crate::recent::Recent;
use crate::shutdown::Shutdown;
use crate::status::Status;

use super::budget;
use super::descriptors;
use super::failure::Failure;
use super::reload::{self, Reloader, Settings};

/// A daemon at work.
pub struct Daemon {
    pub metrics: Metrics,
    pub address: SocketAddr,
    pipeline: JoinHandle<Result<(), PipelineError>>,
    http: JoinHandle<()>,
    done: Shutdown,
}

/// Loads the model, serves HTTP, connects to Kafka, and starts the pipeline. `settings` gives the settings anew at SIGHUP.
///
/// # Errors
/// The first thing that cannot be had.
pub fn start(config: Config, settings: Settings, shutdown: &Shutdown) -> Result<Daemon, Failure> {
    let started = Instant::now();
    // First of all: a stop may come at once.
    let hangups = shutdown.on_signals_and_hangups();
    let hangups = hangups.map_err(Failure::internal)?;
    let connections = descriptors::for_http()?;
    let mut config = config;
    config.output.media = media_folder(&config.output)?;
    sweep(&config.output);
    memory::give_back();
    let before = memory::resident();
    let loaded = reload::load(&config, shutdown, |_| Ok(()))?;
    let metrics = Metrics::new(loaded.judge.threshold);
    let budget = budget::of(config.memory_limit, &loaded.bundle, before)?;
    let decoding = share(&mut config, budget.as_ref(), &metrics);
    let golden_records = loaded.golden.records;
    let schema = loaded.bundle.manifest.input.clone();
    let traces = traces(&config, &metrics)?.map(Arc::new);
    let serving = reload::serving(&config, loaded, None, &decoding, &metrics)?;
    let status = Status::new(serving.in_force(&metrics.score_buckets().0), started);
    serving.announce(&metrics, &status);
    status.model_is_warm();
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

    let done = Shutdown::default();
    let recent = match &budget {
        Some(budget) => Recent::within(budget.recent),
        None => Recent::default(),
    };
    let next = Next::default();
    let reloader = Reloader {
        settings,
        config: config.clone(),
        schema,
        input: serving.input.clone(),
        decoding,
        metrics: metrics.clone(),
        status: status.clone(),
        next: next.clone(),
        stop: shutdown.clone(),
    };
    // Ends with the process.
    named("reloader", move || reloader.run(&hangups));
    let shown = Shown {
        recent: recent.clone(),
        metrics: metrics.clone(),
        status: status.clone(),
    };
    let (address, http) = serve(&config.http, connections, shown, &done)?;
    tracing::info!(%address, tls = config.http.tls.is_some(), "serving /livez /readyz /metrics /status and the triage page at /");

    let connected = connect(&config, &metrics, &status, shutdown);
    let (source, sink) = match connected {
        Ok(connected) => connected,
        Err(failure) => {
            done.request();
            return Err(failure);
        }
    };
    let stages = Stages {
        source,
        sink,
        serving,
        lasting: Lasting {
            batch: config.batch,
            output: config.output,
            transaction_window: config.kafka.guarantee.window(),
            drain_timeout: config.kafka.drain_timeout,
            in_flight_share: budget.map_or(usize::MAX, |budget| budget.batches() as usize),
            traces,
            metrics: metrics.clone(),
            recent,
            status,
            next,
        },
    };
    let stop = shutdown.clone();
    let pipeline = named("intake", move || pipeline::run(stages, &stop));
    Ok(Daemon {
        metrics,
        address,
        pipeline,
        http,
        done,
    })
}

impl Daemon {
    /// Waits until the pipeline has ended and HTTP with it.
    ///
    /// # Errors
    /// Why the pipeline ended, if not by request.
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

/// Gives each part its share of the memory, and what pictures are decoded in.
fn share(config: &mut Config, budget: Option<&Budget>, metrics: &Metrics) -> Room {
    let Some(budget) = budget else {
        tracing::warn!(
            "neither memory.limit nor a cgroup nor the system says how much memory there is: nothing is held to a budget"
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
    config.pictures.limits.memory = budget.decoding;
    Room::of(budget.decoding)
}

/// What makes spans, if the settings say where to.
fn traces(config: &Config, metrics: &Metrics) -> Result<Option<Traces>, Failure> {
    let Some(settings) = &config.traces else {
        return Ok(None);
    };
    let spans = Spans::to(&settings.endpoint, metrics.trace_spans_lost.clone())
        .map_err(|problem| Failure::config(format!("telemetry.otlp_endpoint: {problem}")))?;
    let (ratio, group_id) = (settings.sample_ratio, &config.kafka.group_id);
    Ok(Some(Traces::new(spans, ratio, group_id, &config.output)))
}

/// The place for maps, a folder by its whole path and there.
///
/// # Errors
/// It is no folder.
pub fn media_folder(output: &Output) -> Result<Option<Media>, Failure> {
    let Some(Media::Folder(folder)) = &output.media else {
        return Ok(output.media.clone());
    };
    let problem = |what: String| Failure::config(format!("output.media_dir = {folder:?}: {what}"));
    let whole = folder.canonicalize().map_err(|e| problem(e.to_string()))?;
    if !whole.is_dir() {
        return Err(problem("it is not a folder".to_owned()));
    }
    pipeline::probe_folder(&whole).map_err(|e| problem(e.to_string()))?;
    Ok(Some(Media::Folder(whole)))
}

/// Takes away the drafts of maps that a predecessor left that was killed.
fn sweep(output: &Output) {
    let Some(Media::Folder(folder)) = &output.media else {
        return;
    };
    match pipeline::sweep_folder(folder) {
        Ok(0) => {}
        Ok(drafts) => tracing::info!(drafts, "unfinished maps in output.media_dir are removed"),
        Err(e) => tracing::warn!("output.media_dir: unfinished maps cannot be looked for: {e}"),
    }
}

/// The topics that the settings have it write to.
pub fn written_topics(output: &Output) -> Vec<&str> {
    let mut topics = vec![
        output.anomalies_topic.as_str(),
        output.dead_letter_topic.as_str(),
    ];
    topics.extend(output.scores_topic.as_deref());
    if let Some(Media::Topic(topic)) = &output.media {
        topics.push(topic);
    }
    topics
}

fn connect(
    config: &Config,
    metrics: &Metrics,
    status: &Status,
    stop: &Shutdown,
) -> Result<(Source, Sink), Failure> {
    let topics = written_topics(&config.output);
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

/// HTTP, on a thread of its own with a small runtime.
fn serve(
    settings: &config::Http,
    connections: usize,
    shown: Shown,
    done: &Shutdown,
) -> Result<(SocketAddr, JoinHandle<()>), Failure> {
    let tls = settings.tls.clone().map(Tls::load).transpose();
    let tls = tls.map_err(Failure::config)?;
    let listen = settings.listen;
    let listener = TcpListener::bind(listen)
        .map_err(|e| Failure::config(format!("http.listen = \"{listen}\": {e}")))?;
    let address = listener.local_addr().map_err(Failure::internal)?;
    if settings.token.is_none() && !http::is_loopback(address) {
        tracing::warn!(
            "/metrics and /status are open to whoever reaches {address}, and the triage page shows no records: set http.token, or a loopback address as http.listen"
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::internal)?;
    let access = Access::new(settings.token.clone(), address);
    let done = done.clone();
    let thread = named("http", move || {
        runtime.block_on(async {
            let served = http::serve(listener, connections, tls, access, shown, done).await;
            if let Err(e) = served {
                tracing::error!("HTTP: {e}");
            }
        });
    });
    Ok((address, thread))
}

fn named<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .expect("the system gives a thread")
}
