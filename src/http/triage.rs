//! The triage page at `/` and what it asks for: numbers once a second, anomalies by page, pictures.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use futures_util::stream::{self, Stream};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::metrics::Metrics;
use crate::recent::{MOST, Recent, Wanted};
use crate::status::Status;
use crate::verdict::Severity;

/// How often the numbers come.
const EVERY: Duration = Duration::from_secs(1);
/// Anomalies at once, at most.
const PAGE: usize = 200;
/// The longer side of a picture.
const SIDE: usize = 640;
/// What the list leaves out, for it may be large.
const BULK: [&str; 3] = ["record", "heatmap", "reconstruction"];
/// Nothing is fetched from elsewhere and nothing runs but the page's own script.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Open without the token: they hold nothing but the page, which asks for it.
pub const OPEN: [&str; 3] = ["/", "/triage.css", "/triage.js"];

#[derive(Clone)]
struct Shown {
    recent: Recent,
    metrics: Metrics,
    status: Status,
}

/// `closed`: whoever comes may see the page, but no record and no number.
pub fn routes(recent: Recent, metrics: Metrics, status: Status, closed: bool) -> Router {
    let mut data = Router::new()
        .route("/events", get(events))
        .route("/anomalies", get(list))
        .route("/anomalies/{number}", get(one))
        .route("/anomalies/{number}/picture", get(picture));
    if closed {
        data = data.layer(middleware::from_fn(refuse));
    }
    Router::new()
        .route(
            "/",
            get(page("text/html", include_str!("triage/index.html"))),
        )
        .route(
            "/triage.css",
            get(page("text/css", include_str!("triage/triage.css"))),
        )
        .route(
            "/triage.js",
            get(page("text/javascript", include_str!("triage/triage.js"))),
        )
        .merge(data)
        .with_state(Shown {
            recent,
            metrics,
            status,
        })
}

fn page(
    kind: &'static str,
    content: &'static str,
) -> impl Fn() -> std::future::Ready<Response> + Clone {
    move || {
        let headers: [(HeaderName, String); 4] = [
            (header::CONTENT_TYPE, format!("{kind}; charset=utf-8")),
            (header::CONTENT_SECURITY_POLICY, POLICY.to_owned()),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
            (header::CACHE_CONTROL, "no-cache".to_owned()),
        ];
        std::future::ready((headers, content).into_response())
    }
}

/// Server-sent events: at once and then every second all numbers as JSON.
async fn events(State(shown): State<Shown>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let mut clock = tokio::time::interval(EVERY);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let stream = stream::unfold((shown, clock), |(shown, mut clock)| async move {
        clock.tick().await;
        let event = Event::default().data(numbers(&shown).to_string());
        Some((Ok(event), (shown, clock)))
    });
    Sse::new(stream).keep_alive(KeepAlive::default())
}

/// `/status`, and the distribution of the scores.
fn numbers(shown: &Shown) -> Value {
    let mut numbers = shown.status.render(&shown.metrics);
    let in_force = shown.status.in_force();
    let (bounds, counts) = shown.metrics.score_buckets();
    numbers["scores"] = json!({"bounds": bounds, "counts": counts, "normal": in_force.normal});
    numbers["drift"] = json!(shown.metrics.score_drift_ratio.get());
    numbers["expected_anomaly_ratio"] = json!(shown.metrics.expected_anomaly_ratio.get());
    numbers["pictures"] = json!(in_force.reader.is_some());
    numbers["latest"] = json!(shown.recent.latest());
    numbers["kept"] = json!(MOST);
    numbers
}

#[derive(Deserialize)]
struct Asked {
    severity: Option<String>,
    since_ms: Option<i64>,
    before: Option<u64>,
    limit: Option<usize>,
}

#[derive(Serialize)]
struct Listed {
    number: u64,
    judged_ms: i64,
    picture: bool,
    #[serde(flatten)]
    verdict: Map<String, Value>,
}

/// Newest first, without the bulk.
async fn list(State(shown): State<Shown>, Query(asked): Query<Asked>) -> Response {
    let severity = match asked.severity.as_deref() {
        None | Some("") => None,
        Some(name) => match Severity::ALL.into_iter().find(|s| s.as_str() == name) {
            Some(severity) => Some(severity),
            None => {
                return (StatusCode::BAD_REQUEST, "severity: warning or critical\n")
                    .into_response();
            }
        },
    };
    let found = shown.recent.find(Wanted {
        severity,
        since_ms: asked.since_ms.unwrap_or(0),
        before: asked.before.unwrap_or(u64::MAX),
        limit: asked.limit.unwrap_or(PAGE).min(PAGE),
    });
    let listed = found.into_iter().map(|(number, anomaly)| Listed {
        number,
        judged_ms: anomaly.judged_ms,
        picture: anomaly.picture.is_some(),
        verdict: without_bulk(&anomaly.verdict),
    });
    Json(listed.collect::<Vec<_>>()).into_response()
}

fn without_bulk(verdict: &[u8]) -> Map<String, Value> {
    // As raw values, so that a picture in base64 is not parsed only to be dropped.
    let fields: std::collections::BTreeMap<String, &RawValue> =
        serde_json::from_slice(verdict).unwrap_or_default();
    fields
        .into_iter()
        .filter(|(name, _)| !BULK.contains(&name.as_str()))
        .map(|(name, value)| (name, serde_json::from_str(value.get()).unwrap_or_default()))
        .collect()
}

/// The whole verdict as it was published.
async fn one(State(shown): State<Shown>, Path(number): Path<u64>) -> Response {
    match shown.recent.get(number) {
        None => gone(),
        Some(anomaly) => {
            let kind = [(header::CONTENT_TYPE, "application/json")];
            (kind, anomaly.verdict.to_vec()).into_response()
        }
    }
}

/// The picture that was judged, upright and small, as a JPEG.
async fn picture(State(shown): State<Shown>, Path(number): Path<u64>) -> Response {
    let payload = shown.recent.get(number).and_then(|a| a.picture);
    let (Some(payload), Some((reader, room))) = (payload, shown.status.in_force().reader) else {
        return gone();
    };
    // Decoding takes milliseconds, and this thread answers the probes.
    let make = move || reader.thumbnail(&payload, SIDE, |bytes| room.take(bytes));
    let made = tokio::task::spawn_blocking(make).await;
    match made {
        Ok(Ok(jpeg)) => ([(header::CONTENT_TYPE, "image/jpeg")], jpeg).into_response(),
        _ => gone(),
    }
}

async fn refuse(_: Request, _: Next) -> Response {
    let why = "records are shown on a loopback address or with http.token only\n";
    (StatusCode::FORBIDDEN, why).into_response()
}

fn gone() -> Response {
    (StatusCode::NOT_FOUND, "no longer kept\n").into_response()
}
