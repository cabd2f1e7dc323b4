//! The threshold as flags, with the same rules as in `[threshold]`.

use std::path::Path;

use crate::bundle::{Calibration, Draft};
use crate::config::DEFAULT_FALSE_ALARM_RATE;
use crate::verdict::{Judge, ThresholdRule};

#[derive(Debug, Clone, clap::Args)]
pub struct ThresholdArguments {
    /// Share of normal records that may be flagged [default: 0.001, or the lowest that the bundle supports]
    #[arg(long, value_name = "RATE", value_parser = share, group = "threshold")]
    false_alarm_rate: Option<f64>,
    /// False alarms a day, given --records-per-day
    #[arg(
        long,
        value_name = "N",
        value_parser = positive,
        group = "threshold",
        requires = "records_per_day"
    )]
    alerts_per_day: Option<f64>,
    /// The expected number of records a day
    #[arg(long, value_name = "N", value_parser = positive, requires = "alerts_per_day")]
    records_per_day: Option<f64>,
    /// Calibration quantile: 0.999 is a false-alarm rate of 0.001
    #[arg(long, value_name = "LEVEL", value_parser = share, group = "threshold")]
    quantile: Option<f64>,
    /// The score above which a record is flagged
    #[arg(long, value_name = "SCORE", value_parser = positive, group = "threshold")]
    score: Option<f64>,
}

impl ThresholdArguments {
    /// The rule that the flags give, if any.
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

/// The rule when none is given: a false-alarm rate that the bundle supports.
pub fn default_rule(calibration: &Calibration) -> ThresholdRule {
    ThresholdRule::FalseAlarmRate(default_rate(calibration))
}

pub fn default_rate(calibration: &Calibration) -> f64 {
    DEFAULT_FALSE_ALARM_RATE.max(calibration.all.finest_rate())
}

/// Text to follow the overall threshold: the range of segment thresholds, if there are any.
pub fn segments(judge: &Judge) -> String {
    judge
        .segment_thresholds()
        .map_or(String::new(), |(by, from, to)| {
            format!(", or above that of its {by}, {from:.4} to {to:.4}")
        })
}

/// The same for a bundle that is not loaded yet. `None` if it is broken: loading it reports why.
pub fn default_rule_of(bundle: &Path) -> Option<ThresholdRule> {
    let calibration = Draft::read(bundle).calibration?;
    Some(default_rule(&calibration))
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate < 1.0 => Ok(rate),
        _ => Err("expected a number between 0 and 1".into()),
    }
}

/// Parses a number above zero.
pub fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err("expected a number above 0".into()),
    }
}
