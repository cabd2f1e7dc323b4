//! `residuald denoise` for images.

use super::Arguments;
use crate::cli::shared::image_job::{ImageJob, Made, Outcome, Source, tasks};
use crate::cli::shared::images::say_notes;
use crate::config::Provider;
use crate::daemon::image_model::ImageModel;
use crate::failure::Failure;
use crate::image::{BitDepth, bytes};
use crate::onnx::{ImageDenoising, LEVELS};

pub fn run(arguments: &Arguments, model: ImageModel) -> Result<(), Failure> {
    let common = &arguments.common;
    if let Some(name) = common.given_for_records() {
        return Err(Failure::usage(format!(
            "{name} has no effect, because {} is a model of images: leave {name} out",
            common.bundle.display()
        )));
    }
    let [input] = &common.files[..] else {
        return Err(Failure::usage(
            "give one image or one folder of images at a time",
        ));
    };
    if common.out.as_os_str() == "-" {
        return Err(Failure::usage(
            "images need a place: --out DIR, or --out FILE.png for one image",
        ));
    }
    let channels = model.image_channels()?;
    model.is_not_paired("denoise")?;
    model.is_not_distilled("denoise")?;
    model.draws_from_noise_alone("denoise")?;
    let job = ImageJob {
        images: tasks(input, &common.out)?,
        channels,
        out_channels: channels,
        depth: BitDepth::new(arguments.images.bit_depth.unwrap_or(16)),
        overwrites: common.force,
        json: common.json,
        about: model.about(),
    };
    let provider = arguments.provider.unwrap_or(Provider::Cpu);
    let workers = model.denoisers(provider, job.images.len())?;
    say_notes(&model);
    let workers = workers
        .into_iter()
        .map(|denoiser| ImageDenoising::new(denoiser, model.scheduler.clone()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(Failure::data)?;
    let sigma = arguments.sigma.map(|sigma| sigma / LEVELS);
    let steps = usize::from(arguments.steps.unwrap_or(1));
    job.run(workers, |worker, source, taken| match taken.must_stop() {
        true => Ok(None),
        false => denoised(worker, source, channels, sigma, steps),
    })
}

fn denoised(
    worker: &mut ImageDenoising,
    source: &Source,
    channels: usize,
    sigma: Option<f32>,
    steps: usize,
) -> Result<Outcome, Failure> {
    let denoised = worker.denoise(&source.values, source.size, sigma, steps)?;
    Ok(Some(denoised.map(|denoised| Made {
        about: denoised.about(),
        unchanged: denoised.image.is_none(),
        bytes: match denoised.image {
            Some(image) => bytes(&image, channels),
            None => source.bytes.clone(),
        },
    })))
}
