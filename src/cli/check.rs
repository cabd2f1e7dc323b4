//! `residuald check`: performs all checks of a start without starting.

mod connect;
mod drawing;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::bundle::segments::ScoreLimits;
use crate::bundle::{Bundle, ModelInput, Pixels};
use crate::config::{Config, InferenceSettings};
use crate::http::Tls;
use crate::kafka;
use crate::kafka::probe::Findings;
use crate::memory::{self, Budget};
use crate::shutdown::Shutdown;
use crate::verdict::ThresholdRule;

use crate::cli::shared::settings::ConfigArguments;
use crate::cli::shared::threshold::segments;
use crate::daemon::budget;
use crate::daemon::input;
use crate::daemon::media_folder;
use crate::daemon::model::{self, Loaded};
use crate::failure::Failure;

/// Check settings and bundle without starting: files, hashes, tensors, golden records, threshold
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald check --config residuald.toml
  residuald check --config residuald.toml --connect
  residuald check --bundle models/payments

--connect writes nothing and joins no consumer group. It also lists what it could not check.")]
pub struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Check only this bundle, without any settings, with the part that `residuald generate` draws from
    #[arg(long, value_name = "DIR", conflicts_with_all = ["config", "set"])]
    bundle: Option<PathBuf>,
    /// Also check Kafka and the schema registry: topics, permission to read, the consumer group, transactions
    #[arg(long, conflicts_with = "bundle")]
    connect: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    if let Some(dir) = &arguments.bundle {
        let inference = InferenceSettings::on_cpu(1);
        // Without settings there is no threshold to check. Any bundle supports this quantile.
        let loaded = model::load(dir, &inference, 1, |_| ThresholdRule::Quantile(0.5))?;
        let drawing = drawing::check(&loaded.bundle)?;
        report(arguments, &loaded, None, None, None);
        match drawing {
            Some((what, golden)) if !arguments.json => {
                println!("ok: draws {what}: {golden} golden points reproduced");
            }
            _ => {}
        }
        return Ok(());
    }
    let config = arguments.config.load()?;
    if !arguments.connect {
        let (loaded, bounds, budget) = start(&config)?;
        report(arguments, &loaded, bounds.as_ref(), budget.as_ref(), None);
        return Ok(());
    }
    let findings = connect::ask(&config)?;
    let started = start(&config);
    if let Ok((loaded, bounds, budget)) = &started {
        let (bounds, budget) = (bounds.as_ref(), budget.as_ref());
        report(arguments, loaded, bounds, budget, Some(&findings));
    }
    connect::verdict(&findings, started).map(|_| ())
}

/// Performs the steps of a start up to the point where it connects.
fn start(config: &Config) -> Result<(Loaded, Option<ScoreLimits>, Option<Budget>), Failure> {
    let before = memory::resident();
    kafka::check_settings(&config.kafka)?;
    media_folder::checked(&config.output)?;
    let tls = config.http.tls.clone().map(Tls::load).transpose();
    tls.map_err(Failure::config)?;
    let inference = InferenceSettings {
        workers: 1,
        ..config.inference.clone()
    };
    let mut loaded = model::load_within(
        &config.model.bundle,
        &inference,
        config.batch.max_records,
        config.model.load_timeout,
        &Shutdown::default(),
        |_| Ok(config.threshold),
    )?;
    input::open_here(config, &loaded.bundle)?;
    loaded.open_generative(config, &Shutdown::default())?;
    let bounds = loaded.bounds(config.screen)?;
    let budget = budget::of(config.memory_limit, &loaded.bundle, before)?;
    Ok((loaded, bounds, budget))
}

/// Describes the rows that the bundle scores.
fn rows(bundle: &Bundle) -> String {
    match bundle.manifest.input {
        ModelInput::Tabular { .. } => format!("{} features", bundle.features().len()),
        ModelInput::Image(Pixels {
            height,
            width,
            channels,
            tiles,
            ..
        }) => {
            let colour = if channels == 1 { "gray" } else { "RGB" };
            let how = if tiles.is_some() { "in tiles" } else { "whole" };
            format!("images {how}, {width} x {height} {colour}")
        }
    }
}

/// Returns how long a worker takes to fill in a record, if records are restored.
fn fills_in(loaded: &Loaded) -> Option<Duration> {
    let is_open = !loaded.imputers.imputers.is_empty();
    is_open.then_some(loaded.imputers.each)
}

fn report(
    arguments: &Arguments,
    loaded: &Loaded,
    bounds: Option<&ScoreLimits>,
    budget: Option<&Budget>,
    connected: Option<&Findings>,
) {
    let Loaded {
        bundle,
        golden,
        judge,
        model,
        scorers,
        ..
    } = loaded;
    let (provider, placement) = (scorers[0].provider.as_str(), &scorers[0].placement);
    let finest = bundle.calibration.all.finest_rate();
    let threshold = arguments.bundle.is_none().then_some(judge.threshold);
    let by = bundle.calibration.segments.as_ref();
    let screen = bundle.screen.as_ref().map(|screen| &screen.answers);
    let cleared = screen
        .zip(bounds)
        .map(|(screen, bounds)| screen.cleared(bounds.all));
    if arguments.json {
        println!(
            "{}",
            json!({
                "model": model,
                "features": bundle.features().len(),
                "rows": rows(bundle),
                "provider": provider,
                "placement": placement,
                "golden": golden,
                "calibration_records": bundle.calibration.all.count,
                "finest_false_alarm_rate": finest,
                "segments": by.map(|s| json!({"by": s.by, "calibrated": s.values.len()})),
                "screen": screen.map(|_| json!({"cleared_share": cleared})),
                "threshold": threshold,
                "restored_record_seconds": fills_in(loaded).map(|each| each.as_secs_f64()),
                "translation": loaded.images.as_ref().and_then(|images| images.translation.as_ref()),
                "image_run_seconds": loaded.images.as_ref().map(|images| images.run.as_secs_f64()),
                "memory": budget.map(|budget| BTreeMap::from(budget.shares())),
                "connected": connected,
            })
        );
        return;
    }
    println!(
        "ok: {} version {} ({}), {}",
        model.name,
        model.version,
        &model.sha256[..8],
        rows(bundle)
    );
    println!("ok: runs on {provider}: {placement}");
    println!(
        "ok: {} golden records reproduced, worst relative error {:.1e}",
        golden.records, golden.worst_relative_error
    );
    println!(
        "ok: calibrated on {} normal records, false-alarm rates down to {finest:.1e}",
        bundle.calibration.all.count
    );
    if let Some(by) = by {
        let values = by.values.len();
        println!("ok: {values} segments by {} are calibrated", by.by);
    }
    match (screen, cleared) {
        (Some(_), Some(cleared)) => println!(
            "ok: the screen clears {:.1} % of normal records",
            100.0 * cleared
        ),
        (Some(_), None) => {
            println!("ok: the bundle has a screen, which is not used because of screen.mode")
        }
        (None, _) => {}
    }
    if let Some(each) = fills_in(loaded) {
        let each = each.as_secs_f64() * 1e3;
        println!("ok: a worker takes {each:.1} ms to fill in a record that lacks something");
    }
    if let Some(images) = &loaded.images {
        let run = images.run.as_secs_f64() * 1e3;
        match &images.translation {
            Some(by) => println!(
                "ok: images are translated by {} ({}) in {} steps; a worker takes {run:.1} ms for one of them on a tile",
                by.model,
                &by.sha256[..8],
                images.whole.runs[0]
            ),
            None => {
                println!("ok: images are denoised; a worker takes {run:.1} ms for a step on a tile")
            }
        }
    }
    if let Some(budget) = budget {
        println!("ok: memory, with one worker: {budget}");
    }
    if let Some(threshold) = threshold {
        let segments = segments(judge);
        println!("ok: settings are valid, and a score above {threshold}{segments} is an anomaly");
    }
    if let Some(findings) = connected {
        findings.fine.iter().for_each(|fine| println!("ok: {fine}"));
        let unknown = findings.unknown.iter();
        unknown.for_each(|unknown| println!("not checked: {unknown}"));
    }
}
