//! `/livez`, `/readyz`, `/metrics` and `/status`.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics::Metrics;
use crate::shutdown::Shutdown;
use crate::status::Status;

/// Serves until the last stage is done: probes go on answering while the pipeline drains.
///
/// # Errors
/// Whatever the listener meets.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    status: Status,
    done: Shutdown,
) -> std::io::Result<()> {
    let app = Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(expose))
        .route("/status", get(report))
        .with_state((metrics, status));
    axum::serve(listener, app)
        .with_graceful_shutdown(async move { done.requested().await })
        .await
}

type Shared = State<(Metrics, Status)>;

async fn ready(State((_, status)): Shared) -> (StatusCode, String) {
    let waiting_for = status.waiting_for();
    if waiting_for.is_empty() {
        (StatusCode::OK, "ready\n".into())
    } else {
        let text = format!("waiting for the {}\n", waiting_for.join(", the "));
        (StatusCode::SERVICE_UNAVAILABLE, text)
    }
}

async fn expose(State((metrics, _)): Shared) -> Response {
    let content_type = [(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)];
    (content_type, metrics.render()).into_response()
}

async fn report(State((metrics, status)): Shared) -> Json<serde_json::Value> {
    Json(status.render(&metrics))
}
