//! `/log-level`: what is logged, to read and to change while the daemon runs.

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::telemetry;

pub fn routes() -> Router {
    Router::new().route("/log-level", get(show).put(change))
}

async fn show() -> Response {
    match telemetry::log_level() {
        Some(filter) => format!("{filter}\n").into_response(),
        None => (StatusCode::NOT_FOUND, "this process has no log\n").into_response(),
    }
}

async fn change(body: String) -> Response {
    match telemetry::filter(body.trim()) {
        Ok(filter) => {
            telemetry::set_log_level(filter);
            show().await
        }
        Err(problem) => (StatusCode::BAD_REQUEST, format!("{problem}\n")).into_response(),
    }
}
