//! The stop request, which every thread can see. A second signal ends the process at once, even if a thread is stuck.

use std::io::{self, stderr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, bounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;
use tokio::sync::watch;

/// The exit code after a second signal.
const AT_ONCE: i32 = 130;
const SECOND_SIGNAL: &[u8] =
    b"second signal: stopping at once, without waiting for in-flight records\n";

/// A stop request, cloned into every stage. It cannot be taken back.
#[derive(Clone, Debug)]
pub struct Shutdown {
    requested: Arc<watch::Sender<bool>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Shutdown {
            requested: Arc::new(watch::Sender::new(false)),
        }
    }
}

impl Shutdown {
    pub fn request(&self) {
        self.requested.send_replace(true);
    }

    pub fn is_requested(&self) -> bool {
        *self.requested.borrow()
    }

    /// Resolves once a stop is requested.
    pub async fn requested(&self) {
        let mut seen = self.requested.subscribe();
        // The sender is part of `self`, so the wait cannot fail.
        let _ = seen.wait_for(|requested| *requested).await;
    }

    /// Makes SIGTERM and Ctrl-C request a stop, and makes the second signal end the process. The signal handler itself
    /// ends the process, so that a stuck thread cannot prevent it.
    ///
    /// # Errors
    /// When the system does not allow a signal handler.
    pub fn on_signals(&self) -> io::Result<()> {
        self.catch(&[SIGTERM, SIGINT]).map(drop)
    }

    /// Like [`Shutdown::on_signals`], but also delivers SIGHUP as a message. Several signals become one message if none
    /// of them has been received yet.
    ///
    /// # Errors
    /// As [`Shutdown::on_signals`].
    pub fn on_signals_and_hangups(&self) -> io::Result<Receiver<()>> {
        self.catch(&[SIGTERM, SIGINT, SIGHUP])
    }

    fn catch(&self, signals: &[i32]) -> io::Result<Receiver<()>> {
        let mut signals = Signals::new(signals)?;
        end_at_the_second()?;
        let stop = self.clone();
        let (hang_up, hangups) = bounded(1);
        let wait = move || {
            for signal in &mut signals {
                if signal == SIGHUP {
                    let _ = hang_up.try_send(());
                    continue;
                }
                stop.request();
                tracing::info!(
                    "stopping: draining records in flight; signal again to stop at once"
                );
            }
        };
        let thread = std::thread::Builder::new().name("signals".to_owned());
        thread.spawn(wait)?;
        Ok(hangups)
    }
}

/// Whether a stop signal has arrived. Global, like signals.
static SIGNALLED: AtomicBool = AtomicBool::new(false);

fn end_at_the_second() -> io::Result<()> {
    // The handler must be registered only once. Otherwise one signal would count as two.
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    if REGISTERED.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    let handler = || {
        if SIGNALLED.swap(true, Ordering::SeqCst) {
            write_if_possible();
            low_level::exit(AT_ONCE);
        }
    };
    for signal in [SIGTERM, SIGINT] {
        // SAFETY: the handler swaps an atomic and makes the system calls poll, write and _exit. All of them are safe in
        // a signal handler.
        unsafe { low_level::register(signal, handler) }?;
    }
    Ok(())
}

/// Writes the message only if that does not block. A stuck reader of standard error must not delay the exit.
fn write_if_possible() {
    let stderr = stderr();
    let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    if poll(&mut ready, Some(&at_once)) == Ok(1) && ready[0].revents().contains(PollFlags::OUT) {
        let _ = rustix::io::write(&stderr, SECOND_SIGNAL);
    }
}
