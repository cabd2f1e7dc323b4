//! `[batch]`: how many records are scored together, and how many batches are in flight.

use std::time::Duration;

use super::settings::Settings;

#[derive(Debug, Clone)]
pub struct BatchSettings {
    pub max_records: usize,
    pub max_wait: Duration,
    pub in_flight: usize,
}

impl BatchSettings {
    pub(super) fn parse(s: &mut Settings) -> BatchSettings {
        BatchSettings {
            max_records: s.integer("batch.max_records", 1, 65_536),
            max_wait: s.duration("batch.max_wait"),
            in_flight: s.integer("batch.in_flight", 1, 65_536),
        }
    }
}
