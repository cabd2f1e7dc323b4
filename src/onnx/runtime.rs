//! Finds and loads the ONNX Runtime library.

use std::path::PathBuf;

use ort::environment::Environment;

const LIBRARY: &str = if cfg!(target_os = "macos") {
    "libonnxruntime.dylib"
} else {
    "libonnxruntime.so"
};

/// The process's ONNX Runtime environment; clones share it.
#[derive(Clone, Debug)]
pub struct Runtime(pub(super) Environment);

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error(
        "ONNX Runtime cannot be loaded ({problem}): run `make onnxruntime`, or set ORT_DYLIB_PATH to {LIBRARY} 1.24 or newer"
    )]
    Library { problem: String },
    #[error("ONNX Runtime does not start: {0}")]
    Start(#[from] ort::Error),
}

impl Runtime {
    /// Loads the library that `ORT_DYLIB_PATH` names, or else the one beside the executable, or else the system's.
    ///
    /// # Errors
    /// [`RuntimeError`] says what to do.
    pub fn load() -> Result<Runtime, RuntimeError> {
        let builder = ort::init_from(library()).map_err(|e| RuntimeError::Library {
            problem: e.to_string(),
        })?;
        Ok(Runtime(
            builder.with_name("residuald").with_telemetry(false).build()?,
        ))
    }
}

fn library() -> PathBuf {
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        return path.into();
    }
    let beside = std::env::current_exe().ok().and_then(|executable| {
        let candidate = executable.parent()?.join(LIBRARY);
        candidate.exists().then_some(candidate)
    });
    beside.unwrap_or_else(|| LIBRARY.into())
}
