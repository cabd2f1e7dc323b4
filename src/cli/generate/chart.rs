//! Bars of a feature's values, real ones beside drawn ones.

use crate::bundle::manifest::{Feature, FeatureKind};

/// Maximum number of words of a category in its chart. The rest is left out.
const MOST_WORDS: usize = 24;
/// Number of bars of a number.
const BINS: usize = 24;
/// Height of the chart's area.
const HEIGHT: f64 = 50.0;

/// The shares of a feature's values as bars, in an area of 100 by 50.
pub struct Chart {
    pub bars: Vec<Bar>,
    /// What the bars stand for.
    pub range: String,
}

pub struct Bar {
    pub class: &'static str,
    pub x: String,
    pub y: String,
    pub width: String,
    pub height: String,
    pub title: String,
}

impl Chart {
    pub fn new(feature: &Feature, real: &[f32], drawn: &[f32]) -> Chart {
        let (labels, shares, range) = match &feature.kind {
            FeatureKind::Number | FeatureKind::Timestamp { .. } => numbers(real, drawn),
            FeatureKind::Bool => categories(&["false".to_owned(), "true".to_owned()], real, drawn),
            FeatureKind::Categorical { vocabulary } => categories(vocabulary, real, drawn),
        };
        Chart {
            bars: bars(&labels, &shares),
            range,
        }
    }
}

/// Shares of the real and the drawn values in bins of equal width between the 1 % and 99 % quantiles of the real ones. The outer bins
/// hold what is beyond.
fn numbers(real: &[f32], drawn: &[f32]) -> (Vec<String>, [Vec<f64>; 2], String) {
    let mut ascending: Vec<f32> = real
        .iter()
        .copied()
        .filter(|value| !value.is_nan())
        .collect();
    ascending.sort_by(f32::total_cmp);
    let (Some(first), Some(last)) = (ascending.first(), ascending.last()) else {
        return (Vec::new(), [Vec::new(), Vec::new()], "no value".to_owned());
    };
    let (low, high) = (
        ascending[ascending.len() / 100],
        ascending[ascending.len() - 1 - ascending.len() / 100],
    );
    let step = (high - low) / BINS as f32;
    let bin = |value: &f32| match step > 0.0 {
        true => (((value - low) / step) as usize).min(BINS - 1),
        false => 0,
    };
    let shares = [real, drawn].map(|values| {
        let present: Vec<usize> = values
            .iter()
            .filter(|value| !value.is_nan())
            .map(bin)
            .collect();
        shares(&present, BINS)
    });
    let labels = (0..BINS).map(|bin| format!("from {:.4}", low + step * bin as f32));
    (
        labels.collect(),
        shares,
        format!("{low} to {high}; real values reach from {first} to {last}"),
    )
}

fn categories(
    words: &[String],
    real: &[f32],
    drawn: &[f32],
) -> (Vec<String>, [Vec<f64>; 2], String) {
    let count = words.len().min(MOST_WORDS);
    let known = |values: &[f32]| -> Vec<usize> {
        values
            .iter()
            .filter(|value| **value >= 0.0)
            .map(|value| *value as usize)
            .collect()
    };
    let shares = [real, drawn].map(|values| shares(&known(values), words.len())[..count].to_vec());
    let mut range = words[..count].join(", ");
    if words.len() > count {
        range.push_str(&format!(" and {} more", words.len() - count));
    }
    (words[..count].to_vec(), shares, range)
}

fn shares(places: &[usize], count: usize) -> Vec<f64> {
    let mut shares = vec![0.0; count];
    for &place in places.iter().filter(|place| **place < count) {
        shares[place] += 1.0 / places.len() as f64;
    }
    shares
}

/// Two bars side by side for each label, the highest as high as the area.
fn bars(labels: &[String], shares: &[Vec<f64>; 2]) -> Vec<Bar> {
    let highest = shares
        .iter()
        .flatten()
        .fold(f64::MIN_POSITIVE, |a, b| a.max(*b));
    let slot = 100.0 / labels.len().max(1) as f64;
    let classes = [("real", 0.05), ("drawn", 0.5)];
    let mut bars = Vec::new();
    for (place, label) in labels.iter().enumerate() {
        for ((class, offset), shares) in classes.iter().zip(shares) {
            let height = HEIGHT * shares[place] / highest;
            bars.push(Bar {
                class,
                x: format!("{:.2}", slot * (place as f64 + offset)),
                y: format!("{:.2}", HEIGHT - height),
                width: format!("{:.2}", slot * 0.45),
                height: format!("{height:.2}"),
                title: format!("{label}: {class} {:.2} %", 100.0 * shares[place]),
            });
        }
    }
    bars
}
