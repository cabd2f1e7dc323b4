//! A dead letter that has not been sent yet.

use crate::decode::RowError;
use crate::record::{Origin, OwnedHeader};

/// A record that could not be scored, unchanged, with the reason.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    pub source: Origin,
    pub timestamp_ms: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub payload: Vec<u8>,
    pub headers: Vec<OwnedHeader>,
    pub error: RowError,
}
