//! Loads a bundle on its own thread, because the bundle's contents decide how long loading takes. The wait ends at a
//! deadline or at a stop. The thread is then told to end. If it does not end, it is left behind until the process ends.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::config::{Config, InferenceSettings};
use crate::onnx::{self, Interrupt};
use crate::shutdown::Shutdown;

use crate::failure::Failure;

/// The number of threads that are loading a bundle, including threads left behind.
static AT_WORK: AtomicUsize = AtomicUsize::new(0);
static IN_USE: AtomicBool = AtomicBool::new(false);
/// The number of threads left behind at which no more loads are started.
const MOST_LEFT_BEHIND: usize = 2;
/// How long a thread may take to end after it was told to.
const GRACE: Duration = Duration::from_secs(5);
/// How long reading the settings may take.
const SETTINGS_WITHIN: Duration = Duration::from_secs(10);
/// How often a wait checks for a stop.
const STOP_CHECK: Duration = Duration::from_millis(50);

/// Returns whether a bundle is being loaded, or a loaded bundle is being put into use.
pub fn is_at_work() -> bool {
    AT_WORK.load(Ordering::SeqCst) > 0 || IN_USE.load(Ordering::SeqCst)
}

/// While this value exists, [`is_at_work`] returns true.
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

/// Like [`onnx::load`], but gives up after `limit` or at a stop.
///
/// # Errors
/// When loading fails, takes too long, panics, or is stopped.
pub fn load(
    dir: &Path,
    inference: &InferenceSettings,
    max_records: usize,
    limit: Duration,
    stop: &Shutdown,
) -> Result<onnx::Loaded, Failure> {
    let (bundle, wanted, interrupt) = (dir.to_owned(), inference.clone(), Interrupt::default());
    let told = interrupt.clone();
    let work = move || onnx::load_unless(&bundle, &wanted, max_records, &told);
    Ok(open(dir, limit, stop, &interrupt, work)??)
}

/// Opens a part of the bundle in `dir` with `work`, but gives up after `limit` or at a stop. `interrupt` ends the work.
///
/// # Errors
/// When the work takes too long, panics, or is stopped.
pub fn open<T: Send + 'static>(
    dir: &Path,
    limit: Duration,
    stop: &Shutdown,
    interrupt: &Interrupt,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let bundle = dir.display();
    match within(limit, stop, || interrupt.request(), work) {
        Ok(opened) => Ok(opened),
        Err(End::Stopped) => Err(Failure::stopped("stopped while the model was loading")),
        Err(End::Panicked) => Err(panicked(dir)),
        Err(End::NotBegun) => Err(Failure::internal(format!(
            "bundle {bundle} is not loaded: {MOST_LEFT_BEHIND} earlier attempts still hang and cannot be ended. Restart residuald"
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

/// Reads the settings again with `read`. The wait has a deadline, because a file may be a pipe without a writer.
///
/// # Errors
/// When reading fails, takes too long, panics, or is stopped.
pub fn settings(
    read: impl FnOnce() -> Result<Config, Failure> + Send + 'static,
    stop: &Shutdown,
) -> Result<Config, Failure> {
    let problem = |what: &str| Failure::config(format!("the settings cannot be reloaded: {what}"));
    match within(SETTINGS_WITHIN, stop, || {}, read) {
        Ok(settings) => settings,
        Err(End::Stopped) => Err(Failure::stopped("stopped while the settings were read")),
        Err(End::Panicked) => Err(problem(
            "reading them panicked. This is a bug, please report it",
        )),
        Err(End::NotBegun) => Err(problem(
            "two earlier attempts to read them still hang. Restart residuald",
        )),
        Err(End::TooLate { .. }) => Err(problem(
            "reading one of the settings files took too long. Check that it is a regular file",
        )),
    }
}

/// The reason why there is no result.
#[derive(Debug, PartialEq)]
enum End {
    TooLate { left_behind: bool },
    Stopped,
    Panicked,
    NotBegun,
}

/// Runs `work` on its own thread. Calls `interrupt` if the wait ends before the work.
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
        match done.recv_timeout(left.min(STOP_CHECK)) {
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

/// Counts a thread as long as it runs, even if it ends by a panic.
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
        // This fails if the wait has ended: the result is too late.
        let _ = done.send(worked);
    };
    let thread = thread::Builder::new().name("loader".to_owned());
    thread.spawn(work).expect("the system can start a thread");
    result
}

/// Returns the error for a panic while loading. The panic message is in the log.
pub fn panicked(dir: &Path) -> Failure {
    Failure::internal(format!(
        "bundle {} refused: loading it panicked, see the log lines above. This is a bug, please report it",
        dir.display()
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const SHORT: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_secs(600);

    /// This is a single test, because the count is global.
    #[test]
    fn what_hangs_is_given_up_and_left_behind_until_there_are_too_many() {
        let stop = Shutdown::default();
        assert_eq!(within(LONG, &stop, || {}, || 1), Ok(1));
        let panics = || -> u8 { panic!("on purpose") };
        assert_eq!(within(LONG, &stop, || {}, panics), Err(End::Panicked));
        wait_until_nobody_is_at_work();

        // A thread that ends when told to.
        let (tell, told) = channel::<()>();
        let obedient = move || told.recv().is_ok();
        let interrupt = || tell.send(()).unwrap();
        let late = End::TooLate { left_behind: false };
        assert_eq!(within(SHORT, &stop, interrupt, obedient), Err(late));

        // Threads that do not end: the next load starts beside one of them, but not beside two.
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
