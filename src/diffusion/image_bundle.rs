//! The image pipeline in a bundle's generative part.

use super::components::{GraphFile, GraphSource};
use super::folder::{DenoiserFiles, ImagePipeline, ignored};
use super::{Error, Scheduler};
use crate::bundle::generative::{DENOISER, SCHEDULER};
use crate::bundle::{ImageGenerative, Pixels};

impl ImagePipeline {
    /// Takes the pipeline out of a bundle called `name`, whose rows have these pixels. `class` replaces the scheduler's class.
    ///
    /// # Errors
    /// If the scheduler's configuration is wrong, or cannot be that of `class`.
    pub fn of_bundle(
        name: &str,
        pixels: &Pixels,
        generative: ImageGenerative,
        class: Option<&str>,
    ) -> Result<ImagePipeline, Error> {
        let scheduler = Scheduler::from_config(&generative.scheduler, class);
        let scheduler = scheduler.map_err(|e| Error::Config(format!("{SCHEDULER}: {e}")))?;
        Ok(ImagePipeline {
            pipeline: name.to_owned(),
            notes: ignored(SCHEDULER, &scheduler).into_iter().collect(),
            steps: Some(generative.about.steps),
            scheduler,
            text: None,
            denoiser: DenoiserFiles {
                graph: GraphFile {
                    file: DENOISER.to_owned(),
                    source: GraphSource::Bytes(generative.denoiser),
                },
                shape: [pixels.channels, pixels.height, pixels.width],
                conditions: Vec::new(),
                guidance_width: None,
                source_channels: 0,
                out_channels: pixels.channels,
                is_distilled: generative.about.distilled,
                golden: generative.about.golden,
            },
        })
    }
}
