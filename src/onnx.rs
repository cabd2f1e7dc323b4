//! ONNX Runtime: loads the library, makes one session per worker, and checks a bundle's graphs.

mod buckets;
mod component;
mod denoiser;
pub mod generative;
mod golden;
mod image_denoising;
mod image_translation;
pub mod imputer;
mod interrupt;
mod nearest;
mod one_by_one;
mod outputs;
mod pool;
mod provider;
mod runtime;
mod scorer;
mod screen;
mod text_encoder;
mod tiled;
mod vae;

use std::path::Path;

pub use denoiser::{Condition, Denoiser};
pub use golden::GoldenCheck;
pub use image_denoising::{Denoised, ImageDenoising, LEVELS};
pub use image_translation::{ImageTranslation, Translated, Translation};
pub use imputer::Imputer;
pub use interrupt::Interrupt;
pub use nearest::Nearest;
pub use one_by_one::Refused;
pub use pool::{
    BATCH, CHUNK, IMAGE_CHUNK, Judged, ScorerPool, all_cores, finite, inference_on, share_out,
};
pub use provider::Placement;
pub use runtime::{Runtime, RuntimeError, use_library};
pub use scorer::{ImageScores, Scorer, ScorerError};
pub use screen::ScreenSession;
pub use text_encoder::{Encoded, TextEncoder};
pub use tiled::{TiledDenoiser, finite_image};
pub use vae::{VaeDecoder, VaeEncoder};

use crate::bundle::{self, Bundle, BundleError, Draft, Fault};
use crate::config::{InferenceSettings, Provider};

/// The reason why a bundle could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Scorer(#[from] ScorerError),
}

/// A checked bundle, with a warmed-up scorer for each worker.
#[derive(Debug)]
pub struct Loaded {
    pub bundle: Bundle,
    pub scorers: Vec<Scorer>,
    pub golden: GoldenCheck,
    /// One screen for each worker, or empty if the bundle has no screen.
    pub screens: Vec<ScreenSession>,
    /// Set if the bundle has normal records.
    pub nearest: Option<Nearest>,
}

/// Reads the bundle, creates `workers` scorers for batches of up to `max_records`, and checks the scores of the golden
/// records.
///
/// # Errors
/// [`LoadError::Bundle`] with all faults of files, graphs and golden records. The other variants mean that the bundle
/// is not at fault.
pub fn load(
    dir: &Path,
    inference: &InferenceSettings,
    max_records: usize,
) -> Result<Loaded, LoadError> {
    load_unless(dir, inference, max_records, &Interrupt::default())
}

/// Like [`load`], but gives up when `interrupt` is requested, as far as ONNX Runtime allows.
///
/// # Errors
/// As for [`load`]. After an interrupt, [`ScorerError::Interrupted`] or ONNX Runtime's own error.
pub fn load_unless(
    dir: &Path,
    inference: &InferenceSettings,
    max_records: usize,
    interrupt: &Interrupt,
) -> Result<Loaded, LoadError> {
    let mut draft = Draft::read(dir);
    // A broken schema cannot be checked against the graph, and a broken graph must not be passed to ONNX Runtime.
    let sound = draft.faults.iter().all(|fault| !forbids_sessions(fault));
    let parts = draft.manifest.as_ref().zip(draft.model.as_ref());
    let Some((manifest, model)) = parts.filter(|_| sound) else {
        return Err(draft
            .finish()
            .expect_err("a bundle without manifest or model has a fault")
            .into());
    };
    let runtime = Runtime::load(interrupt.clone())?;
    let mut faults = Faults::new(inference.provider, interrupt);
    let mut scorers = Vec::with_capacity(inference.workers);
    for worker in 0..inference.workers {
        let input = &manifest.input;
        let made = Scorer::new(&runtime, model, input, inference, worker, max_records);
        let Some(scorer) = faults.take(scorer::MODEL, made)? else {
            break;
        };
        scorers.push(scorer);
    }
    let mut golden = GoldenCheck::default();
    if let (Some(records), Some(scorer)) = (&draft.golden, scorers.first_mut()) {
        let checked = golden::check(records, &manifest.input, manifest.golden, scorer);
        match faults.take(scorer::MODEL, checked)? {
            Some(Ok(check)) => golden = check,
            Some(Err(found)) => faults.found.extend(found),
            None => {}
        }
    }
    let features = manifest.input.features();
    let mut nearest = None;
    if let Some(normals) = &draft.normals {
        let made = Nearest::new(&runtime, normals, features);
        nearest = faults.take(nearest::MODEL, made)?;
    }
    let mut screens = Vec::new();
    if let (Some(screen), Some(golden)) = (&draft.screen, &draft.golden) {
        for _ in 0..inference.workers {
            let made = ScreenSession::new(&runtime, &screen.model, features.len(), max_records);
            let Some(made) = faults.take(screen::MODEL, made)? else {
                break;
            };
            screens.push(made);
        }
        if let Some(first) = screens.first_mut() {
            let checked = first.check(golden, &screen.answers.golden, features);
            let fault = faults.take(screen::MODEL, checked)?.flatten();
            faults.found.extend(fault);
        }
    }
    draft.faults.extend(faults.found);
    Ok(Loaded {
        bundle: draft.finish()?,
        scorers,
        screens,
        golden,
        nearest,
    })
}

/// Returns whether no session may be created because of this fault.
fn forbids_sessions(fault: &Fault) -> bool {
    fault.file == bundle::MANIFEST || bundle::is_graph(&fault.file)
}

/// Faults of a bundle's graphs that show only in their sessions.
struct Faults<'i> {
    found: Vec<Fault>,
    /// If false, a failed run may be the device's fault.
    on_cpu: bool,
    interrupt: &'i Interrupt,
}

impl Faults<'_> {
    fn new(provider: Provider, interrupt: &Interrupt) -> Faults<'_> {
        Faults {
            found: Vec::new(),
            on_cpu: provider == Provider::Cpu,
            interrupt,
        }
    }

    /// Returns the result for the graph in `file`, or `None` if the graph is at fault.
    ///
    /// # Errors
    /// When something other than the graph is at fault.
    fn take<T>(
        &mut self,
        file: &str,
        made: Result<T, ScorerError>,
    ) -> Result<Option<T>, ScorerError> {
        match made {
            Ok(made) => return Ok(Some(made)),
            Err(_) if self.interrupt.is_requested() => return Err(ScorerError::Interrupted),
            Err(ScorerError::Graph(found)) => self.found.extend(found),
            Err(ScorerError::Run(e)) if self.on_cpu => {
                let problem = format!("ONNX Runtime failed to run it: {}", e.message().trim());
                self.found.push(Fault::new(file, problem));
            }
            Err(other) => return Err(other),
        }
        Ok(None)
    }
}
