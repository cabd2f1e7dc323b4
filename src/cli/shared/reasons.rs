//! Formats the reasons of a verdict for the terminal.

use crate::verdict::{Observation, Verdict};

/// Returns the first reasons of a verdict on one line.
pub fn reasons(verdict: &Verdict<'_>) -> String {
    let features = verdict.attributions().iter().take(3).map(|a| {
        format!(
            "{} {} (expected {}) {:.0}%",
            a.feature,
            text(a.observed),
            text(a.expected),
            a.share * 100.0
        )
    });
    let regions = verdict.regions().iter().take(3).map(|r| {
        format!(
            "{} x {} at {}, {} {:.0}%",
            r.width,
            r.height,
            r.x,
            r.y,
            r.share * 100.0
        )
    });
    features.chain(regions).collect::<Vec<_>>().join(", ")
}

fn text(observation: Observation<'_>) -> String {
    match observation {
        Observation::Number(number) => format!("{number:.4}")
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_owned(),
        Observation::Bool(value) => value.to_string(),
        Observation::Category(entry) => entry.to_owned(),
        Observation::Unseen => "unseen".to_owned(),
    }
}
