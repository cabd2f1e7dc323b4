//! `/log-level`: reads and changes the log level while the daemon runs.

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::time::timeout;

use super::REQUEST_WITHIN;
use crate::config::log_filter;
use crate::telemetry;

/// The maximum number of bytes in a request: a level, or a list of levels by module.
const MOST: usize = 4096;

pub fn routes() -> Router {
    Router::new()
        .route("/log-level", get(show).put(change))
        .layer(DefaultBodyLimit::max(MOST))
}

async fn show() -> Response {
    match telemetry::log_level() {
        Some(filter) => format!("{filter}\n").into_response(),
        None => (
            StatusCode::NOT_FOUND,
            "logging was not started in this process\n",
        )
            .into_response(),
    }
}

async fn change(request: Request) -> Response {
    let body = timeout(REQUEST_WITHIN, String::from_request(request, &()));
    let body = match body.await {
        Ok(Ok(body)) => body,
        Ok(Err(refusal)) => return refusal.into_response(),
        Err(_) => {
            return (
                StatusCode::REQUEST_TIMEOUT,
                "the request body did not arrive in time\n",
            )
                .into_response();
        }
    };
    match log_filter::parse(body.trim()) {
        Ok(filter) => {
            telemetry::set_log_level(filter);
            show().await
        }
        Err(problem) => (StatusCode::BAD_REQUEST, format!("{problem}\n")).into_response(),
    }
}
