//! Keeps the latest anomalies for the triage page. Their number and their bytes are bounded.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::verdict::Severity;

/// The maximum number of anomalies kept.
pub const MOST: usize = 10_000;
/// The default limit for the bytes of verdicts, and also for the bytes of images.
const MOST_BYTES: usize = 64 << 20;

/// A delivered anomaly.
#[derive(Debug, Clone)]
pub struct Anomaly {
    pub severity: Severity,
    /// When the anomaly was judged, in milliseconds since the Unix epoch. This is not the record's own time.
    pub judged_ms: i64,
    /// The verdict, as published in JSON.
    pub verdict: Arc<[u8]>,
    /// The payload with the image, as long as there is room for it.
    pub image: Option<Arc<[u8]>>,
}

/// A query for anomalies.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub severity: Option<Severity>,
    /// Selects anomalies judged at or after this time.
    pub since_ms: i64,
    /// Selects anomalies with a number below this one, for the next page.
    pub before: u64,
    pub limit: usize,
}

/// The kept anomalies. The publisher adds anomalies, and the HTTP server reads them.
#[derive(Debug, Clone, Default)]
pub struct Recent(Arc<Mutex<Entries>>);

#[derive(Debug)]
struct Entries {
    /// The maximum number of bytes for verdicts, and also for images.
    most: usize,
    /// The oldest anomaly comes first. Anomalies are numbered consecutively.
    anomalies: VecDeque<Anomaly>,
    /// The number of the oldest anomaly.
    first: u64,
    verdict_bytes: usize,
    image_bytes: usize,
    /// Anomalies with a lower number no longer have an image.
    images_from: u64,
}

impl Default for Entries {
    fn default() -> Entries {
        Entries {
            most: MOST_BYTES,
            anomalies: VecDeque::new(),
            first: 0,
            verdict_bytes: 0,
            image_bytes: 0,
            images_from: 0,
        }
    }
}

impl Recent {
    /// Creates an empty list that takes at most `bytes` of memory.
    pub fn within(bytes: u64) -> Recent {
        // A fifth is for lists and allocator overhead. Verdicts and images get half of the rest each.
        let most = usize::try_from(bytes / 5 * 2).unwrap_or(usize::MAX);
        let kept = Entries {
            most,
            ..Entries::default()
        };
        Recent(Arc::new(Mutex::new(kept)))
    }

    pub fn add(&self, anomaly: Anomaly) {
        self.lock().add(anomaly);
    }

    /// Returns the number of the newest anomaly, or 0 if there is none. Numbers are consecutive from 1.
    pub fn latest(&self) -> u64 {
        let kept = self.lock();
        kept.first + kept.anomalies.len() as u64
    }

    /// Returns the selected anomalies, newest first, each with its number.
    pub fn find(&self, wanted: Wanted) -> Vec<(u64, Anomaly)> {
        let kept = self.lock();
        let numbered = kept.anomalies.iter().enumerate().rev();
        numbered
            .map(|(i, anomaly)| (kept.first + i as u64 + 1, anomaly))
            .filter(|(number, anomaly)| {
                *number < wanted.before
                    && anomaly.judged_ms >= wanted.since_ms
                    && wanted.severity.is_none_or(|s| s == anomaly.severity)
            })
            .take(wanted.limit)
            .map(|(number, anomaly)| (number, anomaly.clone()))
            .collect()
    }

    pub fn get(&self, number: u64) -> Option<Anomaly> {
        let kept = self.lock();
        let place = number.checked_sub(kept.first + 1)?;
        kept.anomalies.get(usize::try_from(place).ok()?).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // A panic cannot leave an anomaly incomplete.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn add(&mut self, anomaly: Anomaly) {
        self.verdict_bytes += anomaly.verdict.len();
        self.image_bytes += anomaly.image.as_ref().map_or(0, |p| p.len());
        self.anomalies.push_back(anomaly);
        while self.anomalies.len() > MOST || self.verdict_bytes > self.most {
            let Some(oldest) = self.anomalies.pop_front() else {
                break;
            };
            self.first += 1;
            self.verdict_bytes -= oldest.verdict.len();
            self.image_bytes -= oldest.image.map_or(0, |p| p.len());
        }
        self.images_from = self.images_from.max(self.first);
        while self.image_bytes > self.most {
            let place = (self.images_from - self.first) as usize;
            let image = self.anomalies[place].image.take();
            self.image_bytes -= image.map_or(0, |p| p.len());
            self.images_from += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anomaly(i: usize, verdict: usize, image: usize) -> Anomaly {
        Anomaly {
            severity: Severity::ALL[i % 2],
            judged_ms: i as i64,
            verdict: vec![b'x'; verdict].into(),
            image: (image > 0).then(|| vec![0; image].into()),
        }
    }

    fn wanted() -> Wanted {
        Wanted {
            severity: None,
            since_ms: 0,
            before: u64::MAX,
            limit: 100_000,
        }
    }

    #[test]
    fn the_newest_come_first_and_are_filtered() {
        let recent = Recent::default();
        assert_eq!(recent.latest(), 0);
        for i in 0..MOST + 5 {
            recent.add(anomaly(i, 1, 0));
        }
        let numbers = |wanted| -> Vec<u64> {
            let found = recent.find(wanted);
            found.into_iter().map(|(number, _)| number).collect()
        };
        assert_eq!(recent.latest(), MOST as u64 + 5);
        let all = numbers(wanted());
        assert_eq!((all.len(), all[0], all[MOST - 1]), (MOST, 10_005, 6));
        let two = Wanted {
            limit: 2,
            before: 10_000,
            ..wanted()
        };
        assert_eq!(numbers(two), [9_999, 9_998]);
        let grave = Wanted {
            severity: Some(Severity::Critical),
            since_ms: 10_000,
            ..wanted()
        };
        assert_eq!(numbers(grave), [10_004, 10_002]);
        assert!(recent.get(5).is_none() && recent.get(10_006).is_none() && recent.get(0).is_none());
        assert_eq!(recent.get(6).unwrap().judged_ms, 5);
    }

    #[test]
    fn a_share_of_memory_holds_fewer() {
        let recent = Recent::within(20 << 20);
        for i in 0..40 {
            recent.add(anomaly(i, 1 << 20, 4 << 20));
        }
        let all = recent.find(wanted());
        let images = all.iter().filter(|(_, a)| a.image.is_some()).count();
        assert_eq!((all.len(), images), (8, 2));
    }

    #[test]
    fn bytes_are_bounded_and_images_go_first() {
        let recent = Recent::default();
        for i in 0..40 {
            recent.add(anomaly(i, 1 << 20, 4 << 20));
        }
        let with = |recent: &Recent| {
            let all = recent.find(wanted());
            let images = all.iter().filter(|(_, a)| a.image.is_some()).count();
            (all.len(), images)
        };
        assert_eq!(with(&recent), (40, 16));
        assert!(
            recent.get(40).unwrap().image.is_some(),
            "the newest keep theirs"
        );
        for i in 0..40 {
            recent.add(anomaly(i, 2 << 20, 0));
        }
        assert_eq!(with(&recent), (32, 0));
        // An anomaly above the limit leaves nothing behind, and the byte counts are right again.
        recent.add(anomaly(0, MOST_BYTES + 1, MOST_BYTES + 1));
        assert_eq!(with(&recent), (0, 0));
        recent.add(anomaly(0, 1, 1));
        assert_eq!(with(&recent), (1, 1));
        assert_eq!(recent.latest(), 82);
    }
}
