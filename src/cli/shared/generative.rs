//! The arguments and the sampler of verbs that draw from a bundle's generative part.

use std::path::Path;

use serde_json::Value;

use crate::bundle::{Bundle, Generative, ModelInput};
use crate::diffusion::{CLASSES, Noise, NoiseFile, Scheduler};
use crate::onnx::generative::{Denoising, Sampler};
use crate::onnx::{Interrupt, Runtime, all_cores};

use crate::failure::Failure;

#[derive(clap::Args)]
pub struct SamplerArguments {
    /// Seed of the noise: the same seed gives the same draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Number of denoising steps [default: a bundle's own; for a pipeline as in diffusers: 1000 for a DDPMPipeline with its own scheduler, 4
    /// for LCM, otherwise 50]
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Scheduler in place of the model's: ddpm, ddim, euler-discrete, euler-ancestral-discrete, dpm-solver-multistep, unipc-multistep, lcm, pndm
    #[arg(long, value_name = "NAME")]
    pub scheduler: Option<String>,
}

impl SamplerArguments {
    /// Opens the bundle's graphs on all cores. `width`: the number of features. `noise`: a file that replaces the seed's noise.
    pub fn open(
        &self,
        generative: &Generative,
        width: usize,
        noise: Option<&Path>,
    ) -> Result<Sampler, Failure> {
        let runtime = Runtime::load(Interrupt::default())?;
        let steps = self.steps.unwrap_or(generative.about.steps);
        let scheduler = scheduler(&generative.scheduler, self.scheduler.as_deref())?;
        let plan = scheduler.plan(steps).map_err(Failure::usage)?;
        let file = noise.map(|path| NoiseFile::open(path, &[generative.about.dimensions()], &plan));
        let noise = Noise {
            seed: self.seed,
            file: file.transpose().map_err(Failure::data)?,
        };
        let cores = all_cores().workers;
        Ok(Sampler::new(
            &runtime, generative, width, cores, plan, noise,
        )?)
    }
}

/// Opens the bundle's graphs for the removal of noise. `width`: the number of features.
pub fn denoising(generative: &Generative, width: usize) -> Result<Denoising, Failure> {
    let runtime = Runtime::load(Interrupt::default())?;
    let scheduler = scheduler(&generative.scheduler, None)?;
    Ok(Denoising::new(&runtime, generative, width, &scheduler)?)
}

/// Returns the bundle's scheduler, or another class with the same configuration.
pub fn scheduler(config: &Value, name: Option<&str>) -> Result<Scheduler, Failure> {
    let config = config.to_string();
    let scheduler = match name {
        Some(name) => Scheduler::from_json_as(&config, class(name)?).map_err(Failure::usage)?,
        None => Scheduler::from_json(&config).map_err(Failure::data)?,
    };
    for field in scheduler.ignored() {
        eprintln!(
            "{} ignores {field} of scheduler_config.json",
            scheduler.class()
        );
    }
    Ok(scheduler)
}

/// Returns the generative part of a bundle.
///
/// # Errors
/// It has none, or it draws images.
pub fn generative(bundle: &Bundle) -> Result<&Generative, Failure> {
    if matches!(bundle.manifest.input, ModelInput::Image(_)) {
        return Err(Failure::usage(format!(
            "the bundle {} reads images: this needs a bundle for tables, trained with `residuald-train tabular --generative`",
            bundle.manifest.name
        )));
    }
    bundle.generative.as_ref().ok_or_else(|| {
        Failure::usage(format!(
            "the bundle {} cannot draw records: train it with `residuald-train tabular --generative`",
            bundle.manifest.name
        ))
    })
}

/// The class of a scheduler, by its name or a shorter one: `DDIMScheduler`, `ddim`, `euler-ancestral-discrete`.
pub fn class(name: &str) -> Result<&'static str, Failure> {
    let plain = |name: &str| {
        let name = name.to_ascii_lowercase().replace(['-', '_'], "");
        name.strip_suffix("scheduler").unwrap_or(&name).to_owned()
    };
    let wanted = plain(name);
    let found = CLASSES.into_iter().find(|class| plain(class) == wanted);
    found.ok_or_else(|| {
        let all = CLASSES.join(", ");
        Failure::usage(format!("--scheduler {name}: unknown: there are {all}"))
    })
}

/// Returns the name of the first option that was given.
pub fn first_given(options: &[(&'static str, bool)]) -> Option<&'static str> {
    let given = options.iter().find(|(_, given)| *given);
    given.map(|(name, _)| *name)
}

/// Prints a summary on standard output, or on standard error if the records are there.
pub fn summary_line(out: &Path, summary: &Value) {
    match out.as_os_str() == "-" {
        true => eprintln!("{summary}"),
        false => println!("{summary}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedulers_have_short_names() {
        for (name, expected) in [
            ("ddim", "DDIMScheduler"),
            ("DDIMScheduler", "DDIMScheduler"),
            (
                "euler-ancestral-discrete",
                "EulerAncestralDiscreteScheduler",
            ),
            ("dpm-solver-multistep", "DPMSolverMultistepScheduler"),
            ("unipc_multistep", "UniPCMultistepScheduler"),
        ] {
            assert_eq!(class(name).unwrap(), expected);
        }
        assert!(
            class("heun-discrete")
                .unwrap_err()
                .message
                .contains("unknown")
        );
    }
}
