//! Anomalies of stated kinds that are put among drawn records, with labels.

use std::collections::BTreeSet;

use super::numbers;
use crate::bundle::generative::{About, Marginal, Reference};
use crate::bundle::manifest::{Feature, FeatureKind};

/// Number of records of one ramp.
const RAMP: u64 = 20;
/// Least absolute rank correlation of a relation that can be broken visibly.
const LEAST_CORRELATION: f32 = 0.5;
/// Number of reference rows that relations are measured on.
const MOST_ROWS: usize = 2_000;

/// A kind of anomaly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A number beyond its tail: above the highest or below the lowest normal value.
    Tail,
    /// Values of another record: each replaced feature has a normal value that does not belong to the rest.
    Foreign,
    /// A number on the wrong side of a correlated one: rank u becomes 1 - u.
    Relation,
    /// A category that the training data does not have.
    Unseen,
    /// A number that rises slowly over the records of one key.
    Ramp,
}

pub const KINDS: [Kind; 5] = [
    Kind::Tail,
    Kind::Foreign,
    Kind::Relation,
    Kind::Unseen,
    Kind::Ramp,
];

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Tail => "tail",
            Kind::Foreign => "foreign",
            Kind::Relation => "relation",
            Kind::Unseen => "unseen",
            Kind::Ramp => "ramp",
        }
    }
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Kind, String> {
        let found = KINDS.into_iter().find(|kind| kind.as_str() == text);
        let names = KINDS.map(Kind::as_str).join(", ");
        found.ok_or_else(|| format!("the kinds are {names}"))
    }
}

/// Which share of the records becomes anomalous, in which ways, and how much.
#[derive(Debug, Clone)]
pub struct Wishes {
    pub share: f64,
    pub kinds: Vec<Kind>,
    /// 1 is plain to see, 0 is normal. For `tail` and `ramp` it is the distance beyond the normal range, in ranges from the median
    /// to the end of that side; for `foreign` the share of features; for `relation` how far the rank moves to the other side.
    pub strength: f32,
    /// Whether records have keys, which ramps need.
    pub has_keys: bool,
    pub seed: u64,
}

/// Turns some rows into anomalies.
#[derive(Debug)]
pub struct Injector {
    wishes: Wishes,
    marginals: Vec<Marginal>,
    /// Columns with numbers that vary.
    numbers: Vec<usize>,
    /// Columns with categories.
    categories: Vec<usize>,
    /// Columns with numbers that correlate with another one.
    related: Vec<usize>,
    /// Columns that may get a value of another record.
    exchangeable: Vec<usize>,
}

impl Injector {
    /// Prepares the kinds. Kinds that the schema does not allow are left out; the notes say which and why.
    ///
    /// `held`: the features whose values are given, which stay as they are.
    ///
    /// # Errors
    /// A message, if no kind is left.
    pub fn new(
        mut wishes: Wishes,
        features: &[Feature],
        about: &About,
        reference: &Reference,
        held: &[bool],
    ) -> Result<(Injector, Vec<String>), String> {
        let free = |column: &usize| !held[*column];
        let of_kind = |wanted: fn(&FeatureKind) -> bool| {
            let columns = features
                .iter()
                .enumerate()
                .filter(|(_, feature)| wanted(&feature.kind));
            columns
                .map(|(column, _)| column)
                .filter(free)
                .collect::<Vec<_>>()
        };
        let varies = |column: &usize| {
            let quantiles = &about.marginals[*column].quantiles;
            quantiles.first() < quantiles.last()
        };
        let all_numbers = of_kind(|kind| matches!(kind, FeatureKind::Number));
        let numbers: Vec<usize> = all_numbers.into_iter().filter(varies).collect();
        let injector = Injector {
            related: related(&numbers, reference),
            numbers,
            categories: of_kind(|kind| matches!(kind, FeatureKind::Categorical { .. })),
            exchangeable: of_kind(|_| true),
            marginals: about.marginals.clone(),
            wishes: wishes.clone(),
        };
        let mut notes = Vec::new();
        let asked: BTreeSet<Kind> = wishes.kinds.iter().copied().collect();
        wishes.kinds = Vec::new();
        for kind in asked {
            let lacking = match kind {
                Kind::Tail if injector.numbers.is_empty() => Some("no number varies"),
                Kind::Foreign if injector.exchangeable.len() < 2 => Some("it needs two features"),
                Kind::Relation if injector.related.is_empty() => {
                    Some("no two numbers correlate by at least 0.5")
                }
                Kind::Unseen if injector.categories.is_empty() => Some("there is no category"),
                Kind::Ramp if injector.numbers.is_empty() => Some("no number varies"),
                Kind::Ramp if !wishes.has_keys => Some("it needs keys: --key FIELD"),
                _ => None,
            };
            match lacking {
                Some(why) => notes.push(format!("no anomalies of kind {}: {why}", kind.as_str())),
                None => wishes.kinds.push(kind),
            }
        }
        if wishes.kinds.is_empty() {
            return Err(notes.join("; "));
        }
        Ok((Injector { wishes, ..injector }, notes))
    }

    /// Returns the kinds that can be made.
    pub fn kinds(&self) -> &[Kind] {
        &self.wishes.kinds
    }

    /// Returns the ramp and the place in it if sample `number` belongs to one. All records of a ramp have the same key.
    pub fn ramp(&self, number: u64) -> Option<(u64, u64)> {
        let kinds = &self.wishes.kinds;
        if self.wishes.share <= 0.0 || !kinds.contains(&Kind::Ramp) {
            return None;
        }
        // Each window of records has one ramp, evenly spread, so that ramps are as frequent as each other kind.
        let share = self.wishes.share / kinds.len() as f64;
        let step = ((1.0 / share) as u64).max(1);
        let (ramp, place) = (number / (step * RAMP), number % (step * RAMP));
        (place % step == 0).then_some((ramp, place / step))
    }

    /// Turns sample `number` into an anomaly if its turn has come, and returns the kind.
    pub fn apply(&self, number: u64, row: &mut [f32]) -> Option<Kind> {
        if let Some((ramp, place)) = self.ramp(number) {
            let mut choice = numbers(self.wishes.seed, ramp, 3);
            let column = *choice.choice(&self.numbers)?;
            let progress = (place + 1) as f32 / RAMP as f32;
            row[column] = self.beyond(column, progress * self.wishes.strength, true);
            return Some(Kind::Ramp);
        }
        let mut random = numbers(self.wishes.seed, number, 2);
        let others: Vec<Kind> = self
            .wishes
            .kinds
            .iter()
            .copied()
            .filter(|kind| *kind != Kind::Ramp)
            .collect();
        let share = self.wishes.share * others.len() as f64 / self.wishes.kinds.len() as f64;
        if others.is_empty() || random.f64() >= share {
            return None;
        }
        let kind = *random.choice(&others)?;
        match kind {
            Kind::Tail => {
                let column = *random.choice(&self.numbers)?;
                row[column] = self.beyond(
                    column,
                    self.wishes.strength,
                    self.goes_up(column, &mut random),
                );
            }
            Kind::Foreign => {
                let count = (self.wishes.strength * self.exchangeable.len() as f32 / 2.0).ceil();
                let count = (count as usize).clamp(1, self.exchangeable.len());
                let mut columns = self.exchangeable.clone();
                random.shuffle(&mut columns);
                for &column in &columns[..count] {
                    row[column] = self.any_value(column, row[column], &mut random);
                }
            }
            Kind::Relation => {
                let column = *random.choice(&self.related)?;
                let rank = rank(&self.marginals[column].quantiles, row[column]);
                // A value in the middle has no other side.
                let far = if rank < 0.5 {
                    rank.min(0.1)
                } else {
                    rank.max(0.9)
                };
                let moved = far + (1.0 - 2.0 * far) * self.wishes.strength.min(1.0);
                row[column] =
                    self.rounded(column, quantile(&self.marginals[column].quantiles, moved));
            }
            Kind::Unseen => row[*random.choice(&self.categories)?] = -1.0,
            Kind::Ramp => unreachable!("ramps have places of their own"),
        }
        Some(kind)
    }

    /// Returns a value beyond the end of the normal range: by `strength` times the range from the median to that end.
    fn beyond(&self, column: usize, strength: f32, up: bool) -> f32 {
        let quantiles = &self.marginals[column].quantiles;
        let median = quantile(quantiles, 0.5);
        let end = if up {
            quantiles[quantiles.len() - 1]
        } else {
            quantiles[0]
        };
        self.rounded(column, end + (end - median) * strength)
    }

    /// A number whose lowest value is a bound, such as 0 for amounts, only goes up.
    fn goes_up(&self, column: usize, random: &mut fastrand::Rng) -> bool {
        let quantiles = &self.marginals[column].quantiles;
        quantiles[0] >= 0.0 || random.bool()
    }

    /// Returns a value of the feature that another record may have.
    fn any_value(&self, column: usize, own: f32, random: &mut fastrand::Rng) -> f32 {
        let marginal = &self.marginals[column];
        if !marginal.quantiles.is_empty() {
            return self.rounded(column, quantile(&marginal.quantiles, random.f32()));
        }
        // A category that the record does not have already, as often as it is.
        let is_other = |(index, _): &(usize, &f32)| *index as f32 != own;
        let shares = || marginal.shares.iter().enumerate().filter(is_other);
        let mut rest = random.f32() * shares().map(|(_, share)| share).sum::<f32>();
        for (index, share) in shares() {
            rest -= share;
            if rest <= 0.0 {
                return index as f32;
            }
        }
        shares().next_back().map_or(own, |(index, _)| index as f32)
    }

    fn rounded(&self, column: usize, value: f32) -> f32 {
        match self.marginals[column].decimals {
            Some(decimals) => {
                let unit = 10_f64.powi(decimals.min(9) as i32);
                ((f64::from(value) * unit).round() / unit) as f32
            }
            None => value,
        }
    }
}

/// Returns the columns whose ranks correlate with those of another column of `columns`.
fn related(columns: &[usize], reference: &Reference) -> Vec<usize> {
    let rows: Vec<&[f32]> = reference
        .held_out
        .chunks_exact(reference.width.max(1))
        .take(MOST_ROWS)
        .collect();
    let correlates = |column: usize| {
        let mut others = columns.iter().filter(|other| **other != column);
        others.any(|&other| {
            let pairs = rows.iter().map(|row| (row[column], row[other]));
            let both: Vec<_> = pairs
                .filter(|(a, b)| a.is_finite() && b.is_finite())
                .collect();
            rank_correlation(&both).abs() >= LEAST_CORRELATION
        })
    };
    columns
        .iter()
        .copied()
        .filter(|&column| correlates(column))
        .collect()
}

/// Spearman's rank correlation. 0 for fewer than 20 pairs.
pub fn rank_correlation(pairs: &[(f32, f32)]) -> f32 {
    if pairs.len() < 20 {
        return 0.0;
    }
    let (first, second): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
    let (first, second) = (ranks(&first), ranks(&second));
    let mean = (pairs.len() as f32 - 1.0) / 2.0;
    let product = |a: &[f32], b: &[f32]| -> f32 {
        a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum()
    };
    let scale = (product(&first, &first) * product(&second, &second)).sqrt();
    if scale > 0.0 {
        product(&first, &second) / scale
    } else {
        0.0
    }
}

/// Returns the rank of each value from 0; equal values share their mean rank.
fn ranks(values: &[f32]) -> Vec<f32> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    for group in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let first = order.partition_point(|&i| values[i] < values[group[0]]) as f32;
        for &i in group {
            ranks[i] = first + (group.len() as f32 - 1.0) / 2.0;
        }
    }
    ranks
}

/// Returns the value at `rank` from 0 to 1, interpolated between evenly spaced quantiles.
fn quantile(quantiles: &[f32], rank: f32) -> f32 {
    let place = rank.clamp(0.0, 1.0) * (quantiles.len() - 1) as f32;
    let below = place as usize;
    let above = (below + 1).min(quantiles.len() - 1);
    quantiles[below] + (quantiles[above] - quantiles[below]) * place.fract()
}

/// Returns the rank of a value from 0 to 1; 0.5 for NaN.
fn rank(quantiles: &[f32], value: f32) -> f32 {
    if value.is_nan() {
        return 0.5;
    }
    let (below, up_to) = (
        quantiles.partition_point(|q| *q < value),
        quantiles.partition_point(|q| *q <= value),
    );
    (below + up_to) as f32 / 2.0 / quantiles.len() as f32
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parts() -> (Vec<Feature>, About, Reference) {
        let features = serde_json::from_value(json!([
            {"name": "a", "path": "a", "type": "number"},
            {"name": "b", "path": "b", "type": "number"},
            {"name": "c", "path": "c", "type": "categorical", "vocabulary": ["x", "y"]},
        ]))
        .unwrap();
        let evenly: Vec<f32> = (0..=100).map(|i| i as f32).collect();
        let about = serde_json::from_value(json!({"steps": 1, "golden": [], "marginals": [
            {"quantiles": evenly, "decimals": 0}, {"quantiles": evenly}, {"shares": [0.9, 0.1]}]}))
        .unwrap();
        let rows = (0..100)
            .flat_map(|i| [i as f32, (i + i % 3) as f32, (i % 2) as f32])
            .collect::<Vec<_>>();
        let reference = Reference {
            width: 3,
            training: rows.clone(),
            held_out: rows,
        };
        (features, about, reference)
    }

    fn injector(
        kinds: &[Kind],
        strength: f32,
        has_keys: bool,
    ) -> Result<(Injector, Vec<String>), String> {
        let (features, about, reference) = parts();
        let wishes = Wishes {
            share: 0.1,
            kinds: kinds.to_vec(),
            strength,
            has_keys,
            seed: 5,
        };
        Injector::new(wishes, &features, &about, &reference, &[false; 3])
    }

    /// The changed rows of many equal ones, with the kind of each.
    fn changed(injector: &Injector, row: [f32; 3]) -> Vec<(Kind, [f32; 3])> {
        let rows = (0..20_000).filter_map(|number| {
            let mut changed = row;
            injector
                .apply(number, &mut changed)
                .map(|kind| (kind, changed))
        });
        rows.collect()
    }

    #[test]
    fn each_kind_is_as_frequent_and_as_strange_as_asked() {
        let (all, notes) = injector(&KINDS, 1.0, true).unwrap();
        assert_eq!(notes, Vec::<String>::new());
        let row = [20.0, 20.0, 0.0];
        let changed = changed(&all, row);
        assert!((1_800..2_200).contains(&changed.len()), "{}", changed.len());
        for kind in KINDS {
            let own: Vec<_> = changed.iter().filter(|(k, _)| *k == kind).collect();
            assert!((340..460).contains(&own.len()), "{kind:?}: {}", own.len());
            let far = |row: &[f32; 3]| row[..2].iter().any(|value| *value > 100.0);
            let right = |row: &[f32; 3]| match kind {
                Kind::Tail | Kind::Ramp => far(row),
                Kind::Unseen => row[2] == -1.0,
                Kind::Relation => row[..2].iter().any(|value| *value > 85.0),
                Kind::Foreign => *row != [20.0, 20.0, 0.0],
            };
            assert!(own.iter().all(|(_, row)| right(row)), "{kind:?}");
        }
    }

    #[test]
    fn a_ramp_rises_over_the_records_of_one_key() {
        let (ramps, _) = injector(&[Kind::Ramp], 1.0, true).unwrap();
        let places: Vec<_> = (0..2_000)
            .filter_map(|number| Some((number, ramps.ramp(number)?)))
            .collect();
        let first: Vec<_> = places.iter().filter(|(_, (ramp, _))| *ramp == 0).collect();
        assert_eq!(first.len(), RAMP as usize);
        let values = first.iter().map(|(number, _)| {
            let mut row = [20.0, 20.0, 0.0];
            ramps.apply(*number, &mut row);
            row[0].max(row[1])
        });
        assert!(values.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn what_a_schema_does_not_allow_is_said() {
        let (_, notes) = injector(&KINDS, 1.0, false).unwrap();
        assert_eq!(
            notes,
            ["no anomalies of kind ramp: it needs keys: --key FIELD"]
        );
        assert!(injector(&[Kind::Ramp], 1.0, false).is_err());
    }

    #[test]
    fn a_held_feature_is_not_changed() {
        let (features, about, reference) = parts();
        let wishes = Wishes {
            share: 1.0,
            kinds: KINDS.to_vec(),
            strength: 1.0,
            has_keys: true,
            seed: 5,
        };
        let held = [true, false, false];
        let (injector, _) = Injector::new(wishes, &features, &about, &reference, &held).unwrap();
        let changed = changed(&injector, [20.0, 20.0, 0.0]);
        assert!(changed.iter().all(|(_, row)| row[0] == 20.0));
    }
}
