//! The page of `--report`: drawn records beside real ones that the model has not seen.

use askama::Template;

use crate::bundle::manifest::{Feature, FeatureKind};
use crate::synthetic::privacy::Privacy;
use crate::synthetic::quality::Quality;

/// Maximum number of pairs on the page.
const MOST_PAIRS: usize = 20;
/// Maximum number of words of a category in its chart. The rest is left out.
const MOST_WORDS: usize = 24;
/// Number of bars of a number.
const BINS: usize = 24;
/// Height of the chart's area.
const HEIGHT: f64 = 50.0;

#[derive(Template)]
#[template(path = "generate/report.html")]
struct Page<'p> {
    title: String,
    summary: Vec<(&'p str, String, &'p str)>,
    features: Vec<FeatureChart<'p>>,
    pairs: Vec<(&'p str, &'p str, String)>,
    reference: u64,
    looks: Vec<(String, u64, u64)>,
}

struct FeatureChart<'p> {
    name: &'p str,
    shape: String,
    missing: String,
    bars: Vec<Bar>,
    range: String,
}

struct Bar {
    class: &'static str,
    x: String,
    y: String,
    width: String,
    height: String,
    title: String,
}

/// Returns the page as HTML. `drawn` and `real` are rows [N, F].
///
/// # Errors
/// The template fails, which is a bug.
pub fn page(
    name: &str,
    features: &[Feature],
    drawn: &[f32],
    real: &[f32],
    quality: &Quality,
    privacy: &Privacy,
) -> Result<String, askama::Error> {
    let width = features.len().max(1);
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let charts = features.iter().enumerate().map(|(column, feature)| {
        let values = |rows: &[f32]| -> Vec<f32> {
            rows.iter().copied().skip(column).step_by(width).collect()
        };
        chart(
            feature,
            &values(real),
            &values(drawn),
            quality.shapes[column],
        )
    });
    let mut pairs: Vec<_> = quality.trends.iter().collect();
    pairs.sort_by(|a, b| a.similarity.total_cmp(&b.similarity));
    let pairs = pairs.iter().take(MOST_PAIRS).map(|pair| {
        let [first, second] =
            [pair.first, pair.second].map(|feature| features[feature].name.as_str());
        (first, second, format!("{:.3}", pair.similarity))
    });
    let looks = privacy.looks.iter().map(|look| {
        let distance = look
            .distance
            .map_or("any".to_owned(), |distance| format!("{distance:.3}"));
        (distance, look.training, look.held_out)
    });
    let page = Page {
        title: format!("Records drawn from {name}"),
        summary: vec![
            (
                "records",
                (drawn.len() / width).to_string(),
                "drawn records in this comparison",
            ),
            (
                "shapes",
                percent(quality.shape),
                "mean over the features: 100 % is the same distribution",
            ),
            (
                "pair trends",
                quality.trend.map_or("–".to_owned(), percent),
                "mean over the pairs of features: 100 % is the same relation",
            ),
            (
                "told apart",
                percent(quality.told_apart),
                "records whose closest record is of the same kind, real or drawn: 50 % cannot be told apart",
            ),
            (
                "closer to training",
                percent(privacy.share_closer()),
                "drawn records that are closer to a training record than to an unseen one: 50 % is chance",
            ),
        ],
        features: charts.collect(),
        pairs: pairs.collect(),
        reference: privacy.reference_rows,
        looks: looks.collect(),
    };
    page.render()
}

fn chart<'p>(feature: &'p Feature, real: &[f32], drawn: &[f32], shape: f64) -> FeatureChart<'p> {
    let missing = |values: &[f32]| {
        100.0 * values.iter().filter(|value| value.is_nan()).count() as f64
            / values.len().max(1) as f64
    };
    let (labels, shares, range) = match &feature.kind {
        FeatureKind::Number | FeatureKind::Timestamp { .. } => numbers(real, drawn),
        FeatureKind::Bool => categories(&["false".to_owned(), "true".to_owned()], real, drawn),
        FeatureKind::Categorical { vocabulary } => categories(vocabulary, real, drawn),
    };
    FeatureChart {
        name: &feature.name,
        shape: format!("{shape:.3}"),
        missing: format!("{:.1} % and {:.1} %", missing(real), missing(drawn)),
        bars: bars(&labels, &shares),
        range,
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
