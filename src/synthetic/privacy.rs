//! Whether drawn records give away records of the training data.
//!
//! A record that was drawn without knowledge of the training rows is as often closest to one of M training rows as to one of M
//! held-out rows, because both are random samples of the same records. So the gate is a sign test. It is made at several distances,
//! because a few close copies must not disappear among many ordinary records.

use std::thread;

use serde::Serialize;
use statrs::function::beta::beta_reg;

use crate::bundle::generative::Reference;

/// Number of held-out rows whose distances to training rows set the distances of the looks.
const TYPICAL_ROWS: usize = 2_000;
/// Quantiles of these distances. For the last one, the distance is infinite.
const LOOKS: [f64; 8] = [0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0];
/// Maximum probability that records without knowledge of the training rows are refused (Bonferroni's inequality).
const LEVEL: f64 = 0.01;
/// Least share of the close records that are closer to training rows, besides being significant.
const EXCESS: f64 = 0.6;
/// Squared distances below this count as 0.
const SAME: f32 = 1e-9;

/// Compares drawn records with real ones.
#[derive(Debug)]
pub struct Gate {
    /// [M, D]
    training: Vec<f32>,
    /// [M, D]
    held_out: Vec<f32>,
    dimensions: usize,
    privacy: Privacy,
}

/// How close drawn records come to real ones.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Privacy {
    pub records: u64,
    /// Number of training rows, and of held-out rows, that they were compared with.
    pub reference_rows: u64,
    pub looks: Vec<Look>,
}

/// The records within one distance of a real row.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Look {
    /// `None` is infinite.
    pub distance: Option<f32>,
    /// Number of records that are closer to a training row than to any held-out row.
    pub training: u64,
    /// Number of records that are closer to a held-out row.
    pub held_out: u64,
}

impl Gate {
    /// Prepares the comparison. `encode` returns the points [N, D] of rows [N, F].
    ///
    /// # Errors
    /// `encode` fails.
    pub fn new<E>(
        reference: &Reference,
        mut encode: impl FnMut(&[f32]) -> Result<Vec<f32>, E>,
        dimensions: usize,
    ) -> Result<Gate, E> {
        let (training, held_out) = (encode(&reference.training)?, encode(&reference.held_out)?);
        let rows = held_out.len() / dimensions;
        let typical = &held_out[..rows.min(TYPICAL_ROWS) * dimensions];
        let mut typical = closest(typical, &training, dimensions);
        typical.sort_by(f32::total_cmp);
        let looks = LOOKS.map(|share| Look {
            distance: (share < 1.0).then(|| quantile(&typical, share)),
            ..Look::default()
        });
        Ok(Gate {
            training,
            held_out,
            dimensions,
            privacy: Privacy {
                records: 0,
                reference_rows: rows as u64,
                looks: looks.to_vec(),
            },
        })
    }

    /// Compares more drawn records, as points [N, D].
    pub fn add(&mut self, points: &[f32]) {
        let training = closest(points, &self.training, self.dimensions);
        let held_out = closest(points, &self.held_out, self.dimensions);
        self.privacy.records += training.len() as u64;
        for (training, held_out) in training.iter().zip(&held_out) {
            for look in &mut self.privacy.looks {
                let within = look.distance.unwrap_or(f32::INFINITY);
                look.training += u64::from(*training <= within && training < held_out);
                look.held_out += u64::from(*held_out <= within && held_out < training);
            }
        }
    }

    pub fn privacy(&self) -> &Privacy {
        &self.privacy
    }

    /// Returns the points of the held-out rows, [M, D].
    pub fn held_out(&self) -> &[f32] {
        &self.held_out
    }
}

impl Privacy {
    /// Returns the share of records that are closer to a training row than to a held-out row. 0.5 is chance.
    pub fn share_closer(&self) -> f64 {
        self.looks.last().map_or(0.5, Look::share)
    }

    /// Returns what is wrong if records come closer to the training rows than chance allows.
    pub fn fault(&self) -> Option<String> {
        let copies = self.looks.iter().find(|look| look.is_refused())?;
        let within = copies.distance.map_or(String::new(), |distance| {
            format!(" within a distance of {distance:.2}")
        });
        Some(format!(
            "{} of {} records{within} are closer to one of {} training records than to any of as many held-out records, and {} the other way round; without knowledge of the training records both would be alike",
            copies.training, self.records, self.reference_rows, copies.held_out
        ))
    }
}

impl Look {
    fn share(&self) -> f64 {
        match self.training + self.held_out {
            0 => 0.5,
            all => self.training as f64 / all as f64,
        }
    }

    /// Whether P(binomial(A + B, 1/2) >= A) is below the level, where A are closer to training rows and B to held-out rows.
    fn is_refused(&self) -> bool {
        let (training, all) = (self.training, self.training + self.held_out);
        if training == 0 || self.share() < EXCESS {
            return false;
        }
        // The upper tail of a binomial distribution is a regularised incomplete beta function.
        let tail = beta_reg(training as f64, (all - training + 1) as f64, 0.5);
        tail < LEVEL / LOOKS.len() as f64
    }
}

/// Returns a quantile of ascending values, interpolated linearly.
fn quantile(ascending: &[f32], share: f64) -> f32 {
    let place = share * (ascending.len() - 1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    let rest = (place - below as f64) as f32;
    ascending[below] + (ascending[above] - ascending[below]) * rest
}

/// Number of points that share one pass over the reference, so that it stays in the cache.
const AT_ONCE: usize = 16;

/// Returns the Euclidean distance of each point to the closest one of `reference`.
///
/// `points`: [N, D]. `reference`: [M, D], at least one. Result: [N].
pub fn closest(points: &[f32], reference: &[f32], dimensions: usize) -> Vec<f32> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let count = points.len() / dimensions;
    let part = count.div_ceil(cores).max(1) * dimensions;
    thread::scope(|scope| {
        let parts: Vec<_> = points
            .chunks(part)
            .map(|points| scope.spawn(move || closest_of(points, reference, dimensions)))
            .collect();
        let joined = parts
            .into_iter()
            .map(|part| part.join().expect("arithmetic does not panic"));
        joined.flatten().collect()
    })
}

/// Returns the Euclidean distance of each point to the closest other one. `points`: [N, D]. Result: [N].
pub fn closest_other(points: &[f32], dimensions: usize) -> Vec<f32> {
    let all = || points.chunks_exact(dimensions).enumerate();
    let distances = all().map(|(own, point)| {
        let others = all().filter(|(other, _)| *other != own);
        let squares = others.map(|(_, other)| square_distance(point, other));
        squares.fold(f32::INFINITY, f32::min).sqrt()
    });
    distances.collect()
}

fn closest_of(points: &[f32], reference: &[f32], dimensions: usize) -> Vec<f32> {
    let mut all = Vec::with_capacity(points.len() / dimensions);
    for points in points.chunks(AT_ONCE * dimensions) {
        let mut closest = [f32::INFINITY; AT_ONCE];
        for other in reference.chunks_exact(dimensions) {
            for (point, closest) in points.chunks_exact(dimensions).zip(&mut closest) {
                *closest = closest.min(square_distance(point, other));
            }
        }
        all.extend(
            closest[..points.len() / dimensions]
                .iter()
                .map(|square| if *square < SAME { 0.0 } else { square.sqrt() }),
        );
    }
    all
}

/// Sums in lanes, which the compiler turns into vector instructions.
fn square_distance(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 8;
    let mut sums = [0.0_f32; LANES];
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += (a - b) * (a - b);
        }
    }
    let rest: f32 = a_rest
        .iter()
        .zip(b_rest)
        .map(|(a, b)| (a - b) * (a - b))
        .sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_one_is_found() {
        let reference = [0.0, 0.0, 3.0, 4.0, 10.0, 10.0];
        let points: Vec<f32> = (0..100).flat_map(|i| [i as f32, 4.0]).collect();
        let found = closest(&points, &reference, 2);
        assert_eq!(found.len(), 100);
        assert_eq!(found[0], 3.0); // (3, 4), as far as (0, 0) would be 4
        assert_eq!(found[3], 0.0);
        assert_eq!(found[10], 6.0);
    }

    /// Rows of a smooth distribution with five dimensions.
    fn rows(random: &mut fastrand::Rng, count: usize) -> Vec<f32> {
        let mut normal = || (0..12).map(|_| random.f32()).sum::<f32>() - 6.0;
        (0..count * 5).map(|_| normal()).collect()
    }

    fn gate(training: Vec<f32>, held_out: Vec<f32>) -> Gate {
        let reference = Reference {
            width: 5,
            training,
            held_out,
        };
        Gate::new(&reference, |rows| Ok::<_, ()>(rows.to_vec()), 5).unwrap()
    }

    #[test]
    fn a_generator_that_repeats_training_rows_is_found_and_real_rows_pass() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut passed = 0;
        for _ in 0..20 {
            let training = rows(&mut random, 1_000);
            let mut honest = gate(training.clone(), rows(&mut random, 1_000));
            honest.add(&rows(&mut random, 1_000));
            passed += usize::from(honest.privacy().fault().is_none());
            for copies in [1_000, 150] {
                let mut dishonest = gate(training.clone(), rows(&mut random, 1_000));
                let mut drawn = rows(&mut random, 1_000);
                for (copy, original) in drawn[..copies * 5].iter_mut().zip(&training) {
                    *copy = original + 0.02 * (random.f32() - 0.5);
                }
                dishonest.add(&drawn);
                assert!(
                    dishonest.privacy().fault().is_some(),
                    "{:?}",
                    dishonest.privacy()
                );
            }
        }
        assert!(passed >= 19, "{passed}");
    }

    #[test]
    fn equal_rows_of_few_values_are_no_copies() {
        let mut random = fastrand::Rng::with_seed(2);
        let mut few = |count: usize| {
            (0..count * 5)
                .map(|_| random.u8(0..3) as f32)
                .collect::<Vec<f32>>()
        };
        let mut gate = gate(few(1_000), few(1_000));
        gate.add(&few(1_000));
        assert_eq!(gate.privacy().fault(), None, "{:?}", gate.privacy());
    }
}
