//! Shares with their intervals.

use serde::Serialize;

/// Quantile of the standard normal distribution for intervals of 95 %.
const Z: f64 = 1.959_963_984_540_054;

/// A share of counted things, with the interval of the true share.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Share {
    pub count: u64,
    pub of: u64,
    /// `count / of`; `None` if `of` is 0.
    pub share: Option<f64>,
    /// Lower end of the 95 % interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Share {
    /// Computes Wilson's score interval (Wilson 1927, "Probable inference, the law of succession, and statistical inference").
    /// Without any observation, it is from 0 to 1.
    pub fn new(count: u64, of: u64) -> Share {
        if of == 0 {
            return Share {
                count,
                of,
                share: None,
                low: 0.0,
                high: 1.0,
            };
        }
        let (n, p) = (of as f64, count as f64 / of as f64);
        let scale = 1.0 + Z * Z / n;
        let centre = (p + Z * Z / (2.0 * n)) / scale;
        let half = Z / scale * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        Share {
            count,
            of,
            share: Some(p),
            low: if count == 0 { 0.0 } else { centre - half },
            high: if count == of { 1.0 } else { centre + half },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values: statsmodels' proportion_confint with method="wilson".
    #[test]
    fn intervals_are_wilsons() {
        for (count, of, low, high) in [
            (0, 10, 0.0, 0.277_532_8),
            (5, 10, 0.236_593_1, 0.763_406_9),
            (10, 10, 0.722_467_2, 1.0),
            (10, 10_000, 0.000_543_27, 0.001_840_0),
        ] {
            let share = Share::new(count, of);
            assert!((share.low - low).abs() < 1e-6, "{share:?}");
            assert!((share.high - high).abs() < 1e-6, "{share:?}");
        }
        assert_eq!(Share::new(0, 0).share, None);
    }
}
