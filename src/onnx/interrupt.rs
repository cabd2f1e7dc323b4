//! Interrupts ONNX Runtime from another thread: the runs of one model, and the creation of sessions.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ort::session::RunOptions;
use ort::session::builder::{LoadCanceler, SessionBuilder};

use super::ScorerError;

/// Interrupts one model. Clones interrupt the same model. A request cannot be taken back.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<Inner>);

#[derive(Default)]
struct Inner {
    requested: AtomicBool,
    /// The options that all runs of the model share. They are created once the library is loaded.
    runs: OnceLock<RunOptions>,
    loads: Mutex<Vec<LoadCanceler>>,
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Interrupt({})", self.is_requested())
    }
}

impl Interrupt {
    /// Requests the interrupt. A run ends before its next node, and the creation of a session before its next step. A
    /// single operator is not interrupted.
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

    /// Returns the options for every run of the model.
    ///
    /// # Errors
    /// When ONNX Runtime cannot create the options.
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

    /// Returns the error for a failed run.
    pub(super) fn failure(&self, e: ort::Error) -> ScorerError {
        match self.is_requested() {
            true => ScorerError::Interrupted,
            false => ScorerError::Run(e),
        }
    }

    /// Makes the creation of sessions by `builder` interruptible.
    ///
    /// # Errors
    /// [`ScorerError::Interrupted`] if the interrupt was already requested.
    pub(super) fn watch(&self, builder: &SessionBuilder) -> Result<(), ScorerError> {
        let mut loads = self.0.loads.lock().unwrap_or_else(PoisonError::into_inner);
        loads.push(builder.canceler());
        // A concurrent request is seen either here, or by `request`, which reads the list afterwards.
        match self.is_requested() {
            true => Err(ScorerError::Interrupted),
            false => Ok(()),
        }
    }
}
