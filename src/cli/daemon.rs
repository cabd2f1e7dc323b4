//! The daemon: model, HTTP, Kafka and pipeline, started in the order in which they can fail.

use std::net::{SocketAddr, TcpListener};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crate::config::{self, Config, Media, Output};
use crate::decode::{Decoder, Input};
use crate::http::{self, Tls, Triage};
use crate::kafka::{Sink, Source};
use crate::metrics::Metrics;
use crate::otlp::Spans;
use crate::pipeline::{self, PipelineError, Stages};
use crate::recent::Recent;
use crate::shutdown::Shutdown;
use crate::status::Status;

use super::failure::Failure;
use super::{input, model};

/// A daemon at work.
pub struct Daemon {
    pub metrics: Metrics,
    pub address: SocketAddr,
    pipeline: JoinHandle<Result<(), PipelineError>>,
    http: JoinHandle<()>,
    done: Shutdown,
}

/// Loads the model, serves HTTP, connects to Kafka, and starts the pipeline.
///
/// # Errors
/// The first thing that cannot be had.
pub fn start(config: Config, shutdown: &Shutdown) -> Result<Daemon, Failure> {
    let started = Instant::now();
    let mut config = config;
    config.output.media = media_folder(&config.output)?;
    let loaded = model::load(
        &config.model.bundle,
        &config.inference,
        config.batch.max_records,
        |_| config.threshold,
    )?;
    let provider = loaded.scorers[0].provider.as_str();
    let threshold = loaded.judge.threshold;
    let metrics = Metrics::new(threshold);
    metrics
        .expected_anomaly_ratio
        .set(loaded.judge.expected_anomaly_ratio());
    metrics.score_drift_ratio.set(1.0);
    let asked = config.inference.provider.as_str();
    metrics.provider_fallback.set(i64::from(provider != asked));
    let input = input::open(&config, &loaded.bundle, &metrics)?;
    let traces = traces(config.traces.as_ref())?;
    let model = loaded.model;
    metrics
        .model_info
        .with_label_values(&[&model.name, &model.version, &model.sha256, provider])
        .set(1.0);
    let status = Status::new(model.clone(), provider, threshold, started);
    status.model_is_warm();
    tracing::info!(
        model = model.name,
        version = model.version,
        sha256 = &model.sha256[..8],
        provider,
        threshold,
        golden_records = loaded.golden.records,
        workers = loaded.scorers.len(),
        "model ready"
    );

    let done = Shutdown::default();
    let recent = Recent::default();
    let triage = Triage {
        recent: recent.clone(),
        normal: loaded.judge.normal_shares(&metrics.score_buckets().0),
        reader: match &input {
            Input::Pictures(reader) => Some(reader.clone()),
            _ => None,
        },
    };
    let (address, http) = serve(&config.http, triage, &metrics, &status, shutdown, &done)?;
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
        decoder: Decoder::new(loaded.bundle.features(), input.clone()),
        input,
        scorers: loaded.scorers,
        judge: loaded.judge,
        model,
        sink,
        group_id: config.kafka.group_id,
        transaction_window: config.kafka.guarantee.window(),
        batch: config.batch,
        output: config.output,
        drain_timeout: config.kafka.drain_timeout,
        metrics: metrics.clone(),
        recent,
        status,
        traces,
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

/// Where the spans of traced records go, if the settings say so, and the share of the records that get a trace here.
fn traces(settings: Option<&config::Traces>) -> Result<Option<(Spans, f64)>, Failure> {
    let Some(config::Traces {
        endpoint,
        sample_ratio,
    }) = settings
    else {
        return Ok(None);
    };
    let spans = Spans::to(endpoint)
        .map_err(|problem| Failure::config(format!("telemetry.otlp_endpoint: {problem}")))?;
    Ok(Some((spans, *sample_ratio)))
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
    Ok(Some(Media::Folder(whole)))
}

fn connect(
    config: &Config,
    metrics: &Metrics,
    status: &Status,
    stop: &Shutdown,
) -> Result<(Source, Sink), Failure> {
    let output = &config.output;
    let mut topics = vec![
        output.anomalies_topic.as_str(),
        output.dead_letter_topic.as_str(),
    ];
    topics.extend(output.scores_topic.as_deref());
    if let Some(Media::Topic(topic)) = &output.media {
        topics.push(topic);
    }
    let source = Source::connect(&config.kafka, metrics.clone(), status.clone(), stop)?;
    let sink = Sink::connect(&config.kafka, &topics, stop)?;
    status.producer_is_connected();
    Ok((source, sink))
}

/// HTTP and signals, on a thread of their own with a small runtime.
fn serve(
    settings: &config::Http,
    triage: Triage,
    metrics: &Metrics,
    status: &Status,
    shutdown: &Shutdown,
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
    // Before the address is known: a stop may come at once.
    let context = runtime.enter();
    let signals = shutdown.clone().on_signals().map_err(Failure::internal)?;
    drop(context);
    let token = settings.token.clone();
    let (metrics, status, done) = (metrics.clone(), status.clone(), done.clone());
    let thread = named("http", move || {
        runtime.block_on(async {
            tokio::select! {
                served = http::serve(listener, tls, token, triage, metrics, status, done) => {
                    if let Err(e) = served {
                        tracing::error!("HTTP: {e}");
                    }
                }
                () = signals => {}
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
