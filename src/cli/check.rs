//! `residuald check`: everything that a start checks, without starting.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::json;

use crate::bundle::{Bundle, Input, Pixels};
use crate::config::Inference;
use crate::http::Tls;
use crate::kafka;
use crate::memory::{self, Budget};
use crate::pipeline::Bounds;
use crate::shutdown::Shutdown;
use crate::verdict::ThresholdRule;

use super::budget;
use super::config::ConfigArguments;
use super::daemon::media_folder;
use super::failure::Failure;
use super::input;
use super::model::{self, Loaded};
use super::threshold::segments;

/// Check settings and bundle without starting: files, hashes, tensors, golden records, threshold
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald check --config residuald.toml
  residuald check --bundle models/payments")]
pub struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Check only this bundle, without any settings
    #[arg(long, value_name = "DIR", conflicts_with_all = ["config", "set"])]
    bundle: Option<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let before = memory::resident();
    let (loaded, screen, budget) = match &arguments.bundle {
        Some(dir) => {
            let inference = Inference::on_cpu(1);
            // A quantile that every sample supports: the threshold is not what is checked here.
            let loaded = model::load(dir, &inference, 1, |_| ThresholdRule::Quantile(0.5))?;
            (loaded, None, None)
        }
        None => {
            let config = arguments.config.load()?;
            kafka::check_settings(&config.kafka)?;
            media_folder(&config.output)?;
            let tls = config.http.tls.clone().map(Tls::load).transpose();
            tls.map_err(Failure::config)?;
            let inference = Inference {
                workers: 1,
                ..config.inference.clone()
            };
            let loaded = model::load_within(
                &config.model.bundle,
                &inference,
                config.batch.max_records,
                config.model.load_timeout,
                &Shutdown::default(),
                |_| config.threshold,
            )?;
            input::open_here(&config, &loaded.bundle)?;
            let bounds = loaded.bounds(config.screen)?;
            let budget = budget::of(config.memory_limit, &loaded.bundle, before)?;
            (loaded, bounds, budget)
        }
    };
    report(arguments, &loaded, screen.as_ref(), budget.as_ref());
    Ok(())
}

/// What the bundle scores, in words.
fn rows(bundle: &Bundle) -> String {
    match bundle.manifest.input {
        Input::Tabular { .. } => format!("{} features", bundle.features().len()),
        Input::Image(Pixels {
            height,
            width,
            channels,
            tiles,
            ..
        }) => {
            let colour = if channels == 1 { "gray" } else { "RGB" };
            let how = if tiles.is_some() { "in tiles" } else { "whole" };
            format!("pictures {how}, {width} x {height} {colour}")
        }
    }
}

fn report(
    arguments: &Arguments,
    loaded: &Loaded,
    bounds: Option<&Bounds>,
    budget: Option<&Budget>,
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
                "memory": budget.map(|budget| BTreeMap::from(budget.shares())),
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
        (Some(_), None) => println!("ok: there is a screen, for screen.mode"),
        (None, _) => {}
    }
    if let Some(budget) = budget {
        println!("ok: memory, with one worker: {budget}");
    }
    if let Some(threshold) = threshold {
        let segments = segments(judge);
        println!("ok: settings; a score above {threshold}{segments} is an anomaly");
    }
}
