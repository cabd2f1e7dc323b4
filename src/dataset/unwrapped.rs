//! Takes the records of a file out of their envelopes and lists, as the daemon takes those of a topic.

use std::collections::VecDeque;

use crate::decode::{Skip, Split, Wrapping};

use super::Numbered;

/// Maximum number of records in a line or element. It is higher than for a message, because a whole file may be one list.
const MOST_RECORDS: usize = 1_000_000;

/// The records of the payloads of a file.
pub struct Unwrapped {
    wrapping: Wrapping,
    /// The number of the payload that is divided.
    number: u64,
    /// Its records that are not taken yet: messages of one record each, with their index if there may be several.
    waiting: VecDeque<(Option<usize>, Vec<u8>)>,
}

/// The numbers of records that have nothing to score, by [`Skip`].
#[derive(Debug, Default)]
pub struct Skipped([u64; Skip::ALL.len()]);

impl Skipped {
    pub fn add(&mut self, skip: Skip) {
        self.0[skip as usize] += 1;
    }

    /// Returns what was left out, one sentence each.
    pub fn notes(&self) -> Vec<String> {
        let left_out = Skip::ALL.into_iter().zip(self.0);
        let left_out = left_out.filter(|(_, count)| *count > 0);
        left_out
            .map(|(skip, count)| {
                format!(
                    "left out, because there is nothing to score: {count} ({})",
                    skip.as_str()
                )
            })
            .collect()
    }
}

impl Unwrapped {
    pub fn new(wrapping: Wrapping) -> Unwrapped {
        Unwrapped {
            wrapping: Wrapping {
                most_records: MOST_RECORDS,
                ..wrapping
            },
            number: 0,
            waiting: VecDeque::new(),
        }
    }

    /// Adds a payload of the file.
    ///
    /// # Errors
    /// The number of the payload, and why its records cannot be found.
    pub fn add(
        &mut self,
        (number, payload): Numbered,
        skipped: &mut Skipped,
    ) -> Result<(), (u64, String)> {
        self.number = number;
        let split = self.wrapping.split(&payload);
        match split.map_err(|e| (number, e.to_string()))? {
            Split::One => self.waiting.push_back((None, payload)),
            Split::Empty => skipped.add(Skip::EmptyList),
            Split::Many(alone) => {
                let indexed = alone.into_iter().enumerate();
                self.waiting.extend(indexed.map(|(i, one)| (Some(i), one)));
            }
        }
        Ok(())
    }

    /// Returns the next record as plain JSON, or `None` if another payload is needed.
    ///
    /// # Errors
    /// The number of the payload, and why the record cannot be taken out of its envelope.
    pub fn take(&mut self, skipped: &mut Skipped) -> Result<Option<Numbered>, (u64, String)> {
        while let Some((index, one)) = self.waiting.pop_front() {
            match self.wrapping.plain(&one) {
                Ok(Ok(payload)) => return Ok(Some((self.number, payload))),
                Ok(Err(skip)) => skipped.add(skip),
                Err(error) => {
                    let index = index.map_or(String::new(), |i| format!("record {i}: "));
                    return Err((self.number, format!("{index}{error}")));
                }
            }
        }
        Ok(None)
    }
}
