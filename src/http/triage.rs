//! The triage page at `/` and the data that it requests: numbers once per second, pages of anomalies, and images.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::Shown;
use super::answers::{Answer, Answers, gone, no_stream};
use crate::recent::{MOST, Wanted};
use crate::verdict::Severity;

/// How often the numbers are sent to the page.
const EVERY: Duration = Duration::from_secs(1);
/// The maximum number of anomalies per request.
const MOST_LISTED: usize = 200;
/// The longer side of an image shown, in pixels.
const SIDE: usize = 640;
/// Fields that the list leaves out because they may be large.
const BULK: [&str; 3] = ["record", "heatmap", "reconstruction"];
/// The content security policy. Nothing is fetched from other sites, and only the page's own script runs.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The files of the page itself. They need no token, because they hold no data and the page asks for the token.
pub const PAGE: [&str; 3] = ["/", "/triage.css", "/triage.js"];

type Asking = State<(Shown, Answers)>;

pub fn routes(shown: Shown) -> Router {
    Router::new()
        .route("/events", get(events))
        .route("/anomalies", get(list))
        .route("/anomalies/{number}", get(one))
        .route("/anomalies/{number}/image", get(image))
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
        .with_state((shown, Answers::new()))
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

/// Sends server-sent events: all numbers as JSON, at once and then every second.
async fn events(State((shown, answers)): Asking) -> Response {
    let Some(held) = answers.stream() else {
        return no_stream();
    };
    let mut clock = tokio::time::interval(EVERY);
    // A slow client gets the current numbers instead of those it missed.
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let stream = stream::unfold(
        (shown, clock, held),
        |(shown, mut clock, held)| async move {
            clock.tick().await;
            let event = Event::default().data(numbers(&shown).to_string());
            Some((Ok::<_, Infallible>(event), (shown, clock, held)))
        },
    );
    Sse::new(stream)
        .keep_alive(KeepAlive::default())
        .into_response()
}

/// Returns the content of `/status` with the score distribution.
fn numbers(shown: &Shown) -> Value {
    let mut numbers = shown.status.render(&shown.metrics);
    let in_force = shown.status.in_force();
    let (bounds, counts) = shown.metrics.score_buckets();
    numbers["scores"] = json!({"bounds": bounds, "counts": counts, "normal": in_force.normal});
    numbers["drift"] = json!(shown.metrics.score_drift_ratio.get());
    numbers["expected_anomaly_ratio"] = json!(shown.metrics.expected_anomaly_ratio.get());
    numbers["images"] = json!(in_force.reader.is_some());
    numbers["latest"] = json!(shown.recent.latest());
    numbers["kept"] = json!(MOST);
    numbers
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
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
    image: bool,
    #[serde(flatten)]
    verdict: Map<String, Value>,
}

/// Lists anomalies, newest first, without the large fields.
async fn list(State((shown, answers)): Asking, Query(asked): Query<Asked>) -> Response {
    let severity = match asked.severity.as_deref() {
        None | Some("") => None,
        Some(name) => match Severity::ALL.into_iter().find(|s| s.as_str() == name) {
            Some(severity) => Some(severity),
            None => {
                return (
                    StatusCode::BAD_REQUEST,
                    "severity: must be warning or critical\n",
                )
                    .into_response();
            }
        },
    };
    let wanted = Wanted {
        severity,
        since_ms: asked.since_ms.unwrap_or(0),
        before: asked.before.unwrap_or(u64::MAX),
        limit: asked.limit.unwrap_or(MOST_LISTED).min(MOST_LISTED),
    };
    answers
        .make(move || {
            let found = shown.recent.find(wanted).into_iter();
            let listed = found.map(|(number, anomaly)| Listed {
                number,
                judged_ms: anomaly.judged_ms,
                image: anomaly.image.is_some(),
                verdict: without_bulk(&anomaly.verdict),
            });
            let listed = serde_json::to_vec(&listed.collect::<Vec<_>>());
            Some(as_json(listed.expect("names and JSON values serialize")))
        })
        .await
}

fn as_json<B>(bytes: B) -> Answer<B> {
    Answer {
        kind: "application/json",
        bytes,
    }
}

fn without_bulk(verdict: &[u8]) -> Map<String, Value> {
    // Raw values avoid parsing a base64 image only to drop it.
    let fields: std::collections::BTreeMap<String, &RawValue> =
        serde_json::from_slice(verdict).unwrap_or_default();
    fields
        .into_iter()
        .filter(|(name, _)| !BULK.contains(&name.as_str()))
        .map(|(name, value)| (name, serde_json::from_str(value.get()).unwrap_or_default()))
        .collect()
}

/// Returns the whole verdict, as published.
async fn one(State((shown, answers)): Asking, Path(number): Path<u64>) -> Response {
    match shown.recent.get(number) {
        None => gone(),
        Some(anomaly) => answers.send(as_json(anomaly.verdict)),
    }
}

/// Returns the judged image as a small, upright JPEG.
async fn image(State((shown, answers)): Asking, Path(number): Path<u64>) -> Response {
    let payload = shown.recent.get(number).and_then(|a| a.image);
    let (Some(payload), Some((reader, room))) = (payload, shown.status.in_force().reader) else {
        return gone();
    };
    answers
        .make(move || {
            let jpeg = reader
                .thumbnail(&payload, SIDE, |bytes| room.take(bytes))
                .ok()?;
            Some(Answer {
                kind: "image/jpeg",
                bytes: jpeg,
            })
        })
        .await
}
