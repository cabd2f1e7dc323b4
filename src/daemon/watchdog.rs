//! A bundle is loaded on a thread of its own, because what is in it decides how long that takes: the wait for it ends at a deadline,
//! and at a stop. What is still at work then is told to end. If it cannot, it is left behind until the process ends.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::config::{Config, Inference};
use crate::onnx::{self, Interrupt};
use crate::shutdown::Shutdown;

use crate::failure::Failure;

/// Threads that load a bundle now, those left behind among them.
static AT_WORK: AtomicUsize = AtomicUsize::new(0);
static IN_USE: AtomicBool = AtomicBool::new(false);
/// With so many left behind, no more are begun.
const MOST_LEFT_BEHIND: usize = 2;
/// How long one that was told to end may take.
const GRACE: Duration = Duration::from_secs(5);
/// How long it may take to read settings.
const SETTINGS_WITHIN: Duration = Duration::from_secs(10);
/// How often a wait looks for a stop.
const LOOK_UP: Duration = Duration::from_millis(50);

/// Whether one is at work, or what it gave is being put to use.
pub fn is_at_work() -> bool {
    AT_WORK.load(Ordering::SeqCst) > 0 || IN_USE.load(Ordering::SeqCst)
}

/// Says so until it is dropped.
pub struct InUse;

impl InUse {
    pub fn begin() -> InUse {
        IN_USE.store(true, Ordering::SeqCst);
        InUse
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        IN_USE.store(false, Ordering::SeqCst);
    }
}

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
    let (bundle, wanted, interrupt) = (dir.to_owned(), inference.clone(), Interrupt::default());
    let told = interrupt.clone();
    let work = move || onnx::load_unless(&bundle, &wanted, max_records, &told);
    let bundle = dir.display();
    match within(limit, stop, || interrupt.request(), work) {
        Ok(loaded) => Ok(loaded?),
        Err(End::Stopped) => Err(Failure::stopped("stopped while the model was loading")),
        Err(End::Panicked) => Err(panicked(dir)),
        Err(End::NotBegun) => Err(Failure::internal(format!(
            "bundle {bundle} is not read: {MOST_LEFT_BEHIND} earlier attempts still hang and cannot be ended. Restart residuald"
        ))),
        Err(End::TooLate { left_behind }) => {
            let left = if left_behind {
                ". It cannot be ended and keeps its thread until residuald ends"
            } else {
                ""
            };
            Err(Failure::data(format!(
                "bundle {bundle} refused: it was not loaded and proved within {limit:?} (model.load_timeout){left}. \
                 Its graph may never end; for a large model raise model.load_timeout"
            )))
        }
    }
}

/// Reads the settings again with `read`: their files may be pipes that nobody writes to.
///
/// # Errors
/// What reading fails with; that it took too long, panicked or was stopped.
pub fn settings(
    read: impl FnOnce() -> Result<Config, Failure> + Send + 'static,
    stop: &Shutdown,
) -> Result<Config, Failure> {
    let problem =
        |what: &str| Failure::config(format!("the settings cannot be read again: {what}"));
    match within(SETTINGS_WITHIN, stop, || {}, read) {
        Ok(settings) => settings,
        Err(End::Stopped) => Err(Failure::stopped("stopped while the settings were read")),
        Err(End::Panicked) => Err(problem("that panicked, which is a bug, please report it")),
        Err(End::NotBegun) => Err(problem(
            "two earlier attempts still hang. Restart residuald",
        )),
        Err(End::TooLate { .. }) => Err(problem("a file of theirs does not end")),
    }
}

/// Why there is no result.
#[derive(Debug, PartialEq)]
enum End {
    TooLate { left_behind: bool },
    Stopped,
    Panicked,
    NotBegun,
}

/// Does `work` on a thread of its own. If that has to end before its time, `interrupt` is called.
fn within<T: Send + 'static>(
    limit: Duration,
    stop: &Shutdown,
    interrupt: impl FnOnce(),
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, End> {
    if AT_WORK.load(Ordering::SeqCst) >= MOST_LEFT_BEHIND {
        return Err(End::NotBegun);
    }
    let done = begin(work);
    let end = match wait(&done, Instant::now() + limit, stop) {
        Ok(result) => return Ok(result),
        Err(end) => end,
    };
    if end == End::Panicked {
        return Err(end);
    }
    interrupt();
    let left_behind = matches!(done.recv_timeout(GRACE), Err(RecvTimeoutError::Timeout));
    Err(match end {
        End::TooLate { .. } => End::TooLate { left_behind },
        end => end,
    })
}

fn wait<T>(done: &Receiver<T>, deadline: Instant, stop: &Shutdown) -> Result<T, End> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match done.recv_timeout(left.min(LOOK_UP)) {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Disconnected) => return Err(End::Panicked),
            Err(RecvTimeoutError::Timeout) if stop.is_requested() => return Err(End::Stopped),
            Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                return Err(End::TooLate { left_behind: false });
            }
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

fn begin<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (done, result) = sync_channel(1);
    let at_work = AtWork::begin();
    let work = move || {
        let worked = work();
        drop(at_work);
        // Nobody waits any more for what comes too late.
        let _ = done.send(worked);
    };
    let thread = thread::Builder::new().name("loader".to_owned());
    thread.spawn(work).expect("the system gives a thread");
    result
}

/// What to say of a panic while a bundle is loaded, whose own words are in the log.
pub fn panicked(dir: &Path) -> Failure {
    Failure::internal(format!(
        "bundle {} refused: loading it panicked, see the lines above. This is a bug, please report it",
        dir.display()
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const SHORT: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_secs(600);

    /// One test, since the count is one for the process.
    #[test]
    fn what_hangs_is_given_up_and_left_behind_until_there_are_too_many() {
        let stop = Shutdown::default();
        assert_eq!(within(LONG, &stop, || {}, || 1), Ok(1));
        let panics = || -> u8 { panic!("on purpose") };
        assert_eq!(within(LONG, &stop, || {}, panics), Err(End::Panicked));
        wait_until_nobody_is_at_work();

        // One that ends when it is told to.
        let (tell, told) = channel::<()>();
        let obedient = move || told.recv().is_ok();
        let interrupt = || tell.send(()).unwrap();
        let late = End::TooLate { left_behind: false };
        assert_eq!(within(SHORT, &stop, interrupt, obedient), Err(late));

        // Those that do not: the next is begun beside one of them, not beside two.
        let mut ends = Vec::new();
        for _ in 0..MOST_LEFT_BEHIND {
            let (end, ended) = channel::<()>();
            ends.push(end);
            let hangs = move || ended.recv().is_ok();
            let late = End::TooLate { left_behind: true };
            assert_eq!(within(SHORT, &stop, || {}, hangs), Err(late));
        }
        assert_eq!(within(LONG, &stop, || {}, || 1), Err(End::NotBegun));
        assert!(is_at_work());
        drop(ends);
        wait_until_nobody_is_at_work();
        assert_eq!(within(LONG, &stop, || {}, || 1), Ok(1));

        stop.request();
        let (end, ended) = channel::<()>();
        let hangs = move || ended.recv().is_ok();
        let stopped = within(LONG, &stop, || drop(end), hangs);
        assert_eq!(stopped, Err(End::Stopped));
    }

    fn wait_until_nobody_is_at_work() {
        while is_at_work() {
            thread::sleep(SHORT);
        }
    }
}
