//! `[threshold]`: which scores are anomalies.

use super::settings::Settings;
use crate::bundle::Calibration;
use crate::verdict::ThresholdRule;

/// The false-alarm rate if no rule is set, here or on the command line of a verb.
pub const DEFAULT_FALSE_ALARM_RATE: f64 = 0.001;

/// Returns [`DEFAULT_FALSE_ALARM_RATE`], or the lowest rate that the calibration supports.
pub fn default_rate(calibration: &Calibration) -> f64 {
    DEFAULT_FALSE_ALARM_RATE.max(calibration.all.finest_rate())
}

pub(super) fn parse(s: &mut Settings) -> ThresholdRule {
    let open_interval = |rate: f64| rate > 0.0 && rate < 1.0;
    let rate = s.number(
        "threshold.false_alarm_rate",
        "between 0 and 1",
        open_interval,
    );
    let alerts = s.number("threshold.alerts_per_day", "above 0", |a| a > 0.0);
    let records = s.number("threshold.records_per_day", "above 0", |r| r > 0.0);
    let quantile = s.number("threshold.quantile", "between 0 and 1", open_interval);
    let score = s.number("threshold.score", "above 0", |s| s > 0.0 && s < 1e30);
    let given = [rate, alerts, quantile, score];
    if given.iter().flatten().count() > 1 {
        s.problem(
            "[threshold]: set only one of false_alarm_rate, alerts_per_day, quantile and score"
                .into(),
        );
    }
    match (rate, alerts, records, quantile, score) {
        (Some(rate), ..) => ThresholdRule::FalseAlarmRate(rate),
        (_, Some(alerts), Some(records_per_day), ..) => {
            if alerts >= records_per_day {
                s.problem("threshold.alerts_per_day must be less than records_per_day".into());
            }
            ThresholdRule::AlertsPerDay {
                alerts,
                records_per_day,
            }
        }
        (_, Some(_), None, ..) => {
            s.problem(
                "threshold.alerts_per_day requires threshold.records_per_day, the expected number of records per day"
                    .into(),
            );
            ThresholdRule::FalseAlarmRate(DEFAULT_FALSE_ALARM_RATE)
        }
        (.., Some(level), _) => ThresholdRule::Quantile(level),
        (.., Some(score)) => ThresholdRule::Score(score as f32),
        _ => ThresholdRule::FalseAlarmRate(DEFAULT_FALSE_ALARM_RATE),
    }
}
