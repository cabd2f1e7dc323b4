//! Distances of drawn records to the closest real ones.

use std::thread;

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
                .map(|square| square.sqrt()),
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
}
