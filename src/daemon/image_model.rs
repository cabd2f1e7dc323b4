//! The model that changes images, for verbs and for the daemon: a bundle with a denoiser, or the folder of a diffusion pipeline.

use std::path::{Path, PathBuf};

use crate::bundle::{Bundle, Draft, MANIFEST, ModelInput};
use crate::config::{InferenceSettings, Provider};
use crate::diffusion::Scheduler;
use crate::diffusion::folder::{DenoiserFiles, ImagePipeline, fingerprint};
use crate::failure::Failure;
use crate::image::About;
use crate::onnx::{Denoiser, Interrupt, Runtime, TiledDenoiser, Translation, inference_on};

/// The default number of steps of a translation, if the model does not say it.
const STEPS: usize = 50;
/// The default share of the steps that a translation takes.
pub const STRENGTH: f64 = 0.5;

/// A pipeline that was read and checked, without its sessions.
pub struct ImageModel {
    pub folder: PathBuf,
    /// The pipeline's class, or the bundle's name.
    pub name: String,
    pub scheduler: Scheduler,
    pub files: DenoiserFiles,
    pub steps: Option<usize>,
    /// The hash of a bundle's manifest.
    bundle_sha256: Option<String>,
    is_for_text: bool,
    /// What was ignored or guessed.
    pub notes: Vec<String>,
}

/// A model of either kind.
pub enum AnyModel {
    Pixels(Box<ImageModel>),
    /// Images go through a VAE.
    Latent(Box<ImagePipeline>),
}

impl AnyModel {
    /// Reads a bundle or the folder of a pipeline.
    ///
    /// # Errors
    /// It is a bundle for tables, has no denoiser, or a file is missing or wrong.
    pub fn open(folder: &Path) -> Result<AnyModel, Failure> {
        if folder.join(MANIFEST).exists() {
            let mut bundle = Draft::read(folder).finish()?;
            let model = ImageModel::of_bundle(folder, &mut bundle)?;
            return Ok(AnyModel::Pixels(Box::new(model)));
        }
        let pipeline = ImagePipeline::read(folder, None).map_err(Failure::data)?;
        Ok(match pipeline.text {
            None => AnyModel::Pixels(Box::new(ImageModel::new(folder, pipeline))),
            Some(_) => AnyModel::Latent(Box::new(pipeline)),
        })
    }
}

impl ImageModel {
    /// Reads the folder of a pipeline.
    ///
    /// # Errors
    /// A file is missing or wrong.
    pub fn read(folder: &Path) -> Result<ImageModel, Failure> {
        let pipeline = ImagePipeline::read(folder, None).map_err(Failure::data)?;
        Ok(ImageModel::new(folder, pipeline))
    }

    /// Takes the denoiser out of a bundle.
    ///
    /// # Errors
    /// The bundle is for tables, or has no denoiser.
    pub fn of_bundle(folder: &Path, bundle: &mut Bundle) -> Result<ImageModel, Failure> {
        let name = bundle.manifest.name.clone();
        let ModelInput::Image(pixels) = &bundle.manifest.input else {
            return Err(Failure::usage(format!(
                "the bundle {name} reads tables: give a bundle for images or a diffusion pipeline"
            )));
        };
        let Some(generative) = bundle.image_generative.take() else {
            return Err(Failure::usage(format!(
                "the bundle {name} has no denoiser: train it with `residuald-train images --generative`"
            )));
        };
        let pipeline = ImagePipeline::of_bundle(&name, pixels, generative, None);
        let mut model = ImageModel::new(folder, pipeline.map_err(Failure::data)?);
        model.bundle_sha256 = Some(bundle.sha256.clone());
        let scale = pixels.tiles.map(|tiles| tiles.scale);
        if scale != Some(1.0) {
            model.notes.push(format!(
                "the bundle was trained on images that were resized {}, and images are not resized here: results are best on images of that scale",
                match scale {
                    Some(scale) => format!("by {scale}"),
                    None => format!("to {}x{}", pixels.width, pixels.height),
                }
            ));
        }
        Ok(model)
    }

    fn new(folder: &Path, pipeline: ImagePipeline) -> ImageModel {
        ImageModel {
            folder: folder.to_owned(),
            name: pipeline.pipeline,
            scheduler: pipeline.scheduler,
            files: pipeline.denoiser,
            steps: pipeline.steps,
            bundle_sha256: None,
            is_for_text: pipeline.text.is_some(),
            notes: pipeline.notes,
        }
    }

    /// Returns the hash of a bundle's manifest, or of all files of a pipeline.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn sha256(&self) -> Result<String, String> {
        match &self.bundle_sha256 {
            Some(sha256) => Ok(sha256.clone()),
            None => fingerprint(&self.folder, &self.files.graph).map_err(|e| e.to_string()),
        }
    }

    /// Refuses a pipeline of latent images for `verb`.
    pub fn draws_from_noise_alone(&self, verb: &str) -> Result<(), Failure> {
        match self.is_for_text {
            false => Ok(()),
            true => Err(Failure::usage(format!(
                "{} is a {}, which works on latent images: {verb} needs a bundle, or a pipeline of a denoiser and a scheduler alone; `residuald generate --image` starts with an image",
                self.folder.display(),
                self.name
            ))),
        }
    }

    /// Refuses a pipeline that was trained on pairs for `verb`.
    pub fn is_not_paired(&self, verb: &str) -> Result<(), Failure> {
        match self.files.source_channels {
            0 => Ok(()),
            _ => Err(Failure::usage(format!(
                "{} was trained on pairs, so it is for `residuald translate` alone: {verb} needs a model of one kind of images",
                self.folder.display()
            ))),
        }
    }

    /// Refuses a distilled model for `verb`, which needs all noise levels.
    pub fn is_not_distilled(&self, verb: &str) -> Result<(), Failure> {
        match self.files.is_distilled {
            false => Ok(()),
            true => Err(Failure::usage(format!(
                "{} was distilled, so it knows only the noise levels of its few steps: {verb} needs a model that was trained without --distill",
                self.folder.display()
            ))),
        }
    }

    /// The channels of the images that the model makes, 1 or 3.
    pub fn image_channels(&self) -> Result<usize, Failure> {
        self.gray_or_rgb(self.files.shape[0] - self.files.source_channels)
    }

    /// The channels of the images that a model of pairs translates, 1 or 3.
    pub fn source_channels(&self) -> Result<usize, Failure> {
        self.gray_or_rgb(self.files.source_channels)
    }

    fn gray_or_rgb(&self, channels: usize) -> Result<usize, Failure> {
        match channels {
            1 | 3 => Ok(channels),
            _ => Err(Failure::data(format!(
                "{} is for images of {channels} channels: gray images have 1, and RGB images 3",
                self.name
            ))),
        }
    }

    /// What the metadata of every image says.
    pub fn about(&self) -> About {
        let software = concat!("residuald ", env!("CARGO_PKG_VERSION"));
        vec![
            ("model", self.name.clone()),
            ("Software", software.to_owned()),
        ]
    }

    /// Plans a translation: how many of the `steps` an image goes through is its `strength`.
    ///
    /// # Errors
    /// The model cannot take such steps. The text begins with the name of the setting.
    pub fn translation(
        &self,
        strength: Option<f64>,
        steps: Option<usize>,
        seed: u64,
    ) -> Result<Translation, String> {
        let is_paired = self.files.source_channels > 0;
        if is_paired && strength.is_some() {
            return Err(format!(
                "strength has no effect, because {} was trained on pairs and draws from noise alone: leave strength out",
                self.folder.display()
            ));
        }
        let steps = steps.or(self.steps).unwrap_or(STEPS);
        let plan = self.scheduler.plan(steps);
        let plan = plan.map_err(|e| format!("steps: {e}"))?;
        let first = match is_paired {
            true => 0,
            false => plan
                .first_step(strength.unwrap_or(STRENGTH))
                .map_err(|e| format!("strength {e}"))?,
        };
        Ok(Translation {
            plan,
            first,
            is_paired,
            out_channels: self.files.shape[0] - self.files.source_channels,
            seed,
        })
    }

    /// Opens a denoiser for each worker: as many as cores on a CPU, and at most one for each image.
    ///
    /// # Errors
    /// The graph is not that of a denoiser, or the provider is not available.
    pub fn denoisers(
        &self,
        provider: Provider,
        images: usize,
    ) -> Result<Vec<TiledDenoiser>, Failure> {
        if provider == Provider::TensorRt {
            return Err(Failure::usage(
                "--provider tensorrt: images are made on cpu or cuda",
            ));
        }
        let (inference, _) = inference_on(provider);
        let runtime = Runtime::load(Interrupt::default())?;
        let workers = inference.workers.min(images.max(1));
        (0..workers)
            .map(|worker| self.denoiser(&runtime, &inference, worker))
            .collect()
    }

    /// Opens the denoiser of one worker.
    ///
    /// # Errors
    /// As of [`ImageModel::denoisers`].
    pub fn denoiser(
        &self,
        runtime: &Runtime,
        inference: &InferenceSettings,
        worker: usize,
    ) -> Result<TiledDenoiser, Failure> {
        let denoiser = Denoiser::new(runtime, &self.files, inference, worker, 1)?;
        let (shape, out_channels) = (self.files.shape, self.files.out_channels);
        Ok(TiledDenoiser::new(denoiser, shape, out_channels))
    }
}
