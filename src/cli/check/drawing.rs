//! Checks the generative part of a bundle, which the daemon does not load: its scheduler, its graphs and their golden points.

use crate::bundle::{Bundle, ModelInput};
use crate::cli::shared::generative::scheduler;
use crate::config::InferenceSettings;
use crate::diffusion::folder::ImagePipeline;
use crate::failure::Failure;
use crate::onnx::generative::Graphs;
use crate::onnx::{Denoiser, Interrupt, Runtime};

/// Returns what the bundle draws, and the number of golden points that its graphs reproduced. `None` without a generative part.
///
/// # Errors
/// The scheduler is unknown, a graph has other tensors than it must have, or it does not give the trainer's values.
pub fn check(bundle: &Bundle) -> Result<Option<(&'static str, usize)>, Failure> {
    let runtime = Runtime::load(Interrupt::default())?;
    if let Some(generative) = &bundle.generative {
        scheduler(&generative.scheduler, None)?;
        Graphs::new(&runtime, generative, bundle.features().len())?;
        return Ok(Some(("records", generative.about.golden.len())));
    }
    let (ModelInput::Image(pixels), Some(generative)) =
        (&bundle.manifest.input, &bundle.image_generative)
    else {
        return Ok(None);
    };
    let pipeline =
        ImagePipeline::of_bundle(&bundle.manifest.name, pixels, generative.clone(), None);
    let denoiser = pipeline.map_err(Failure::data)?.denoiser;
    Denoiser::new(&runtime, &denoiser, &InferenceSettings::on_cpu(1), 0, 1)?;
    Ok(Some(("images", denoiser.golden.len())))
}
