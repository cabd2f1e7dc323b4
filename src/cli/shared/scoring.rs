//! What the verbs that score a file share: the highest scores, and the check of `--key`.

use crate::bundle::SegmentBy;

use crate::failure::Failure;

/// The entries with the highest scores, in descending order.
pub struct Highest<T> {
    most: usize,
    entries: Vec<(f32, T)>,
}

impl<T> Highest<T> {
    pub fn new(most: usize) -> Highest<T> {
        Highest {
            most,
            entries: Vec::new(),
        }
    }

    /// Returns whether an entry with this score would be kept.
    pub fn takes(&self, score: f32) -> bool {
        match self.entries.last() {
            _ if self.entries.len() < self.most => true,
            Some((least, _)) => score > *least,
            None => false,
        }
    }

    pub fn insert(&mut self, score: f32, entry: T) {
        let index = self.entries.partition_point(|(s, _)| *s >= score);
        self.entries.insert(index, (score, entry));
        self.entries.truncate(self.most);
    }

    pub fn iter(&self) -> impl Iterator<Item = &(f32, T)> {
        self.entries.iter()
    }
}

/// Checks `--key`. A file has no message keys, so a bundle that is calibrated by message key requires the field that holds the
/// key.
///
/// # Errors
/// `--key` is missing, or is given but not needed.
pub fn key_fits(by: Option<&SegmentBy>, key: Option<&str>) -> Result<(), Failure> {
    match (by, key) {
        (Some(SegmentBy::Key), None) => Err(Failure::usage(
            "the bundle is calibrated by message key, which a file does not have: give the field that holds the key with --key FIELD",
        )),
        (None | Some(SegmentBy::Field(_)), Some(_)) => Err(Failure::usage(
            "--key applies only to a bundle that is calibrated by message key: remove it",
        )),
        _ => Ok(()),
    }
}
