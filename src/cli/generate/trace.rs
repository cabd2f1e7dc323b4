//! The states of drawn records from noise to sample: their points as NumPy files, and a page with their values.

use std::io;
use std::path::Path;

use askama::Template;

use super::chart::Chart;
use crate::bundle::manifest::{Feature, FeatureKind};
use crate::cli::shared::records_file::RecordsFile;
use crate::cli::shared::whole_files::{create, write_npy, write_whole};
use crate::failure::Failure;
use crate::onnx::generative::Sampler;
use crate::synthetic::anomalies::rank_correlation;
use crate::synthetic::conditions::Conditions;
use crate::synthetic::records::Records;

/// Maximum number of samples in a trace.
const MOST_SAMPLES: u64 = 1_000;
/// Maximum number of states on the page.
const MOST_SHOWN: usize = 6;
/// Number of pairs of numbers on the page.
const PAIRS: usize = 3;
/// Maximum number of dots of each kind in a cell.
const DOTS: usize = 300;
const PAGE: &str = "index.html";

#[derive(Template)]
#[template(path = "generate/trace.html")]
struct Page<'p> {
    name: &'p str,
    samples: u64,
    states: Vec<String>,
    pairs: Vec<PairRow<'p>>,
    features: Vec<FeatureRow<'p>>,
}

struct PairRow<'p> {
    first: &'p str,
    second: &'p str,
    real: String,
    /// The dots of each state, as a path.
    states: Vec<String>,
}

struct FeatureRow<'p> {
    name: &'p str,
    range: String,
    states: Vec<Chart>,
}

/// What a trace is written for, and where.
pub struct Trace<'t> {
    pub folder: &'t Path,
    pub overwrites: bool,
    /// The name of the bundle.
    pub name: &'t str,
    pub features: &'t [Feature],
    /// Real records to compare with, [M, F].
    pub real: &'t [f32],
    pub records: &'t Records,
}

/// Creates the folder for a number of steps.
///
/// # Errors
/// It has one of the files already, and `overwrites` is not set.
pub fn prepare(folder: &Path, steps: usize, overwrites: bool) -> Result<(), Failure> {
    let names = (0..=steps).flat_map(|state| ["npy", "csv"].map(|kind| name(state, kind)));
    create(folder, names.chain([PAGE.to_owned()]), overwrites)
}

impl Trace<'_> {
    /// Draws the first samples again, and writes each of their states: `0000.npy` has the points, float32 [N, D], of the noise, and
    /// `0000.csv` the records that they stand for. `index.html` shows some of the states. Returns the number of samples.
    ///
    /// # Errors
    /// Drawing fails, or a file cannot be written.
    pub fn write(
        &self,
        sampler: &mut Sampler,
        conditions: &Conditions,
        count: u64,
    ) -> Result<u64, Failure> {
        let samples = count.min(MOST_SAMPLES);
        let (x, known) = conditions.rows(samples as usize);
        let (steps, dimensions) = (sampler.steps(), sampler.dimensions() as u64);
        let shown = shown(steps);
        let mut states = Vec::new();
        let other = |failure: Failure| io::Error::other(failure.message);
        sampler.trace(&x, &known, &mut |graphs, state, points| {
            let path = self.folder.join(name(state, "npy"));
            write_npy(&path, self.overwrites, &[samples, dimensions], points).map_err(other)?;
            let rows = graphs.decode(points).map_err(io::Error::other)?;
            self.write_records(state, &rows).map_err(other)?;
            if shown.contains(&state) {
                states.push(rows);
            }
            Ok(())
        })?;
        let page = Page {
            name: self.name,
            samples,
            states: shown.iter().map(|state| title(*state, steps)).collect(),
            pairs: pairs(self.features, self.real, &states),
            features: charts(self.features, self.real, &states),
        };
        let page = page.render().map_err(Failure::internal)?;
        write_whole(&self.folder.join(PAGE), self.overwrites, |out| {
            io::Write::write_all(out, page.as_bytes())
        })?;
        Ok(samples)
    }

    fn write_records(&self, state: usize, rows: &[f32]) -> Result<(), Failure> {
        let path = self.folder.join(name(state, "csv"));
        let mut file = RecordsFile::open(&path, self.records, self.overwrites, false)?;
        for (number, row) in (0..).zip(rows.chunks_exact(self.features.len())) {
            file.write(self.records, self.records.cells(number, row, &[]))?;
        }
        file.finish()
    }
}

/// The states that the page shows, from 0, the noise, to `steps`, the sample. Most of a record is decided in the last steps, so they
/// are half, a quarter, an eighth … of the way from the end.
fn shown(steps: usize) -> Vec<usize> {
    let before = (1..MOST_SHOWN as u32 - 1).map(|i| steps - steps / 2_usize.pow(i));
    let mut shown: Vec<usize> = [0].into_iter().chain(before).chain([steps]).collect();
    shown.dedup();
    shown
}

fn name(state: usize, kind: &str) -> String {
    format!("{state:04}.{kind}")
}

fn title(state: usize, steps: usize) -> String {
    match state {
        0 => "noise".to_owned(),
        state if state == steps => format!("after step {state}: the sample"),
        state => format!("after step {state}"),
    }
}

fn column(rows: &[f32], width: usize, feature: usize) -> Vec<f32> {
    rows.iter().copied().skip(feature).step_by(width).collect()
}

fn charts<'f>(features: &'f [Feature], real: &[f32], states: &[Vec<f32>]) -> Vec<FeatureRow<'f>> {
    let rows = features.iter().enumerate().map(|(place, feature)| {
        let values = |rows: &[f32]| column(rows, features.len(), place);
        let real = values(real);
        let states = states
            .iter()
            .map(|state| Chart::new(feature, &real, &values(state)));
        let states: Vec<Chart> = states.collect();
        FeatureRow {
            name: &feature.name,
            range: states
                .first()
                .map_or(String::new(), |chart| chart.range.clone()),
            states,
        }
    });
    rows.collect()
}

/// The pairs of numbers that correlate most.
fn pairs<'f>(features: &'f [Feature], real: &[f32], states: &[Vec<f32>]) -> Vec<PairRow<'f>> {
    let width = features.len();
    let numbers: Vec<usize> = (0..width)
        .filter(|place| matches!(features[*place].kind, FeatureKind::Number))
        .collect();
    let mut pairs = Vec::new();
    for (i, &first) in numbers.iter().enumerate() {
        for &second in &numbers[i + 1..] {
            let both = real
                .chunks_exact(width)
                .map(|row| (row[first], row[second]));
            let both: Vec<_> = both
                .filter(|(a, b)| a.is_finite() && b.is_finite())
                .collect();
            pairs.push((rank_correlation(&both).abs(), first, second));
        }
    }
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let rows = pairs.iter().take(PAIRS).map(|&(_, first, second)| {
        let scales = [first, second].map(|place| Scale::of(&column(real, width, place)));
        let dots = |rows: &[f32]| {
            let rows = rows.chunks_exact(width).take(DOTS);
            let dots = rows.map(|row| {
                let [x, y] =
                    [(0, first), (1, second)].map(|(i, place)| scales[i].place(row[place]));
                format!("M{:.1} {:.1}h0", x, 100.0 - y)
            });
            dots.collect()
        };
        PairRow {
            first: &features[first].name,
            second: &features[second].name,
            real: dots(real),
            states: states.iter().map(|state| dots(state)).collect(),
        }
    });
    rows.collect()
}

/// The part of a number's range that a cell shows, and a tenth of it on either side.
struct Scale {
    low: f32,
    high: f32,
}

impl Scale {
    /// From the 1 % to the 99 % quantile.
    fn of(values: &[f32]) -> Scale {
        let mut values: Vec<f32> = values.iter().copied().filter(|v| v.is_finite()).collect();
        values.sort_by(f32::total_cmp);
        let edge = values.len() / 100;
        Scale {
            low: values.get(edge).copied().unwrap_or(0.0),
            high: values.iter().rev().nth(edge).copied().unwrap_or(1.0),
        }
    }

    /// Returns the place of a value from 0 to 100. Missing values are at the lower edge, and values beyond the range at theirs.
    fn place(&self, value: f32) -> f32 {
        let range = (self.high - self.low).max(f32::MIN_POSITIVE);
        if value.is_nan() {
            return 0.0;
        }
        (10.0 + 80.0 * (value - self.low) / range).clamp(0.0, 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_the_noise_the_sample_and_states_between() {
        assert_eq!(shown(30), [0, 15, 23, 27, 29, 30]);
        assert_eq!(shown(3), [0, 2, 3]);
        assert_eq!(shown(1), [0, 1]);
    }

    #[test]
    fn values_beyond_the_range_stay_in_the_cell() {
        let scale = Scale::of(&(0..=200).map(|v| v as f32).collect::<Vec<_>>());
        assert_eq!([scale.low, scale.high], [2.0, 198.0]);
        let places = [2.0, 198.0, 1e9, -1e9, f32::NAN].map(|value| scale.place(value));
        assert_eq!(places, [10.0, 90.0, 100.0, 0.0, 0.0]);
    }
}
