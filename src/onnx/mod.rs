//! ONNX Runtime: the library, a session a worker, and the proof that a graph keeps the bundle's promises.

mod buckets;
mod golden;
mod nearest;
mod provider;
mod runtime;
mod scorer;
mod screen;

use std::path::Path;

pub use golden::GoldenCheck;
pub use nearest::Nearest;
pub use provider::Placement;
pub use runtime::{Runtime, RuntimeError};
pub use scorer::{Scorer, ScorerError, Seen};
pub use screen::Screen;

use crate::bundle::{self, Bundle, BundleError, Draft};
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
    /// One a worker, of a bundle that has a screen.
    pub screens: Vec<Screen>,
    /// Of a bundle that keeps normal records.
    pub nearest: Option<Nearest>,
}

/// Reads the bundle, makes `workers` scorers for batches of up to `max_records`, and has the golden records scored.
///
/// # Errors
/// [`LoadError::Bundle`] with every fault of files, graph and golden records at once; the others when nothing can be said of the bundle.
pub fn load(dir: &Path, inference: &Inference, max_records: usize) -> Result<Loaded, LoadError> {
    let mut draft = Draft::read(dir);
    // Without a sound schema there is nothing to hold the graph against.
    let sound = draft.faults.iter().all(|f| f.file != bundle::MANIFEST);
    let parts = draft.manifest.as_ref().zip(draft.model.as_ref());
    let Some((manifest, model)) = parts.filter(|_| sound) else {
        return Err(draft.finish().expect_err("it lacks a part").into());
    };
    let runtime = Runtime::load()?;
    let mut scorers = Vec::with_capacity(inference.workers);
    let mut faults = Vec::new();
    for worker in 0..inference.workers {
        match Scorer::new(
            &runtime,
            model,
            &manifest.input,
            inference,
            worker,
            max_records,
        ) {
            Ok(scorer) => scorers.push(scorer),
            Err(ScorerError::Graph(found)) => {
                faults = found;
                break;
            }
            Err(other) => return Err(other.into()),
        }
    }
    let mut golden = GoldenCheck::default();
    if let (Some(records), Some(scorer)) = (&draft.golden, scorers.first_mut()) {
        match golden::check(records, &manifest.input, manifest.golden, scorer)? {
            Ok(check) => golden = check,
            Err(found) => faults.extend(found),
        }
    }
    let mut nearest = None;
    if let Some(normals) = &draft.normals {
        match Nearest::new(&runtime, normals, manifest.input.features()) {
            Ok(found) => nearest = Some(found),
            Err(ScorerError::Graph(found)) => faults.extend(found),
            Err(other) => return Err(other.into()),
        }
    }
    let mut screens = Vec::new();
    if let (Some(screen), Some(golden)) = (&draft.screen, &draft.golden) {
        let features = manifest.input.features();
        for _ in 0..inference.workers {
            match Screen::new(&runtime, &screen.model, features.len(), max_records) {
                Ok(made) => screens.push(made),
                Err(ScorerError::Graph(found)) => {
                    faults.extend(found);
                    break;
                }
                Err(other) => return Err(other.into()),
            }
        }
        if let Some(first) = screens.first_mut() {
            faults.extend(first.check(golden, &screen.answers.golden, features)?);
        }
    }
    draft.faults.extend(faults);
    Ok(Loaded {
        bundle: draft.finish()?,
        scorers,
        screens,
        golden,
        nearest,
    })
}
