//! Bounds work that takes much longer than scoring: filling in records, and what a diffusion model does with whole images.

use std::time::Duration;

/// The share of the time for a drain that such work in flight may take. The rest is for scoring and delivery.
const SHARE_OF_DRAIN: f64 = 0.25;

/// How much of such work may be in flight, in units that take the same time: a record to fill in, or a run of the model on one tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowWork {
    /// In all batches. Other records wait in Kafka.
    pub most: usize,
    /// In one batch. With as much, it leaves, so that every worker has its part.
    pub most_in_batch: usize,
}

impl SlowWork {
    /// `unit`: how long one of the `workers` takes for a unit. At least one unit for each may be in flight.
    pub fn new(unit: Duration, workers: usize, drain_timeout: Duration) -> SlowWork {
        let seconds = drain_timeout.as_secs_f64() * SHARE_OF_DRAIN;
        let per_worker = seconds / unit.as_secs_f64().max(1e-6);
        let workers = workers.max(1);
        // A cast from a float saturates.
        let most = (per_worker as usize).max(1).saturating_mul(workers);
        SlowWork {
            most,
            most_in_batch: (most / (2 * workers)).max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_flight_is_done_within_a_quarter_of_a_drain() {
        let drain = Duration::from_secs(20);
        let most = |unit| SlowWork::new(unit, 2, drain).most;
        assert_eq!(most(Duration::from_millis(10)), 1000);
        assert_eq!(most(Duration::from_secs(60)), 2);
        assert!(most(Duration::ZERO) >= 1_000_000);
        let slow = SlowWork::new(Duration::from_millis(10), 2, drain);
        assert_eq!(slow.most_in_batch, 250);
    }
}
