//! Open HTTP connections: limits their number and closes those that make no progress.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum_server::{AddrListener, Address};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Sleep, sleep, timeout};

use crate::metrics::{CLOSED_FOR_ROOM, CLOSED_SLOW, Metrics};

/// How long a client may take to read a response.
const TAKEN_WITHIN: Duration = Duration::from_secs(30);
/// How long a new connection is not closed, because its request is on the way.
const SPARED: Duration = Duration::from_millis(100);
/// How long a connection may take to close.
const GONE_WITHIN: Duration = Duration::from_millis(100);
/// The least time between two log lines about the same problem.
const QUIET: Duration = Duration::from_secs(60);

/// The address of a client.
#[derive(Clone, Copy, Debug)]
pub struct Client(pub SocketAddr);

impl Address for Client {
    type Stream = Connection;
    type Listener = Listener;
}

/// Accepts every connection. Above the limit, an older one is closed, so that a probe always gets through.
pub struct Listener {
    tcp: TcpListener,
    places: Places,
}

impl Listener {
    /// Serves a bound listener, with at most `most` open connections.
    ///
    /// # Errors
    /// When the runtime rejects the listener.
    pub fn new(tcp: std::net::TcpListener, most: usize, metrics: Metrics) -> io::Result<Listener> {
        tcp.set_nonblocking(true)?;
        Ok(Listener {
            tcp: TcpListener::from_std(tcp)?,
            places: Places(Arc::new(Shared {
                most,
                metrics,
                freed: Notify::new(),
                table: Mutex::default(),
            })),
        })
    }
}

impl AddrListener<Connection, Client> for Listener {
    async fn bind_to(_: Client) -> io::Result<Listener> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn accept_stream(&self) -> io::Result<(Connection, Client)> {
        let accepted = self.tcp.accept().await;
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(problem) => {
                // The process is probably out of file descriptors.
                self.places.close_one(&problem.to_string());
                return Err(problem);
            }
        };
        let (place, ended) = self.places.take(address.ip());
        self.places.make_room().await;
        let connection = Connection {
            place,
            stream,
            ended: Some(ended),
            taking: None,
        };
        Ok((connection, Client(address)))
    }

    fn get_local_addr(&self) -> io::Result<Client> {
        self.tcp.local_addr().map(Client)
    }
}

#[derive(Clone)]
struct Places(Arc<Shared>);

struct Shared {
    most: usize,
    metrics: Metrics,
    /// Notified when a connection has closed.
    freed: Notify,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next: u64,
    open: BTreeMap<u64, Open>,
    /// When the lack of room was last logged, and the number of connections closed since then.
    logged: Option<Instant>,
    not_logged: u64,
}

struct Open {
    client: IpAddr,
    since: Instant,
    /// When bytes were last read or written.
    active: Instant,
    /// Closes the connection; `None` once it was used.
    end: Option<oneshot::Sender<()>>,
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, client: IpAddr) -> (Place, oneshot::Receiver<()>) {
        let (end, ended) = oneshot::channel();
        let mut table = self.lock();
        table.next += 1;
        let number = table.next;
        let now = Instant::now();
        let open = Open {
            client,
            since: now,
            active: now,
            end: Some(end),
        };
        table.open.insert(number, open);
        let place = Place {
            places: self.clone(),
            number,
        };
        (place, ended)
    }

    /// Closes connections until the limit is met, and waits until they are closed. Meanwhile, new connections wait in
    /// the system's accept queue.
    async fn make_room(&self) {
        while self.lock().open.len() > self.0.most {
            match self.close_one("all connections are in use") {
                Closed::One => {
                    // If the connection does not close in time, the loop closes another one.
                    let _ = timeout(GONE_WITHIN, self.0.freed.notified()).await;
                }
                Closed::NoneYet(wait) => sleep(wait).await,
                Closed::None => return,
            }
        }
    }

    fn close_one(&self, why: &str) -> Closed {
        let mut table = self.lock();
        let closed = table.close_one();
        if matches!(closed, Closed::One) {
            let count = &self.0.metrics.http_connections_closed;
            count.with_label_values(&[CLOSED_FOR_ROOM]).inc();
            table.log_no_room(why, self.0.most);
        }
        closed
    }
}

/// The result of closing a connection.
enum Closed {
    One,
    /// All connections are new. One of them may be closed after this time.
    NoneYet(Duration),
    None,
}

impl Table {
    /// Closes the least active connection of the client that has the most connections.
    fn close_one(&mut self) -> Closed {
        let staying = || self.open.iter().filter(|(_, open)| open.end.is_some());
        let mut of_client = HashMap::<IpAddr, usize>::new();
        for (_, open) in staying() {
            *of_client.entry(open.client).or_default() += 1;
        }
        let is_new = |open: &Open| open.since.elapsed() < SPARED;
        let first = staying()
            .filter(|(_, open)| !is_new(open))
            .max_by_key(|(_, open)| (of_client[&open.client], Reverse(open.active)));
        let Some((&number, _)) = first else {
            let oldest = staying().map(|(_, open)| open.since.elapsed()).max();
            return oldest.map_or(Closed::None, |age| {
                Closed::NoneYet(SPARED.saturating_sub(age))
            });
        };
        let end = self.open.get_mut(&number).and_then(|open| open.end.take());
        // An error means that the connection has closed by itself, which makes room as well.
        end.map(|end| end.send(()));
        Closed::One
    }

    fn log_no_room(&mut self, why: &str, most: usize) {
        self.not_logged += 1;
        if self.logged.is_some_and(|logged| logged.elapsed() < QUIET) {
            return;
        }
        tracing::warn!(
            why,
            closed = self.not_logged,
            open = self.open.len(),
            most,
            "HTTP: no room for a new connection: closed the least active connection of the client with the most connections"
        );
        (self.logged, self.not_logged) = (Some(Instant::now()), 0);
    }
}

/// A connection's entry in the table, for as long as it is open.
struct Place {
    places: Places,
    number: u64,
}

impl Place {
    fn touch(&self) {
        if let Some(open) = self.places.lock().open.get_mut(&self.number) {
            open.active = Instant::now();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().open.remove(&self.number);
        self.places.0.freed.notify_one();
    }
}

/// A client's byte stream. Reads and writes fail when another client needs its place, or when a response is not read in
/// time.
pub struct Connection {
    // This is the first field, so that the descriptor is closed before the place is freed.
    stream: TcpStream,
    place: Place,
    /// Resolves when the connection must close. `None` afterwards.
    ended: Option<oneshot::Receiver<()>>,
    /// A timer that runs while the client blocks a write.
    taking: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    /// Fails if the connection must close.
    fn check_open(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let ended = self.ended.as_mut().map(|ended| Pin::new(ended).poll(cx));
        if ended.is_some_and(|ended| ended.is_pending()) {
            return Ok(());
        }
        self.ended = None;
        let wanted = "closed to make room for another connection";
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, wanted))
    }

    /// Handles the result of a write. Starts the time limit if the write is blocked.
    fn written(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => {
                self.place.touch();
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => {
                let taking = &mut self.taking;
                let taking = taking.get_or_insert_with(|| Box::pin(sleep(TAKEN_WITHIN)));
                std::task::ready!(taking.as_mut().poll(cx));
                let closed = &self.place.places.0.metrics.http_connections_closed;
                closed.with_label_values(&[CLOSED_SLOW]).inc();
                tracing::info!(
                    "HTTP: a client did not read its response within {TAKEN_WITHIN:?}: closed its connection"
                );
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_open(cx)?;
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.place.touch();
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_open(cx)?;
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_open(cx)?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Does nothing, because TCP does not buffer here.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.taking = None;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
