//! Flags for the threshold, with the same rules as `[threshold]`.

use std::path::Path;

use crate::bundle::{Calibration, Draft};
use crate::config::default_rate;
use crate::verdict::{Judge, ThresholdRule};

#[derive(Debug, Clone, clap::Args)]
pub struct ThresholdArguments {
    /// Share of normal records that may be flagged [default: 0.001, or the lowest that the bundle supports]
    #[arg(long, value_name = "RATE", value_parser = share, group = "threshold")]
    false_alarm_rate: Option<f64>,
    /// Allowed false alarms per day; requires --records-per-day
    #[arg(
        long,
        value_name = "N",
        value_parser = positive,
        group = "threshold",
        requires = "records_per_day"
    )]
    alerts_per_day: Option<f64>,
    /// Expected number of records per day
    #[arg(long, value_name = "N", value_parser = positive, requires = "alerts_per_day")]
    records_per_day: Option<f64>,
    /// Quantile of the calibration scores: 0.999 is a false-alarm rate of 0.001
    #[arg(long, value_name = "LEVEL", value_parser = share, group = "threshold")]
    quantile: Option<f64>,
    /// Score above which a record is flagged
    #[arg(long, value_name = "SCORE", value_parser = positive, group = "threshold")]
    score: Option<f64>,
}

impl ThresholdArguments {
    /// Returns the rule that the flags set, if any.
    pub fn rule(&self) -> Option<ThresholdRule> {
        let alerts = self.alerts_per_day.zip(self.records_per_day);
        let alerts = alerts.map(|(alerts, records_per_day)| ThresholdRule::AlertsPerDay {
            alerts,
            records_per_day,
        });
        self.false_alarm_rate
            .map(ThresholdRule::FalseAlarmRate)
            .or(alerts)
            .or(self.quantile.map(ThresholdRule::Quantile))
            .or(self.score.map(|score| ThresholdRule::Score(score as f32)))
    }
}

/// Returns the rule that applies if none is set: a false-alarm rate that the bundle supports.
pub fn default_rule(calibration: &Calibration) -> ThresholdRule {
    ThresholdRule::FalseAlarmRate(default_rate(calibration))
}

/// Returns the range of segment thresholds as text to follow the overall threshold. Empty without segments.
pub fn segments(judge: &Judge) -> String {
    judge
        .segment_thresholds()
        .map_or(String::new(), |(by, from, to)| {
            format!(", or above that of its {by}, {from:.4} to {to:.4}")
        })
}

/// Returns the default rule of a bundle that is not loaded yet. `None` if the bundle is invalid, which loading it reports.
pub fn default_rule_of(bundle: &Path) -> Option<ThresholdRule> {
    let calibration = Draft::read(bundle).calibration?;
    Some(default_rule(&calibration))
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate < 1.0 => Ok(rate),
        _ => Err("it must be a number between 0 and 1".into()),
    }
}

/// Parses a number above zero.
pub fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err("it must be a number above 0".into()),
    }
}
