//! ONNX Runtime: the library, a session a worker, and the proof that a graph keeps the bundle's promises.

mod golden;
mod runtime;
mod scorer;

use std::path::Path;

pub use golden::GoldenCheck;
pub use runtime::{Runtime, RuntimeError};
pub use scorer::{Scorer, ScorerError};

use crate::bundle::{Bundle, BundleError};
use crate::config::Inference;

/// Why no scorer could be had.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Scorer(#[from] ScorerError),
}

/// A bundle that proved itself, with a warmed-up scorer for each worker.
#[derive(Debug)]
pub struct Loaded {
    pub bundle: Bundle,
    pub scorers: Vec<Scorer>,
    pub golden: GoldenCheck,
}

/// Reads the bundle, makes `workers` scorers for batches of up to `max_records`, and has the golden records scored.
///
/// # Errors
/// [`LoadError`]: every fault of the files at once, then every fault of the graph at once.
pub fn load(dir: &Path, inference: &Inference, max_records: usize) -> Result<Loaded, LoadError> {
    let bundle = Bundle::read(dir)?;
    let runtime = Runtime::load()?;
    let refuse = |faults| BundleError {
        dir: dir.to_owned(),
        faults,
    };
    let mut scorers = Vec::with_capacity(inference.workers);
    for _ in 0..inference.workers {
        match Scorer::new(&runtime, &bundle, inference, max_records) {
            Ok(scorer) => scorers.push(scorer),
            Err(ScorerError::Graph(faults)) => return Err(refuse(faults).into()),
            Err(other) => return Err(other.into()),
        }
    }
    let golden = golden::check(&bundle, &mut scorers[0])?.map_err(refuse)?;
    Ok(Loaded {
        bundle,
        scorers,
        golden,
    })
}
