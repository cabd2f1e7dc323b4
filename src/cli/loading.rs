//! A bundle is loaded on a thread of its own, because what is in it decides how long that takes: the wait for it ends at a deadline,
//! and at a stop. What is still at work then is told to end. If it cannot, it is left behind until the process ends.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::config::Inference;
use crate::onnx::{self, Interrupt, LoadError};
use crate::shutdown::Shutdown;

use super::failure::Failure;

/// Threads that load a bundle now, those left behind among them.
static AT_WORK: AtomicUsize = AtomicUsize::new(0);
/// With so many left behind, no more are begun.
const MOST_LEFT_BEHIND: usize = 2;
/// How long one that was told to end may take.
const GRACE: Duration = Duration::from_secs(3);
/// How often a wait looks for a stop.
const LOOK_UP: Duration = Duration::from_millis(50);

/// Whether a thread that loads a bundle is still at work.
pub fn is_at_work() -> bool {
    AT_WORK.load(Ordering::SeqCst) > 0
}

type Loaded = Result<onnx::Loaded, LoadError>;

/// [`onnx::load`] within `limit`, and only until a stop.
///
/// # Errors
/// What loading fails with; that it took too long, panicked or was stopped.
pub fn load(
    dir: &Path,
    inference: &Inference,
    max_records: usize,
    limit: Duration,
    stop: &Shutdown,
) -> Result<onnx::Loaded, Failure> {
    let bundle = dir.display();
    if AT_WORK.load(Ordering::SeqCst) >= MOST_LEFT_BEHIND {
        return Err(Failure::internal(format!(
            "bundle {bundle} is not read: {MOST_LEFT_BEHIND} earlier attempts to load a bundle still hang and cannot be ended. Restart residuald"
        )));
    }
    let interrupt = Interrupt::default();
    let loaded = start(dir, inference, max_records, interrupt.clone());
    match wait(&loaded, Instant::now() + limit, stop) {
        Ok(result) => return Ok(result?),
        Err(End::Panicked) => return Err(panicked(dir)),
        Err(End::Stopped) => {
            interrupt.request();
            let _ = loaded.recv_timeout(GRACE);
            return Err(Failure::stopped("stopped while the model was loading"));
        }
        Err(End::TooLate) => interrupt.request(),
    }
    let ended = !matches!(loaded.recv_timeout(GRACE), Err(RecvTimeoutError::Timeout));
    let left = if ended {
        ""
    } else {
        ". It cannot be ended and keeps its thread until residuald ends"
    };
    Err(Failure::data(format!(
        "bundle {bundle} refused: it was not loaded and proved within {limit:?} (model.load_timeout){left}. \
         Its graph may never end; for a large model raise model.load_timeout"
    )))
}

/// Why there is nothing.
enum End {
    TooLate,
    Stopped,
    Panicked,
}

fn wait(loaded: &Receiver<Loaded>, deadline: Instant, stop: &Shutdown) -> Result<Loaded, End> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match loaded.recv_timeout(left.min(LOOK_UP)) {
            Ok(loaded) => return Ok(loaded),
            Err(RecvTimeoutError::Disconnected) => return Err(End::Panicked),
            Err(RecvTimeoutError::Timeout) if stop.is_requested() => return Err(End::Stopped),
            Err(RecvTimeoutError::Timeout) if left.is_zero() => return Err(End::TooLate),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Counts a thread until it ends, whichever way.
struct AtWork;

impl AtWork {
    fn begin() -> AtWork {
        AT_WORK.fetch_add(1, Ordering::SeqCst);
        AtWork
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        AT_WORK.fetch_sub(1, Ordering::SeqCst);
    }
}

fn start(
    dir: &Path,
    inference: &Inference,
    max_records: usize,
    interrupt: Interrupt,
) -> Receiver<Loaded> {
    let (done, loaded) = sync_channel(1);
    let (dir, inference) = (dir.to_owned(), inference.clone());
    let at_work = AtWork::begin();
    let work = move || {
        let result = onnx::load_unless(&dir, &inference, max_records, &interrupt);
        drop(at_work);
        // Nobody waits any more for what comes too late.
        let _ = done.send(result);
    };
    let thread = thread::Builder::new().name("loader".to_owned());
    thread.spawn(work).expect("the system gives a thread");
    loaded
}

/// What to say of a panic while a bundle is loaded, whose own words are in the log.
pub fn panicked(dir: &Path) -> Failure {
    Failure::internal(format!(
        "bundle {} refused: loading it panicked, see the lines above. This is a bug, please report it",
        dir.display()
    ))
}
