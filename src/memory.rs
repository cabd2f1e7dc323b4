//! One budget of memory for the process: what it may take in all, and the share of each part that holds what comes from
//! outside. Each part keeps to its share by itself; a record that does not fit into its share alone is a dead letter.

mod allocator;
mod cgroup;
mod room;
mod size;

use std::fmt;
use std::path::Path;

pub use allocator::give_back;
pub use room::{Room, Taken};
pub use size::{human, parse};

const MIB: u64 = 1 << 20;
/// With less than this beside process and model nothing can be read, decoded and published at the same time.
const LEAST: u64 = 64 * MIB;
/// More for the queues of Kafka's clients, the batches or the triage page gains nothing.
const MOST_FETCH: u64 = 512 * MIB;
const MOST_IN_FLIGHT: u64 = 512 * MIB;
const MOST_RECENT: u64 = 128 * MIB;

/// What the process may take, and who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    pub bytes: u64,
    pub from: String,
}

impl Limit {
    /// The setting; without it the cgroup's limit, without one the machine's memory. `None` where neither is known.
    pub fn find(setting: Option<u64>) -> Option<Limit> {
        let asked = setting.map(|bytes| Limit {
            bytes,
            from: "memory.limit".to_owned(),
        });
        asked.or_else(|| cgroup::limit(Path::new("/proc")))
    }
}

/// What the process holds when no record has come yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// Program, libraries, sessions of the model.
    pub resident: u64,
    /// What loading the model added: a reload needs as much again while both are there.
    pub model: u64,
}

/// Bytes that the process has in memory; 0 where the system does not say.
pub fn resident() -> u64 {
    cgroup::status_kib(Path::new("/proc"), "VmRSS:").unwrap_or(0)
}

/// The shares, bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    pub limit: Limit,
    pub base: Base,
    /// Kafka's clients: what is fetched and not consumed yet, and what waits to be sent.
    pub fetch: u64,
    /// Records that are taken and not finished: keys, values, headers, rows and dead letters.
    pub in_flight: u64,
    /// Pictures while they are decoded, resized and scored; 0 for a table.
    pub decoding: u64,
    /// Anomalies for the triage page.
    pub recent: u64,
}

/// The limit leaves too little beside the model.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the process may take {} ({}), and the process with its model takes {} already: at least {} are needed. Raise that limit, or lower inference.workers or batch.max_records",
    human(.limit.bytes), .limit.from, human(*.taken), human(*.needed)
)]
pub struct TooLittle {
    limit: Limit,
    taken: u64,
    needed: u64,
}

impl Budget {
    /// Divides what `base` leaves of the limit.
    ///
    /// # Errors
    /// When that is too little to work with.
    pub fn divide(limit: Limit, base: Base, pictures: bool) -> Result<Budget, TooLittle> {
        // For stacks, sockets, the log, and what the allocator cannot give back.
        let margin = limit.bytes / 12;
        let taken = base.resident + base.model + margin;
        let rest = limit.bytes.saturating_sub(taken);
        if rest < LEAST {
            return Err(TooLittle {
                needed: (taken + LEAST).next_multiple_of(MIB),
                taken: base.resident,
                limit,
            });
        }
        let percent = |share: u64| rest / 100 * share;
        let (fetch, in_flight, decoding, recent) = match pictures {
            true => (25, 20, 40, 10),
            false => (50, 30, 0, 15),
        };
        Ok(Budget {
            fetch: percent(fetch).min(MOST_FETCH),
            in_flight: percent(in_flight).min(MOST_IN_FLIGHT),
            decoding: percent(decoding),
            recent: percent(recent).min(MOST_RECENT),
            limit,
            base,
        })
    }

    /// What the records in the batches may weigh: the messages that are made of them for each topic, and the triage page's copies,
    /// are there at the same time.
    pub fn batches(&self) -> u64 {
        self.in_flight / 4
    }

    /// Name and bytes of each share, for the log, `check` and metrics.
    pub fn shares(&self) -> [(&'static str, u64); 6] {
        [
            ("limit", self.limit.bytes),
            ("base", self.base.resident + self.base.model),
            ("fetch", self.fetch),
            ("in_flight", self.in_flight),
            ("decoding", self.decoding),
            ("recent", self.recent),
        ]
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}): process and model {}, a reload {}, Kafka's clients {}, records in flight {}, ",
            human(self.limit.bytes),
            self.limit.from,
            human(self.base.resident),
            human(self.base.model),
            human(self.fetch),
            human(self.in_flight),
        )?;
        if self.decoding > 0 {
            write!(f, "pictures {}, ", human(self.decoding))?;
        }
        write!(f, "triage page {}", human(self.recent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Base = Base {
        resident: 150 * MIB,
        model: 20 * MIB,
    };

    fn limit(mib: u64) -> Limit {
        Limit {
            bytes: mib * MIB,
            from: "memory.limit".to_owned(),
        }
    }

    #[test]
    fn the_shares_fit_into_the_limit() {
        for mib in [280, 512, 1024, 4096, 1 << 20] {
            for pictures in [false, true] {
                let budget = Budget::divide(limit(mib), BASE, pictures).unwrap();
                let shares: u64 = budget.shares()[1..].iter().map(|(_, bytes)| bytes).sum();
                assert!(shares < budget.limit.bytes, "{budget:?}");
                assert_eq!(budget.decoding > 0, pictures);
                assert!(budget.batches() > 3 * MIB, "{budget:?}");
            }
        }
    }

    #[test]
    fn what_is_too_little_says_what_is_needed() {
        let error = Budget::divide(limit(200), BASE, true).unwrap_err();
        assert!(
            error.to_string().contains("at least 251 MiB are needed"),
            "{error}"
        );
        let enough = Limit {
            bytes: 256 * MIB,
            ..limit(0)
        };
        assert!(Budget::divide(enough, BASE, true).is_ok());
    }

    #[test]
    fn a_setting_wins() {
        assert_eq!(Limit::find(Some(MIB)).unwrap().from, "memory.limit");
        let found = Limit::find(None).expect("a machine has memory");
        assert!(found.bytes > MIB && resident() > MIB, "{found:?}");
    }
}
