//! How far two samples of one column are from each other.

/// Factor of the critical value of the Kolmogorov-Smirnov test at a level of 0.001.
const CRITICAL: f64 = 1.949;

/// Returns the Kolmogorov-Smirnov statistic of two samples of finite numbers: the greatest difference of their empirical distribution
/// functions, from 0 to 1. Sorts both. `None` if one is empty.
pub fn kolmogorov_smirnov(a: &mut [f32], b: &mut [f32]) -> Option<f64> {
    if a.is_empty() || b.is_empty() {
        return None;
    }
    a.sort_unstable_by(f32::total_cmp);
    b.sort_unstable_by(f32::total_cmp);
    let (mut i, mut j, mut greatest) = (0, 0, 0.0_f64);
    while i < a.len() && j < b.len() {
        let value = a[i].min(b[j]);
        // Equal values count together.
        i += a[i..].partition_point(|x| *x <= value);
        j += b[j..].partition_point(|x| *x <= value);
        let difference = i as f64 / a.len() as f64 - j as f64 / b.len() as f64;
        greatest = greatest.max(difference.abs());
    }
    Some(greatest)
}

/// Returns the total variation distance of two counts of the same values: half the sum of the differences of their shares, from 0 to 1.
/// `None` if one is empty.
pub fn total_variation(a: &[u64], b: &[u64]) -> Option<f64> {
    let (whole_a, whole_b) = (a.iter().sum::<u64>(), b.iter().sum::<u64>());
    if whole_a == 0 || whole_b == 0 {
        return None;
    }
    let share = |count: &u64, whole: u64| *count as f64 / whole as f64;
    let pairs = a.iter().zip(b);
    let sum: f64 = pairs
        .map(|(a, b)| (share(a, whole_a) - share(b, whole_b)).abs())
        .sum();
    Some(sum / 2.0)
}

/// Returns the distance that two samples of one distribution exceed once in a thousand times: the critical value of the two-sample
/// Kolmogorov-Smirnov test (Smirnov 1948).
pub fn chance(a: usize, b: usize) -> f64 {
    if a == 0 || b == 0 {
        return 1.0;
    }
    CRITICAL * (1.0 / a as f64 + 1.0 / b as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values: scipy.stats.ks_2samp.
    #[test]
    fn kolmogorov_smirnov_is_that_of_scipy() {
        let ks = |a: &[f32], b: &[f32]| kolmogorov_smirnov(&mut a.to_vec(), &mut b.to_vec());
        assert_eq!(ks(&[1.0, 2.0, 3.0, 4.0], &[3.0, 4.0, 5.0, 6.0]), Some(0.5));
        assert_eq!(ks(&[1.0, 1.0, 1.0], &[1.0]), Some(0.0));
        assert_eq!(ks(&[2.0, 1.0], &[7.0, 9.0]), Some(1.0));
        assert_eq!(ks(&[], &[1.0]), None);
    }

    #[test]
    fn total_variation_is_half_the_difference_of_the_shares() {
        assert_eq!(total_variation(&[1, 1], &[5, 5]), Some(0.0));
        assert_eq!(total_variation(&[4, 0], &[0, 9]), Some(1.0));
        assert_eq!(total_variation(&[3, 1], &[1, 1]), Some(0.25));
        assert_eq!(total_variation(&[0], &[1]), None);
    }
}
