//! The HTTP server for `/livez`, `/readyz`, `/metrics`, `/status`, `/log-level` and the triage page. TLS and a token
//! are optional.

mod access;
mod answers;
mod connections;
mod log_level;
mod tls;
mod triage;

use std::net::TcpListener;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::middleware;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use axum_server::tls_openssl::OpenSSLAcceptor;
use axum_server::{Handle, Server};

use crate::metrics::Metrics;
use crate::recent::Recent;
use crate::shutdown::Shutdown;
use crate::status::Status;
pub use access::{Access, is_loopback};
use connections::{Client, Listener};
pub use tls::{Tls, TlsError};

/// The time limit for the TLS handshake and for each request, so that an idle client does not hold a connection.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// How long open connections may delay the shutdown.
const GRACE: Duration = Duration::from_secs(1);
/// The bytes buffered per connection, roughly for the request line with headers and for the response. Longer requests
/// get 414 or 431.
const BUFFER: usize = 64 << 10;

/// The state that HTTP responses show.
#[derive(Clone)]
pub struct Shown {
    pub recent: Recent,
    pub metrics: Metrics,
    pub status: Status,
}

/// Routes all requests.
pub fn router(access: Access, shown: Shown) -> Router {
    Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(expose))
        .route("/status", get(report))
        .with_state((shown.metrics.clone(), shown.status.clone()))
        .merge(log_level::routes())
        .merge(triage::routes(shown))
        .layer(middleware::from_fn_with_state(access, access::check))
}

/// Serves at most `most` connections until the last stage is done, so that probes are answered while the pipeline
/// drains. Only HTTP/1 is offered, because idle HTTP/2 connections would not be closed, and nothing here needs HTTP/2.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    most: usize,
    tls: Option<Tls>,
    access: Access,
    shown: Shown,
    done: Shutdown,
) -> std::io::Result<()> {
    let listener = Listener::new(listener, most, shown.metrics.clone())?;
    let app = router(access, shown).into_make_service();
    let handle = Handle::new();
    let mut server = Server::<Client>::from_listener(listener)
        .http1_only()
        .handle(handle.clone())
        .first_request_timeout(REQUEST_WITHIN)
        .accept_error_handler(complain);
    server
        .http_builder()
        .http1()
        .header_read_timeout(REQUEST_WITHIN)
        .max_buf_size(BUFFER);
    tokio::spawn(async move {
        done.requested().await;
        handle.graceful_shutdown(Some(GRACE));
    });
    match tls {
        None => server.serve(app).await,
        Some(tls) => {
            let acceptor = OpenSSLAcceptor::new(tls.config()).handshake_timeout(REQUEST_WITHIN);
            tokio::spawn(tls.renew());
            server.acceptor(acceptor).serve(app).await
        }
    }
}

/// Logs the error of a client's connection at debug level. If the listener itself cannot accept connections, it logs a
/// warning.
fn complain(client: Option<&Client>, error: &std::io::Error) {
    if let Some(Client(client)) = client {
        tracing::debug!(%client, "HTTP: {error}");
    }
}

type Shared = State<(Metrics, Status)>;

/// Returns whether the request has `?verbose`. It adds details that not everyone may see: partitions and what they wait
/// for.
fn is_verbose(uri: &Uri) -> bool {
    let query = uri.query().unwrap_or_default();
    let mut names = query.split('&').map(|pair| pair.split('=').next());
    names.any(|name| name == Some("verbose"))
}

async fn ready(State((metrics, status)): Shared, uri: Uri) -> (StatusCode, String) {
    let waiting_for = status.waiting_for();
    let (code, mut text) = if waiting_for.is_empty() {
        (StatusCode::OK, "ready\n".into())
    } else {
        let text = format!("waiting for the {}\n", waiting_for.join(", the "));
        (StatusCode::SERVICE_UNAVAILABLE, text)
    };
    if is_verbose(&uri) {
        let missing = metrics.missing_topics().into_iter();
        let missing = missing
            .map(|topic| format!("topic {topic} does not exist, or residuald may not use it"));
        let silent = status.silent_brokers().into_iter();
        for line in silent.chain(missing).chain(status.waiting_partitions()) {
            text += &line;
            text.push('\n');
        }
    }
    (code, text)
}

async fn expose(State((metrics, _)): Shared) -> Response {
    let content_type = [(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)];
    (content_type, metrics.render()).into_response()
}

async fn report(State((metrics, status)): Shared) -> Json<serde_json::Value> {
    Json(status.render(&metrics))
}
