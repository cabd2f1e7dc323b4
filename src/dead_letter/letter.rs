//! A dead letter that is still to be sent.

use crate::decode::RowError;
use crate::record::{Origin, OwnedHeader};

/// A record that could not be scored, unchanged, and why.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    pub source: Origin,
    pub timestamp_ms: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub payload: Vec<u8>,
    pub headers: Vec<OwnedHeader>,
    pub error: RowError,
}
