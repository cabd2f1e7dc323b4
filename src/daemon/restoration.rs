//! Opens the generative part of the configured bundle, which fills in what records lack.

use std::time::Duration;

use crate::bundle::{Bundle, Feature, Generative};
use crate::config::{Config, RestoredSettings};
use crate::diffusion::{Noise, Scheduler};
use crate::imputation::{FIELD, INTERVAL, feature_in};
use crate::onnx::generative::{DrawError, Sampler};
use crate::onnx::{Imputer, Interrupt, LoadError, Runtime};
use crate::shutdown::Shutdown;

use super::watchdog;
use crate::failure::Failure;

/// One imputer per worker, and how long one of them takes to fill in a record.
#[derive(Default)]
pub struct Imputers {
    pub imputers: Vec<Imputer>,
    pub each: Duration,
}

/// Opens the generative part of a bundle for tables for `workers` workers, or nothing if records are not restored. `interrupt` ends their runs
/// later. The part does not stay in `bundle`: the sessions have it then.
///
/// # Errors
/// When the bundle has no such part, the part is at fault, or opening it takes too long.
pub fn open(
    config: &Config,
    bundle: &mut Bundle,
    workers: usize,
    interrupt: &Interrupt,
    stop: &Shutdown,
) -> Result<Imputers, Failure> {
    let settings = match &config.output.restored {
        Some(settings) if !bundle.features().is_empty() => settings.clone(),
        // Images have no features.
        _ => return Ok(Imputers::default()),
    };
    let generative = part(bundle)?;
    let features = bundle.features().to_vec();
    let told = interrupt.clone();
    let work = move || imputers(&generative, &features, &settings, workers, told);
    let (dir, limit) = (&config.model.bundle, config.model.load_timeout);
    watchdog::open(dir, limit, stop, interrupt, work)?
}

/// Takes the generative part out of a bundle.
fn part(bundle: &mut Bundle) -> Result<Generative, Failure> {
    let name = &bundle.manifest.name;
    let features = bundle.manifest.input.features();
    if let Some(feature) = feature_in(FIELD, features) {
        return Err(Failure::config(format!(
            "output.restored_topic: the feature `{}` of the bundle {name} is read from `{}`, where a restored record tells what was filled in: remove the setting",
            feature.name, feature.path
        )));
    }
    bundle.generative.take().ok_or_else(|| {
        Failure::config(format!(
            "output.restored_topic: the bundle {name} has no generative part, which fills in what records lack: train it with `residuald-train tabular --generative`, or remove the setting"
        ))
    })
}

fn imputers(
    generative: &Generative,
    features: &[Feature],
    settings: &RestoredSettings,
    workers: usize,
    interrupt: Interrupt,
) -> Result<Imputers, Failure> {
    let runtime = Runtime::load(interrupt).map_err(LoadError::from)?;
    let scheduler = Scheduler::from_json(&generative.scheduler.to_string());
    let scheduler = scheduler.map_err(Failure::data)?;
    let steps = settings.steps.unwrap_or(generative.about.steps);
    let plan = scheduler.plan(steps).map_err(|e| {
        Failure::config(format!(
            "output.restored_steps: the bundle's scheduler cannot take {steps} steps: {e}"
        ))
    })?;
    let mut all = Imputers::default();
    for _ in 0..workers {
        let width = features.len();
        let noise = Noise {
            seed: settings.seed,
            file: None,
        };
        let sampler = Sampler::new(&runtime, generative, width, 1, plan.clone(), noise);
        let mut imputer = Imputer::new(sampler?, features, settings.draws, INTERVAL);
        let each = imputer
            .warm_up()
            .map_err(|e| explained(e, settings, steps))?;
        all.each = all.each.max(each);
        all.imputers.push(imputer);
    }
    Ok(all)
}

/// Names the setting that may be at fault.
fn explained(error: DrawError, settings: &RestoredSettings, steps: usize) -> Failure {
    match error {
        e @ DrawError::NotFinite { .. } if settings.steps.is_some() => Failure::config(format!(
            "output.restored_steps = {steps}: {e}. Set another number, or remove the setting"
        )),
        other => Failure::from(other),
    }
}
