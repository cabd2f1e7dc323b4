//! The page of `--report`: drawn records beside real ones that the model has not seen.

use askama::Template;

use super::chart::Chart;
use crate::bundle::manifest::Feature;
use crate::synthetic::privacy::Privacy;
use crate::synthetic::quality::Quality;

/// Maximum number of pairs on the page.
const MOST_PAIRS: usize = 20;
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
    chart: Chart,
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
    FeatureChart {
        name: &feature.name,
        shape: format!("{shape:.3}"),
        missing: format!("{:.1} % and {:.1} %", missing(real), missing(drawn)),
        chart: Chart::new(feature, real, drawn),
    }
}
