//! Raises the limit of open file descriptors, which Kafka, files and HTTP share.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::failure::Failure;

/// The fewest file descriptors to run with: enough for Kafka with three brokers, a model, logs and a few clients.
const LEAST: u64 = 128;
/// The upper bound of HTTP connections. More are never needed.
const MOST_CONNECTIONS: usize = 256;

/// Raises the limit as far as the system allows. Returns the number of HTTP connections, a quarter of the limit.
///
/// # Errors
/// When the limit is too low for the other parts.
pub fn for_http() -> Result<usize, Failure> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // If the system refuses, the current limit stays.
    let _ = setrlimit(Resource::Nofile, raised);
    let Some(descriptors) = getrlimit(Resource::Nofile).current else {
        return Ok(MOST_CONNECTIONS);
    };
    if descriptors < LEAST {
        return Err(Failure::config(format!(
            "this process may open only {descriptors} files but needs at least {LEAST}: raise the limit (ulimit -n, LimitNOFILE= of systemd, --ulimit nofile= of Docker)"
        )));
    }
    let quarter = usize::try_from(descriptors / 4).unwrap_or(MOST_CONNECTIONS);
    Ok(quarter.min(MOST_CONNECTIONS))
}
