//! Bounds on answers: how many are made at once, how much of them waits for clients to take it, how many never end.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

/// Answers that are made at once, each on a thread: the scorers want the cores.
const MADE: usize = 2;
/// Those that wait to be made, the ones being made included.
const WAITING: usize = 16;
/// KiB of answers that clients have not taken yet.
const UNTAKEN: usize = 64 << 10;
/// Live streams, which end only with the client or the daemon.
const STREAMS: usize = 32;
/// Bytes of an answer that are handed over at once.
const PIECE: usize = 64 << 10;

#[derive(Clone)]
pub struct Answers {
    making: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    untaken: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

/// Whole bytes of one content type.
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

    /// Makes an answer on a thread, in its turn; none if what it would show is no longer kept.
    pub async fn make<F>(&self, make: F) -> Response
    where
        F: FnOnce() -> Option<Answer<Vec<u8>>> + Send + 'static,
    {
        let Ok(waiting) = self.waiting.clone().try_acquire_owned() else {
            return later("too many requests wait for their answer");
        };
        let Ok(turn) = self.making.clone().acquire_owned().await else {
            return later("the daemon stops");
        };
        // The thread goes on when the client is gone, and keeps its turn.
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

    /// Sends bytes, unless clients leave too many of others untaken.
    pub fn send(&self, answer: Answer<impl AsRef<[u8]> + Send + 'static>) -> Response {
        let length = answer.bytes.as_ref().len();
        let size = length.div_ceil(1024).min(UNTAKEN) as u32;
        let Ok(held) = self.untaken.clone().try_acquire_many_owned(size) else {
            return later("clients are slow to take 64 MiB of answers");
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

    /// The right to one more live stream, if there is one.
    pub fn stream(&self) -> Option<OwnedSemaphorePermit> {
        self.streams.clone().try_acquire_owned().ok()
    }
}

/// Bytes that count as untaken for as long as they exist.
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
    later("32 pages show the stream already: close one")
}

pub fn gone() -> Response {
    (StatusCode::NOT_FOUND, "no longer kept\n").into_response()
}

fn later(why: &str) -> Response {
    let after = [(header::RETRY_AFTER, "5")];
    let why = format!("{why}; try again\n");
    (StatusCode::TOO_MANY_REQUESTS, after, why).into_response()
}
