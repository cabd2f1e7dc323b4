//! Limits on responses: the number built at once, the bytes that clients have not read, and the number of live streams.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

/// The number of responses built at once, each on a thread. It is small, because scoring needs the cores.
const MADE: usize = 2;
/// The number of responses that may wait to be built, including those being built.
const WAITING: usize = 16;
/// The limit for responses that clients have not read yet, in KiB.
const UNTAKEN: usize = 64 << 10;
/// The number of live streams. A stream lasts until the client or the daemon ends.
const STREAMS: usize = 32;
/// The bytes of a response that are handed over at once.
const PIECE: usize = 64 << 10;

#[derive(Clone)]
pub struct Answers {
    making: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    untaken: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

/// A complete response body and its content type.
pub struct Answer<B> {
    pub kind: &'static str,
    pub bytes: B,
}

impl Answers {
    pub fn new() -> Answers {
        let permits = |number| Arc::new(Semaphore::new(number));
        Answers {
            making: permits(MADE),
            waiting: permits(WAITING),
            untaken: permits(UNTAKEN),
            streams: permits(STREAMS),
        }
    }

    /// Builds a response on a thread, in turn. `make` returns `None` if the content is no longer kept.
    pub async fn make<F>(&self, make: F) -> Response
    where
        F: FnOnce() -> Option<Answer<Vec<u8>>> + Send + 'static,
    {
        let Ok(waiting) = self.waiting.clone().try_acquire_owned() else {
            return later("too many requests are waiting");
        };
        let Ok(turn) = self.making.clone().acquire_owned().await else {
            return later("the daemon is stopping");
        };
        // The thread continues and keeps its permit even if the client disconnects.
        let made = spawn_blocking(move || {
            let _held = (waiting, turn);
            make()
        });
        match made.await {
            Ok(Some(answer)) => self.send(answer),
            Ok(None) => gone(),
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    }

    /// Sends a response, unless too many bytes of other responses are unread.
    pub fn send(&self, answer: Answer<impl AsRef<[u8]> + Send + 'static>) -> Response {
        let length = answer.bytes.as_ref().len();
        let size = length.div_ceil(1024).min(UNTAKEN) as u32;
        let Ok(held) = self.untaken.clone().try_acquire_many_owned(size) else {
            return later("64 MiB of responses are waiting for slow clients");
        };
        let bytes = Bytes::from_owner(Held {
            bytes: answer.bytes,
            _held: held,
        });
        let pieces = stream::unfold(bytes, async |mut rest| {
            let piece = rest.split_to(rest.len().min(PIECE));
            (!piece.is_empty()).then_some((Ok::<_, std::io::Error>(piece), rest))
        });
        let headers = [
            (header::CONTENT_TYPE, answer.kind.to_owned()),
            (header::CONTENT_LENGTH, length.to_string()),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        ];
        (headers, Body::from_stream(pieces)).into_response()
    }

    /// Returns a permit for one more live stream, if one is left.
    pub fn stream(&self) -> Option<OwnedSemaphorePermit> {
        self.streams.clone().try_acquire_owned().ok()
    }
}

/// A part of a response. Its bytes count as unread as long as this value exists.
struct Held<B> {
    bytes: B,
    _held: OwnedSemaphorePermit,
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for Held<B> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

pub fn no_stream() -> Response {
    later("32 pages already show the live stream: close one of them")
}

pub fn gone() -> Response {
    (StatusCode::NOT_FOUND, "no longer kept in memory\n").into_response()
}

fn later(why: &str) -> Response {
    let after = [(header::RETRY_AFTER, "5")];
    let why = format!("{why}; try again\n");
    (StatusCode::TOO_MANY_REQUESTS, after, why).into_response()
}
