//! `residuald generate`: draws samples from a diffusion model.

mod chart;
mod drawing;
mod film;
mod image_files;
mod images;
mod report;
mod sheet;
mod table;
mod trace;

use std::path::PathBuf;

use crate::bundle::{Draft, MANIFEST, ModelInput};
use crate::config::Provider;
use crate::diffusion::NoiseFile;
use crate::diffusion::folder::{INDEX, ImagePipeline};

use crate::cli::shared::generative::{SamplerArguments, class, first_given};
use crate::cli::shared::text_to_image::TextArguments;
use crate::failure::Failure;
use table::TableArguments;

/// Draw records or images from a bundle, or images from a diffusion pipeline of diffusers or optimum
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald generate models/payments --count 10000 --out drawn.ndjson
  residuald generate models/payments --count 1000 --where merchant_category=jewellery --out jewellery.csv
  residuald generate models/payments --count 20000 --anomalies 0.01 --key card_id --out labelled.parquet
  residuald generate models/payments --count 10000 --out drawn.ndjson --report drawn.html
  residuald generate models/payments --count 100000 --topic rehearsal --rate 500 --key card_id
  residuald generate models/payments --count 1000 --out drawn.ndjson --trace states
  residuald generate models/parts --count 16 --out drawn
  residuald generate ddpm-parts --count 16 --out drawn --steps 20 --scheduler dpm-solver-multistep
  residuald generate ddpm-parts --out drawn --noise noise.npy --trace states
  residuald generate ddpm-parts --count 64 --out drawn --sheet drawn.png
  residuald generate stable-diffusion --prompt 'a red brick wall' --scheduler dpm-solver-multistep --steps 20 --out drawn

MODEL is a bundle with a generative part (residuald-train tabular or images, with --generative), or what save_pretrained of ORTDiffusionPipeline
writes: model_index.json, scheduler/scheduler_config.json, and unet or transformer with model.onnx and config.json; for images from text
also tokenizer, text_encoder and vae_decoder. Sample number i depends on
the seed and i alone: it has the same bits in any count, and on a CPU also in any batch and on any number of cores.

Records that come closer to training records than chance allows are not written. Images are not compared with the training images.

--noise takes the initial noise, float32 [N, C, H, W] for images or [N, D] for records, or that and the noise of each step, [1 + steps, N, …].")]
pub struct Arguments {
    /// Folder of the bundle or of the pipeline
    #[arg(value_name = "MODEL")]
    folder: PathBuf,
    /// Number of records or images [default: 1, or as many as --noise holds]
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// File for records: .ndjson, .jsonl, .csv, .tsv, each also .gz, or .parquet; - is NDJSON on standard output [default: -]. Folder for
    /// images: 000000.png, 000001.png, …
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    #[command(flatten)]
    sampler: SamplerArguments,
    /// Noise from a NumPy file in place of the seed's
    #[arg(long, value_name = "FILE.npy")]
    noise: Option<PathBuf>,
    /// Write the states from noise to sample to this folder: as .npy; for images also as .png and as an animation, for records as a page
    #[arg(long, value_name = "DIR")]
    trace: Option<PathBuf>,
    /// How strange anomalies are: 1 is plain to see, 0 is normal [default: 1]. For images: which share of the steps --image goes through; 0
    /// keeps it, 1 draws it anew [default: 0.8; 0.3 for Stable Diffusion XL]
    #[arg(long, value_name = "STRENGTH", allow_negative_numbers = true)]
    strength: Option<f64>,
    /// Replace existing files
    #[arg(long)]
    force: bool,
    /// Print one JSON object at the end instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    table: TableArguments,
    #[command(flatten)]
    images: ImageArguments,
    #[command(flatten)]
    text: TextArguments,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Images")]
struct ImageArguments {
    /// How much noise DDIM adds, from 0 (no noise) to 1 (as much as DDPM) [default: 0]
    #[arg(long, value_name = "ETA")]
    eta: Option<f32>,
    /// Number of images that go through the steps together. On a CPU, the model runs on each alone [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: Option<u16>,
    /// Also write a contact sheet: the images, small and in a grid, in one PNG file; the first 100 if there are more
    #[arg(long, value_name = "FILE.png")]
    sheet: Option<PathBuf>,
    /// Run on all CPU cores or on the first GPU [default: cpu]
    #[arg(long, value_enum)]
    provider: Option<Provider>,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let folder = &arguments.folder;
    if folder.join(INDEX).exists() || !folder.join(MANIFEST).exists() {
        arguments.refuse(arguments.table.given(), "no bundle for tables", "one")?;
        let pipeline = ImagePipeline::read(folder, arguments.class()?);
        let pipeline = pipeline.map_err(Failure::data)?;
        if pipeline.denoiser.source_channels > 0 {
            return Err(Failure::usage(format!(
                "{} is a {}, whose model needs an image in every step: use `residuald {}`",
                folder.display(),
                pipeline.pipeline,
                match pipeline.text {
                    Some(_) => "inpaint",
                    None => "translate",
                }
            )));
        }
        return images::run(pipeline, arguments);
    }
    let bundle = Draft::read(folder).finish()?;
    let ModelInput::Image(pixels) = &bundle.manifest.input else {
        let (this, other) = ("a bundle for tables", "a pipeline or a bundle for images");
        let given = arguments.images.given().or(arguments.text.given());
        arguments.refuse(given, this, other)?;
        return table::run(&bundle, arguments);
    };
    let (this, other) = ("a bundle for images", "a bundle for tables");
    arguments.refuse(arguments.table.given(), this, other)?;
    let name = &bundle.manifest.name;
    let Some(generative) = bundle.image_generative else {
        return Err(Failure::usage(format!(
            "the bundle {name} cannot draw images: train it with `residuald-train images --generative`"
        )));
    };
    let pipeline = ImagePipeline::of_bundle(name, pixels, generative, arguments.class()?);
    images::run(pipeline.map_err(Failure::data)?, arguments)
}

impl Arguments {
    /// Returns the class that replaces the model's scheduler.
    fn class(&self) -> Result<Option<&'static str>, Failure> {
        self.sampler.scheduler.as_deref().map(class).transpose()
    }

    /// Refuses an option that this kind of model does not have, if one was given.
    fn refuse(&self, option: Option<&str>, this: &str, other: &str) -> Result<(), Failure> {
        let Some(name) = option else { return Ok(()) };
        Err(Failure::usage(format!(
            "{name} has no effect, because {} is {this}: give {other}, or leave {name} out",
            self.folder.display()
        )))
    }

    /// Returns the number of samples to draw.
    ///
    /// # Errors
    /// It is 0 or above `most`, or `noise` has not as many.
    fn count(&self, noise: Option<&NoiseFile>, most: u64) -> Result<u64, Failure> {
        let held = noise.map(NoiseFile::samples);
        let count = self.count.or(held).unwrap_or(1);
        if !(1..=most).contains(&count) {
            return Err(Failure::usage(format!(
                "--count {count}: it must be from 1 to {most}"
            )));
        }
        match held {
            Some(held) if count > held => Err(Failure::usage(format!(
                "--count {count}: the file of --noise has noise for {held} samples"
            ))),
            _ => Ok(count),
        }
    }
}

impl ImageArguments {
    /// Returns the name of an option that was given.
    fn given(&self) -> Option<&'static str> {
        first_given(&[
            ("--eta", self.eta.is_some()),
            ("--batch", self.batch.is_some()),
            ("--sheet", self.sheet.is_some()),
            ("--provider", self.provider.is_some()),
        ])
    }
}
