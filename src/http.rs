//! `/livez`, `/readyz`, `/metrics`, `/status`, `/log-level` and the triage page, over TLS and behind a token if so configured.

mod log_level;
mod tls;
mod triage;

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use axum_server::Handle;
use axum_server::tls_openssl::OpenSSLAcceptor;
use openssl::sha::sha256;

use crate::config::Secret;
use crate::metrics::Metrics;
use crate::recent::Recent;
use crate::shutdown::Shutdown;
use crate::status::Status;
pub use tls::{Tls, TlsError};

/// How long a client may take to shake hands, and then to bring a request: who brings none holds no connection.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// How long open connections may hold up the end.
const GRACE: Duration = Duration::from_secs(1);
/// Open without the token: an orchestrator's probe has none.
const PROBES: [&str; 2] = ["/livez", "/readyz"];

/// Serves until the last stage is done: probes go on answering while the pipeline drains.
///
/// # Errors
/// Whatever the listener meets.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Tls>,
    token: Option<Secret>,
    recent: Recent,
    metrics: Metrics,
    status: Status,
    done: Shutdown,
) -> std::io::Result<()> {
    // Records and the log's level are nothing for whoever happens to reach the port.
    let closed = token.is_none() && !is_loopback(listener.local_addr()?);
    let mut log_level = log_level::routes();
    if closed {
        log_level = log_level.layer(middleware::from_fn(refuse));
    }
    let mut app = Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(expose))
        .route("/status", get(report))
        .with_state((metrics.clone(), status.clone()))
        .merge(log_level)
        .merge(triage::routes(recent, metrics, status, closed));
    if let Some(token) = token {
        app = app.layer(middleware::from_fn_with_state(token, authorise));
    }
    let app = app.into_make_service();

    let handle = Handle::new();
    let mut server = axum_server::from_tcp(listener)?
        .handle(handle.clone())
        .first_request_timeout(REQUEST_WITHIN)
        .accept_error_handler(complain);
    server
        .http_builder()
        .http1()
        .header_read_timeout(REQUEST_WITHIN);
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

/// Whether only this machine reaches the address.
pub fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// A client that spoils its own connection is no news; that none can be had is.
fn complain(client: Option<&SocketAddr>, error: &std::io::Error) {
    match client {
        Some(client) => tracing::debug!(%client, "HTTP: {error}"),
        None => tracing::warn!("HTTP: no connection can be accepted: {error}"),
    }
}

/// Lets a request pass that brings the token or asks for what is open.
async fn authorise(State(token): State<Secret>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let probe = PROBES.contains(&path) && !is_verbose(request.uri());
    let open = probe || triage::OPEN.contains(&path);
    if open || brings(&token, request.headers()) {
        return next.run(request).await;
    }
    let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
    let how = "send the token of http.token: Authorization: Bearer TOKEN\n";
    (StatusCode::UNAUTHORIZED, challenge, how).into_response()
}

async fn refuse(_: Request, _: Next) -> Response {
    let why = "only on a loopback address or with http.token\n";
    (StatusCode::FORBIDDEN, why).into_response()
}

fn brings(token: &Secret, headers: &HeaderMap) -> bool {
    let value = headers.get(header::AUTHORIZATION);
    let Some((scheme, brought)) = value.and_then(|v| v.to_str().ok()?.split_once(' ')) else {
        return false;
    };
    // By hashes of one length, in constant time: how long it takes tells nothing of the token.
    let (expected, brought) = (
        sha256(token.reveal().as_bytes()),
        sha256(brought.trim().as_bytes()),
    );
    scheme.eq_ignore_ascii_case("bearer") && openssl::memcmp::eq(&expected, &brought)
}

type Shared = State<(Metrics, Status)>;

/// With `?verbose` it names partitions and what they wait for, which is not for everybody.
fn is_verbose(uri: &Uri) -> bool {
    let query = uri.query().unwrap_or_default();
    let mut names = query.split('&').map(|pair| pair.split('=').next());
    names.any(|name| name == Some("verbose"))
}

async fn ready(State((_, status)): Shared, uri: Uri) -> (StatusCode, String) {
    let waiting_for = status.waiting_for();
    let (code, mut text) = if waiting_for.is_empty() {
        (StatusCode::OK, "ready\n".into())
    } else {
        let text = format!("waiting for the {}\n", waiting_for.join(", the "));
        (StatusCode::SERVICE_UNAVAILABLE, text)
    };
    if is_verbose(&uri) {
        for line in status.waiting_partitions() {
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
