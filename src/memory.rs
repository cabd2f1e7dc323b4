//! The memory budget of the process: its limit, and a share for each part that holds data from outside. Each part keeps
//! to its share. A single record that does not fit into a share becomes a dead letter.

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
/// The least memory next to the process and its model. With less, records cannot be read, decoded and published at the
/// same time.
const LEAST: u64 = 64 * MIB;
/// Upper bounds of shares. More memory for Kafka's queues, batches or the triage page would bring nothing.
const MOST_FETCH: u64 = 512 * MIB;
const MOST_IN_FLIGHT: u64 = 512 * MIB;
const MOST_RECENT: u64 = 128 * MIB;

/// How much memory the process may use, and where that limit comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    pub bytes: u64,
    pub from: String,
}

impl Limit {
    /// Finds the limit: the setting, else the cgroup's limit, else the machine's memory. Returns `None` if none of
    /// these is known.
    pub fn find(setting: Option<u64>) -> Option<Limit> {
        let asked = setting.map(|bytes| Limit {
            bytes,
            from: "memory.limit".to_owned(),
        });
        asked.or_else(|| cgroup::limit(Path::new("/proc")))
    }
}

/// The memory of the process before the first record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// Program, libraries and model sessions.
    pub resident: u64,
    /// The memory that loading the model added. A reload needs the same amount again while both models exist.
    pub model: u64,
}

/// Returns the resident bytes of the process, or 0 if unknown.
pub fn resident() -> u64 {
    cgroup::status_kib(Path::new("/proc"), "VmRSS:").unwrap_or(0)
}

/// The shares of the memory, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    pub limit: Limit,
    pub base: Base,
    /// Kafka's clients: data fetched but not consumed, and data waiting to be sent.
    pub fetch: u64,
    /// In-flight records: keys, values, headers, rows and dead letters.
    pub in_flight: u64,
    /// Images while they are decoded, resized and scored; 0 for tables.
    pub decoding: u64,
    /// Anomalies kept for the triage page.
    pub recent: u64,
}

/// The error that the limit leaves too little memory next to the model.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the memory limit is {} ({}), and the process with its model already takes {}: at least {} are needed. Raise that limit, or lower inference.workers or batch.max_records",
    human(.limit.bytes), .limit.from, human(*.taken), human(*.needed)
)]
pub struct TooLittle {
    limit: Limit,
    taken: u64,
    needed: u64,
}

impl Budget {
    /// Divides the memory that `base` leaves of the limit.
    ///
    /// # Errors
    /// When too little memory is left to work with.
    pub fn divide(limit: Limit, base: Base, images: bool) -> Result<Budget, TooLittle> {
        // The margin is for stacks, sockets, logging, and memory that the allocator cannot give back.
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
        let (fetch, in_flight, decoding, recent) = match images {
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

    /// Returns the bytes for the records in batches. This is only a part of the share, because the messages about the
    /// records and the triage page's copies exist at the same time.
    pub fn batches(&self) -> u64 {
        self.in_flight / 4
    }

    /// Returns the name and the bytes of each share, for the log, `check` and metrics.
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
            write!(f, "images {}, ", human(self.decoding))?;
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
            for images in [false, true] {
                let budget = Budget::divide(limit(mib), BASE, images).unwrap();
                let shares: u64 = budget.shares()[1..].iter().map(|(_, bytes)| bytes).sum();
                assert!(shares < budget.limit.bytes, "{budget:?}");
                assert_eq!(budget.decoding > 0, images);
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
