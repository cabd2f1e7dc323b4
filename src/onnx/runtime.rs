//! Finds and loads the ONNX Runtime library.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ort::environment::Environment;
use ort::logging::LogLevel;

use super::Interrupt;

const LIBRARY: &str = if cfg!(target_os = "macos") {
    "libonnxruntime.dylib"
} else {
    "libonnxruntime.so"
};

/// ONNX Runtime allows one environment per process, which is never destroyed.
static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();

/// Set by [`use_library`].
static PREFERRED: OnceLock<PathBuf> = OnceLock::new();

/// Names the library to load if `ORT_DYLIB_PATH` does not name one. Has no effect after the first call, or once a library is loaded.
pub fn use_library(path: PathBuf) {
    PREFERRED.get_or_init(|| path);
}

/// ONNX Runtime's environment with an interrupt for one model. Clones share both.
#[derive(Clone, Debug)]
pub struct Runtime {
    pub(super) environment: Environment,
    /// Interrupts the sessions and runs of the model.
    pub(super) interrupt: Interrupt,
}

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error(
        "ONNX Runtime cannot be loaded ({problem}): run `make onnxruntime`, or set ORT_DYLIB_PATH to {LIBRARY} 1.24 or newer"
    )]
    Library { problem: String },
    #[error("ONNX Runtime cannot start: {0}")]
    Start(#[from] ort::Error),
}

impl Runtime {
    /// Loads the library that `ORT_DYLIB_PATH` names, or else the one that [`use_library`] names. Without either, loads the
    /// first of these libraries that exists: the one beside the executable, the one that `make install` put near it, the one that `make
    /// onnxruntime` brought into its checkout, the system's.
    ///
    /// # Errors
    /// [`RuntimeError`], which tells the user what to do.
    pub fn load(interrupt: Interrupt) -> Result<Runtime, RuntimeError> {
        let environment = environment()?.clone();
        Ok(Runtime {
            environment,
            interrupt,
        })
    }
}

fn environment() -> Result<&'static Environment, RuntimeError> {
    // Environments are created one at a time, because dropping a second one would also drop the logger of the first.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(environment) = ENVIRONMENT.get() {
        return Ok(environment);
    }
    let builder = ort::init_from(library()).map_err(|e| RuntimeError::Library {
        problem: e.to_string(),
    })?;
    let made = builder
        .with_name("residuald")
        .with_telemetry(false)
        .with_logger(Arc::new(log))
        .build()?;
    Ok(ENVIRONMENT.get_or_init(|| made))
}

/// Sends ONNX Runtime's messages to the log instead of to standard error, because they quote names from the graph.
fn log(level: LogLevel, _category: &str, _id: &str, _place: &str, message: &str) {
    match level {
        LogLevel::Fatal | LogLevel::Error => tracing::error!("ONNX Runtime: {message}"),
        LogLevel::Warning => tracing::warn!("ONNX Runtime: {message}"),
        LogLevel::Info | LogLevel::Verbose => tracing::debug!("ONNX Runtime: {message}"),
    }
}

fn library() -> PathBuf {
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        return path.into();
    }
    if let Some(path) = PREFERRED.get() {
        return path.clone();
    }
    let executable = std::env::current_exe().unwrap_or_default();
    let beside = executable.with_file_name(LIBRARY);
    let bin = executable.parent();
    let installed = bin
        .and_then(|bin| bin.parent())
        .map(|prefix| prefix.join("lib/onnxruntime").join(LIBRARY));
    let in_checkout = executable
        .ancestors()
        .map(|folder| folder.join(".onnxruntime").join(LIBRARY));
    let found = std::iter::once(beside)
        .chain(installed)
        .chain(in_checkout)
        .find(|path| path.exists());
    found.unwrap_or_else(|| LIBRARY.into())
}
