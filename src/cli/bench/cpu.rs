//! Measures the CPU time of this process without some of its threads.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

use super::Cost;

/// Thread ids as in `/proc`.
pub type Threads = Vec<u64>;

/// Returns all threads of this process except the calling one. Empty if there is no `/proc`.
pub fn threads() -> Threads {
    let own = rustix::thread::gettid().as_raw_nonzero().get() as u64;
    let tasks = std::fs::read_dir("/proc/self/task");
    let threads = tasks.into_iter().flatten().flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.parse().ok().filter(|thread| *thread != own)
    });
    threads.collect()
}

/// Measures CPU and wall time between start and stop.
pub struct Meter {
    others: Threads,
    started: Instant,
    cpu_ns: i128,
}

impl Meter {
    /// Starts a measurement without the CPU time of `others`. Those threads must live until `stop`.
    pub fn start(others: &[u64]) -> Meter {
        Meter {
            others: others.to_vec(),
            started: Instant::now(),
            cpu_ns: own_cpu_ns(others),
        }
    }

    pub fn stop(self, records: u64) -> Cost {
        let cpu_ns = own_cpu_ns(&self.others) - self.cpu_ns;
        Cost {
            cpu_us_per_record: cpu_ns as f64 / 1e3 / records as f64,
            records_per_second: records as f64 / self.started.elapsed().as_secs_f64(),
        }
    }
}

fn own_cpu_ns(others: &[u64]) -> i128 {
    let process = clock_gettime(ClockId::ProcessCPUTime);
    let whole = i128::from(process.tv_sec) * 1_000_000_000 + i128::from(process.tv_nsec);
    whole
        - others
            .iter()
            .map(|thread| thread_cpu_ns(*thread))
            .sum::<i128>()
}

/// The first number in `schedstat` is the CPU time in nanoseconds.
fn thread_cpu_ns(thread: u64) -> i128 {
    let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat"));
    let first = text.ok().and_then(|t| t.split(' ').next()?.parse().ok());
    first.unwrap_or(0)
}
