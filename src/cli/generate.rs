//! `residuald generate`: draws samples from a diffusion model.

mod image_files;
mod images;
mod noise_file;
mod sampling;

use std::path::PathBuf;

use crate::bundle::MANIFEST;
use crate::config::Provider;
use crate::diffusion::folder::INDEX;
use crate::failure::Failure;

/// Draw images from noise with a diffusion pipeline of diffusers or optimum, exported to ONNX
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald generate ddpm-parts --count 16 --out drawn
  residuald generate ddpm-parts --count 16 --out drawn --steps 20 --scheduler dpm-solver-multistep
  residuald generate ddpm-parts --out drawn --noise noise.npy --trace states

FOLDER is what save_pretrained of ORTDiffusionPipeline writes: model_index.json, scheduler/scheduler_config.json, and unet or transformer with
model.onnx and config.json. Image number i depends on the seed and i alone: it has the same bits in any count, and on a CPU also in any
batch and on any number of cores.

--noise takes the initial noise, float32 [N, C, H, W], or that and the noise of each step, [1 + steps, N, C, H, W], in place of the seed's.")]
pub struct Arguments {
    /// Folder of the pipeline
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// Number of images [default: 1, or as many as --noise holds]
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Folder for the images: 000000.png, 000001.png, …
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seed of the noise
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Number of denoising steps [default: as diffusers: 1000 for a DDPMPipeline with its own scheduler, 4 for LCM, otherwise 50]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Scheduler in place of the pipeline's: ddpm, ddim, euler-discrete, euler-ancestral-discrete, dpm-solver-multistep, unipc-multistep, lcm
    #[arg(long, value_name = "NAME")]
    scheduler: Option<String>,
    /// How much noise DDIM adds: 0 is none, 1 as much as DDPM
    #[arg(long, value_name = "ETA", default_value_t = 0.0)]
    eta: f32,
    /// Number of images that go through the steps together. On a CPU, the model runs on each alone
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: u16,
    /// Noise from a NumPy file in place of the seed's
    #[arg(long, value_name = "FILE.npy")]
    noise: Option<PathBuf>,
    /// Write the state after each step to this folder, as .npy and .png
    #[arg(long, value_name = "DIR")]
    trace: Option<PathBuf>,
    /// Overwrite existing files
    #[arg(long)]
    force: bool,
    /// Run on all CPU cores or on the first GPU
    #[arg(long, value_enum, default_value_t = Provider::Cpu)]
    provider: Provider,
    /// Print one JSON object at the end instead of text
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let folder = &arguments.folder;
    if folder.join(MANIFEST).exists() && !folder.join(INDEX).exists() {
        return Err(Failure::data(format!(
            "{} is a bundle of residuald, which scores: FOLDER must be a pipeline of diffusers with {INDEX}",
            folder.display()
        )));
    }
    images::run(arguments)
}
