//! Sends the stream at its rate, and collects outcomes and counters meanwhile.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::rules::Snapshot;
use super::stream::Stream;
use super::verdicts::{Found, Verdicts};
use crate::cli::shared::feed::Feed;
use crate::cli::shared::progress;
use crate::config::KafkaSettings;
use crate::dataset::Example;
use crate::failure::Failure;
use crate::kafka::Sink;
use crate::kafka::follow::Follower;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

const REFRESH: Duration = Duration::from_millis(100);
/// How long no outcome may arrive after the last record was sent.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same after a stop was requested.
const PATIENCE_AFTER_STOP: Duration = Duration::from_secs(3);

/// How the stream is sent.
pub struct Sending<'a> {
    pub kafka: &'a KafkaSettings,
    pub topic: &'a str,
    /// The topics of all verdicts and of dead letters.
    pub outcomes: [&'a str; 2],
    /// Maximum number of records whose outcome is not known yet.
    pub window: u64,
    /// The daemon's counters. `None` if it runs elsewhere.
    pub metrics: Option<Metrics>,
    pub rate: f64,
    pub records_per_day: f64,
    pub hidden: bool,
    pub stop: &'a Shutdown,
}

/// What was sent and what came of it.
pub struct Sent {
    pub records: u64,
    pub found: Found,
    pub snapshots: Vec<Snapshot>,
}

impl Sending<'_> {
    /// Sends until the end or a stop, and waits for the outcomes.
    ///
    /// # Errors
    /// A topic is absent, or the broker refuses a record.
    pub fn run(self, stream: &Stream) -> Result<Sent, Failure> {
        let follower = Follower::open(self.kafka, &self.outcomes, self.stop)?;
        let sink = Sink::connect(self.kafka, &[self.topic], self.stop)?;
        // Tells the records of this rehearsal from those of others.
        let prefix = format!("rehearsal-{:08x}-", fastrand::u32(..));
        let sent_at: Vec<AtomicU64> = stream.about.iter().map(|_| AtomicU64::new(0)).collect();
        let started = Instant::now();
        let verdicts = Verdicts::new(follower, &prefix, &stream.about, &sent_at, started);
        let done = AtomicBool::new(false);
        let feed = Feed {
            sink: &sink,
            topic: self.topic,
            rate: Some(self.rate),
            stop: self.stop,
        };
        let records = (0..)
            .zip(&stream.payloads)
            .map(|(number, payload): (u64, _)| {
                Ok(Example {
                    payload: payload.clone(),
                    label: None,
                    key: Some(format!("{prefix}{number}").into_bytes()),
                })
            });
        let may_send = |number: u64| {
            let now = started.elapsed().as_micros() as u64;
            sent_at[number as usize].store(now, Ordering::Relaxed);
            number < verdicts.received() + self.window
        };
        let mut snapshots = Vec::new();
        let fed = thread::scope(|scope| {
            scope.spawn(|| verdicts.read(&done));
            let feeder = scope.spawn(|| feed.run(records, may_send));
            let bar = progress::of_count(stream.about.len() as u64, "records judged", self.hidden);
            let mut look = || {
                bar.set_position(verdicts.received());
                let metrics = self.metrics.as_ref();
                snapshots.extend(metrics.map(|m| Snapshot::of(m, self.records_per_day)));
            };
            while !feeder.is_finished() {
                look();
                thread::sleep(REFRESH);
            }
            let fed = feeder
                .join()
                .unwrap_or_else(|_| Err(Failure::internal("the producer thread panicked")));
            if let Ok(sent) = &fed {
                self.await_outcomes(&verdicts, *sent, &mut look);
            }
            look();
            bar.finish_and_clear();
            done.store(true, Ordering::Relaxed);
            fed
        });
        Ok(Sent {
            records: fed?,
            found: verdicts.into_found(),
            snapshots,
        })
    }

    fn await_outcomes(&self, verdicts: &Verdicts<'_>, sent: u64, look: &mut impl FnMut()) {
        let (mut before, mut since) = (verdicts.received(), Instant::now());
        while verdicts.received() < sent {
            let patience = match self.stop.is_requested() {
                true => PATIENCE_AFTER_STOP,
                false => PATIENCE,
            };
            if since.elapsed() >= patience {
                return;
            }
            thread::sleep(REFRESH);
            look();
            if verdicts.received() != before {
                (before, since) = (verdicts.received(), Instant::now());
            }
        }
    }
}
