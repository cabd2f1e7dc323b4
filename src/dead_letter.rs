//! Dead letters: records that could not be scored, the headers that give the reason, and their replay.

mod headers;
mod intervals;
mod ledger;
mod letter;
mod marker;
mod replay;

pub use headers::{ERRORS_PREFIX, FailureHeaders, OMITTED};
pub use intervals::Intervals;
pub use ledger::{Ledger, PartitionOffsets};
pub use letter::DeadLetter;
pub use marker::{BadMarker, Entry, Marker, discarded};
pub use replay::{Filter, Obstacle, ReplayRecord};

#[cfg(test)]
mod tests;
