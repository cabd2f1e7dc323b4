//! Sends spans to an OpenTelemetry collector by OTLP over HTTP. The SDK queues and sends spans on its own thread, so
//! callers never wait. Spans that do not fit into the queue, or that the collector refuses, are lost and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::http_client;
use async_trait::async_trait;
use opentelemetry::{Key, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanExporter, SpanProcessor,
};
use prometheus::IntCounter;
use ureq::Agent;
use ureq::tls::RootCerts;

/// The timeout of a request, including its retries.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The time at shutdown for sending the queued spans.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);
/// The maximum number of queued spans, which take about ten megabytes.
const QUEUE: usize = 16_384;
const SERVICE_NAME: Key = Key::from_static_str("service.name");

#[derive(Debug)]
pub struct Spans {
    processor: BatchSpanProcessor,
    /// The number of spans that are queued or being sent.
    waiting: Arc<AtomicUsize>,
    lost: IntCounter,
}

impl Spans {
    /// Starts sending to the collector at `endpoint`, which may be down. The request headers and the attributes of the
    /// service come from OpenTelemetry's environment variables.
    ///
    /// # Errors
    /// When `endpoint` or one of the variables is invalid.
    pub fn to(endpoint: &str, lost: IntCounter) -> Result<Spans, String> {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(Client::new())
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(TIMEOUT)
            .build()
            .map_err(|e| e.to_string())?;
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .build();
        let waiting = Arc::<AtomicUsize>::default();
        let exporter = Exporter {
            exporter,
            waiting: waiting.clone(),
            lost: lost.clone(),
        };
        let mut processor = BatchSpanProcessor::builder(exporter)
            .with_batch_config(config)
            .build();
        processor.set_resource(&resource());
        Ok(Spans {
            processor,
            waiting,
            lost,
        })
    }

    pub fn send(&self, span: SpanData) {
        // The span is dropped here, because the SDK would drop it without counting it.
        if self.waiting.load(Ordering::Relaxed) >= QUEUE {
            return self.lost.inc();
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.processor.on_end(span);
    }

    /// Sends the queued spans, within a short time limit.
    pub fn end(&self) {
        let _ = self.processor.shutdown_with_timeout(FLUSH_WITHIN);
    }
}

/// Returns the resource from OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME. The default name is residuald.
fn resource() -> Resource {
    let detected = Resource::builder().build();
    let name = detected.get(&SERVICE_NAME);
    let unknown = name.is_none_or(|name| name.as_str().starts_with("unknown_service"));
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let builder = Resource::builder().with_attribute(version);
    match unknown {
        true => builder.with_service_name("residuald").build(),
        false => builder.build(),
    }
}

/// Exports spans, and counts those that wait and those that are lost.
#[derive(Debug)]
struct Exporter {
    exporter: opentelemetry_otlp::SpanExporter,
    waiting: Arc<AtomicUsize>,
    lost: IntCounter,
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let exported = self.exporter.export(batch).await;
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
        if exported.is_err() {
            self.lost.inc_by(spans as u64);
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// The HTTP client of the exporter. It logs once when the collector fails, and once when it accepts spans again.
#[derive(Debug)]
struct Client {
    agent: Agent,
    fails: AtomicBool,
}

impl Client {
    fn new() -> Client {
        let agent = http_client::agent(RootCerts::PlatformVerifier, TIMEOUT)
            .build()
            .new_agent();
        Client {
            agent,
            fails: AtomicBool::new(false),
        }
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ureq::Error> {
        let response = self.agent.run(request.map(|body| body.to_vec()))?;
        let (head, mut body) = response.into_parts();
        let body = body.read_to_vec()?;
        Ok(Response::from_parts(head, body.into()))
    }

    fn fails(&self, problem: &str) {
        if !self.fails.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "telemetry.otlp_endpoint: {problem}; traces are lost until the collector accepts them"
            );
        }
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let uri = request.uri().clone();
        let sent = self.send(request);
        match &sent {
            Err(e) => self.fails(&format!("{uri}: {e}")),
            Ok(response) if !response.status().is_success() => {
                self.fails(&format!("{uri}: HTTP {}", response.status().as_u16()));
            }
            Ok(_) => {
                if self.fails.swap(false, Ordering::Relaxed) {
                    tracing::info!("telemetry.otlp_endpoint: the collector accepts traces again");
                }
            }
        }
        Ok(sent?)
    }
}
