//! File descriptors: as many as the system gives, shared by Kafka, files and HTTP.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::failure::Failure;

/// Enough for Kafka with three brokers, a model, logs and a few clients.
const LEAST: u64 = 128;
/// Connections of HTTP clients that anyone needs.
const MOST_CONNECTIONS: usize = 256;

/// Raises the limit as far as the system allows and returns how many HTTP connections there is room for: a quarter.
///
/// # Errors
/// There is no room for the rest.
pub fn for_http() -> Result<usize, Failure> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // Where the system refuses, the limit stays as it is.
    let _ = setrlimit(Resource::Nofile, raised);
    let Some(descriptors) = getrlimit(Resource::Nofile).current else {
        return Ok(MOST_CONNECTIONS);
    };
    if descriptors < LEAST {
        return Err(Failure::config(format!(
            "this process may open {descriptors} files, and needs {LEAST} or more: raise the limit (ulimit -n, LimitNOFILE= of systemd, --ulimit nofile= of Docker)"
        )));
    }
    let quarter = usize::try_from(descriptors / 4).unwrap_or(MOST_CONNECTIONS);
    Ok(quarter.min(MOST_CONNECTIONS))
}
