//! Interrupts ONNX Runtime from another thread: runs of one model, and sessions that are being made.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ort::session::RunOptions;
use ort::session::builder::{LoadCanceler, SessionBuilder};

use super::ScorerError;

/// Clones interrupt the same model. A request cannot be taken back.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<Inner>);

#[derive(Default)]
struct Inner {
    requested: AtomicBool,
    /// Shared by all runs of the model; made once the library is loaded.
    runs: OnceLock<RunOptions>,
    loads: Mutex<Vec<LoadCanceler>>,
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Interrupt({})", self.is_requested())
    }
}

impl Interrupt {
    /// A run ends before its next node, and a session before its next step. A single operator is not interrupted.
    pub fn request(&self) {
        self.0.requested.store(true, Ordering::SeqCst);
        if let Some(runs) = self.0.runs.get() {
            let _ = runs.terminate();
        }
        let loads = self.0.loads.lock().unwrap_or_else(PoisonError::into_inner);
        for load in &*loads {
            let _ = load.cancel();
        }
    }

    pub fn is_requested(&self) -> bool {
        self.0.requested.load(Ordering::SeqCst)
    }

    /// The options for every run of the model.
    ///
    /// # Errors
    /// ONNX Runtime gives none.
    pub(super) fn runs(&self) -> Result<&RunOptions, ort::Error> {
        if self.0.runs.get().is_none() {
            // If another thread was faster, its options are used.
            let _ = self.0.runs.set(RunOptions::new()?);
            if self.is_requested() {
                self.request();
            }
        }
        Ok(self.0.runs.get().expect("set above"))
    }

    /// The error for a failed run.
    pub(super) fn failure(&self, e: ort::Error) -> ScorerError {
        match self.is_requested() {
            true => ScorerError::Interrupted,
            false => ScorerError::Run(e),
        }
    }

    /// Makes the sessions that `builder` makes interruptible.
    ///
    /// # Errors
    /// [`ScorerError::Interrupted`] if it is requested already.
    pub(super) fn watch(&self, builder: &SessionBuilder) -> Result<(), ScorerError> {
        let mut loads = self.0.loads.lock().unwrap_or_else(PoisonError::into_inner);
        loads.push(builder.canceler());
        // Seen here or by `request`, which looks at the list afterwards.
        match self.is_requested() {
            true => Err(ScorerError::Interrupted),
            false => Ok(()),
        }
    }
}
