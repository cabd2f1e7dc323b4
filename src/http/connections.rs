//! The connections that are open: no more than there is room for, and none that a client only holds.

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

/// How long a client may take to take an answer.
const TAKEN_WITHIN: Duration = Duration::from_secs(30);
/// A new connection keeps its place for so long: its request is on the way.
const SPARED: Duration = Duration::from_millis(100);
/// How long a connection that has to go may take to go.
const GONE_WITHIN: Duration = Duration::from_millis(100);
/// Between two lines of the log about the same.
const QUIET: Duration = Duration::from_secs(60);

/// Who is at the other end.
#[derive(Clone, Copy, Debug)]
pub struct Client(pub SocketAddr);

impl Address for Client {
    type Stream = Connection;
    type Listener = Listener;
}

/// Accepts every connection. One above the most costs another its place, so a probe always gets through.
pub struct Listener {
    tcp: TcpListener,
    places: Places,
}

impl Listener {
    /// # Errors
    /// The runtime does not take the listener.
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
                // Most likely the process has no descriptor left.
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
    /// A connection is gone.
    freed: Notify,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next: u64,
    open: BTreeMap<u64, Open>,
    /// When the log last said that there was no room, and how many were closed since.
    said: Option<Instant>,
    unsaid: u64,
}

struct Open {
    client: IpAddr,
    since: Instant,
    /// When the last bytes came or went.
    active: Instant,
    /// Ends the connection; none if it has to go already.
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

    /// Closes connections until there is a place for all, and waits for them to be gone. Meanwhile others wait in the
    /// system's queue.
    async fn make_room(&self) {
        while self.lock().open.len() > self.0.most {
            match self.close_one("all places are taken") {
                Closed::One => {
                    // One that is not gone in time is about to be answered: the next one goes too.
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
            table.say(why, self.0.most);
        }
        closed
    }
}

/// What came of closing one.
enum Closed {
    One,
    /// All are new; the first may be closed after this.
    NoneYet(Duration),
    None,
}

impl Table {
    /// Closes the least active connection of the client with the most.
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
        // One that is gone by itself has made room as well.
        end.map(|end| end.send(()));
        Closed::One
    }

    fn say(&mut self, why: &str, most: usize) {
        self.unsaid += 1;
        if self.said.is_some_and(|said| said.elapsed() < QUIET) {
            return;
        }
        tracing::warn!(
            why,
            closed = self.unsaid,
            open = self.open.len(),
            most,
            "HTTP: no room for a new connection: the least active one of the client with the most is closed"
        );
        (self.said, self.unsaid) = (Some(Instant::now()), 0);
    }
}

/// A connection's entry in the table, for as long as it is open.
struct Place {
    places: Places,
    number: u64,
}

impl Place {
    fn is_active(&self) {
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

/// A client's bytes. It fails once its place is wanted, or when an answer is not taken in time.
pub struct Connection {
    // First, so that the descriptor is free when the place is.
    stream: TcpStream,
    place: Place,
    /// Comes when it has to go; none once it did.
    ended: Option<oneshot::Receiver<()>>,
    /// Runs from when the client takes no more until all that was to be written is.
    taking: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    /// Fails when the connection has to go.
    fn stays(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let ended = self.ended.as_mut().map(|ended| Pin::new(ended).poll(cx));
        if ended.is_some_and(|ended| ended.is_pending()) {
            return Ok(());
        }
        self.ended = None;
        let wanted = "its place is wanted";
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, wanted))
    }

    /// What came of a write; one that waits may not wait for long.
    fn written(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => {
                self.place.is_active();
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
                    "HTTP: a client did not take its answer within {TAKEN_WITHIN:?}: its connection is closed"
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
        self.stays(cx)?;
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.place.is_active();
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
        self.stays(cx)?;
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stays(cx)?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// All is written: TCP itself has nothing to flush.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.taking = None;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
