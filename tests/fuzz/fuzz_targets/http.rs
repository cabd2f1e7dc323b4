//! Requests as raw bytes, through HTTP/1 and the router. No response is a 5xx, contains the token or exceeds a size bound.
//!
//! The first byte of the input selects the access rule, whether the rest is a raw request or the parts of one,
//! whether a request built from parts carries the token, and whether the client then closes the connection.
#![no_main]

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::Response;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use libfuzzer_sys::fuzz_target;
use residuald::config::Secret;
use residuald::http::{Access, Shown, router};
use residuald::image::{FIELD, ImageReader, Limits};
use residuald::memory::Room;
use residuald::message::ModelId;
use residuald::metrics::Metrics;
use residuald::recent::{Anomaly, Recent};
use residuald::status::{InForce, Status};
use residuald::verdict::Severity;
use serde_json::json;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::runtime::Runtime;

const TOKEN: &str = "t0ken-s3cret";
const FROM_PARTS: u8 = 0x80;
const WITH_TOKEN: u8 = 0x40;
const HANGS_UP: u8 = 0x20;
/// No response is larger. The largest is the page's script.
const MOST_BYTES: usize = 64 << 10;
/// The paths that are served without the token.
const OPEN: [&str; 5] = ["/livez", "/readyz", "/", "/triage.css", "/triage.js"];
const VERDICT: &[u8] =
    br#"{"id":"in-0-1@01234567","anomaly_score":1.5,"record":{"amount":1},"severity":"critical"}"#;

thread_local! {
    static STATE: (Runtime, [Router; 3]) = {
        // The paused clock jumps ahead when every task waits, so timeouts take no real time.
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_time().start_paused(true).build().expect("a runtime");
        let rules = [
            Access::Token(Secret::new(TOKEN.into())),
            Access::Local,
            Access::Exposed,
        ];
        (runtime, rules.map(app))
    };
}

fn app(access: Access) -> Router {
    let pixels = json!({"height": 16, "width": 16, "channels": 3, "resize": "bilinear"});
    let pixels = serde_json::from_value(pixels).expect("pixels");
    let status = Status::new(
        InForce {
            model: ModelId {
                name: "m".into(),
                version: "1".into(),
                sha256: "0123456789".into(),
            },
            provider: "cpu",
            threshold: 1.0,
            segments: None,
            normal: vec![0.5, 0.5],
            reader: Some((
                ImageReader::new(pixels, FIELD, Limits::default()),
                Room::of(16 << 20),
            )),
        },
        std::time::Instant::now(),
    );
    status.model_is_warm();
    status.partitions_are_assigned(true);
    status.producer_is_connected();
    let recent = Recent::default();
    for image in [
        None,
        Some(&include_bytes!("../seeds/image/palette.png")[..]),
        Some(b"none"),
    ] {
        recent.add(Anomaly {
            severity: Severity::Critical,
            judged_ms: 1_700_000_000_000,
            verdict: VERDICT.into(),
            image: image.map(Into::into),
        });
    }
    let by_token = matches!(access, Access::Token(_));
    let shown = Shown {
        recent,
        metrics: Metrics::new(1.0),
        status,
    };
    router(access, shown).layer(middleware::from_fn_with_state(by_token, check))
}

async fn check(
    axum::extract::State(by_token): axum::extract::State<bool>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path().to_owned();
    let brought = format!("{:?}", request.headers()).contains(TOKEN);
    let response = next.run(request).await;
    let status = response.status();
    assert!(!status.is_server_error(), "{path}: {status}");
    if by_token && !brought && !OPEN.contains(&path.as_str()) {
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
    }
    response
}

/// A well-formed request, built from its head (target and headers), an empty line and its body.
fn well_formed(parts: &[u8], with_token: bool) -> Vec<u8> {
    let cut = parts.windows(2).position(|two| two == b"\n\n");
    let (head, body) = match cut {
        Some(at) => (&parts[..at], &parts[at + 2..]),
        None => (parts, &[][..]),
    };
    let mut lines = head.split(|byte| *byte == b'\n');
    let mut request = lines.next().unwrap_or_default().to_vec();
    request.extend_from_slice(b" HTTP/1.1\r\nHost: localhost\r\n");
    if with_token {
        request.extend_from_slice(format!("Authorization: Bearer {TOKEN}\r\n").as_bytes());
    }
    request.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    for line in lines {
        request.extend_from_slice(line);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    [&request, body].concat()
}

/// A client that sends `rest` and then either closes the connection or keeps it open in silence.
struct Client<'d> {
    rest: &'d [u8],
    hangs_up: bool,
}

impl AsyncRead for Client<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.rest.is_empty() && !self.hangs_up {
            return Poll::Pending;
        }
        let (now, later) = self.rest.split_at(self.rest.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.rest = later;
        Poll::Ready(Ok(()))
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    let request = match kind & FROM_PARTS {
        0 => rest.to_vec(),
        _ => well_formed(rest, kind & WITH_TOKEN != 0),
    };
    STATE.with(|(runtime, apps)| {
        let service = TowerToHyperService::new(apps[usize::from(kind % 3)].clone());
        let mut answer = Vec::new();
        runtime.block_on(async {
            let client = Client {
                rest: &request,
                hangs_up: kind & HANGS_UP != 0,
            };
            let client = TokioIo::new(tokio::io::join(client, &mut answer));
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .max_buf_size(64 << 10)
                .serve_connection(client, service);
            // By then every request has been answered.
            let _ = tokio::time::timeout(Duration::from_secs(15), served).await;
        });
        assert!(answer.len() <= (1 + request.len() / 16) * MOST_BYTES);
        let has = |text: &[u8]| text.windows(TOKEN.len()).any(|at| at == TOKEN.as_bytes());
        // The response to an unknown log level repeats it, so the token may appear if the request contained it.
        assert!(!has(&answer) || has(rest), "the token is in the answer");
    });
});
