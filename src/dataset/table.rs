//! Whole files in memory, as a trainer needs them: the same payloads that `score` and `produce` see, read into rows by the same
//! decoder as the daemon's.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Error, ErrorKind, Options, Progress, open};
use crate::bundle::Feature;
use crate::decode::JsonDecoder;

/// Of the records of a file, at most one in this many may not be JSON objects.
const TOLERATED: u64 = 10;
/// So many records that are not JSON objects are always left out without an error.
const ALWAYS_TOLERATED: u64 = 10;

/// Records in the order of their files. A clone or a part shares the records' memory.
#[derive(Debug, Clone, Default)]
pub struct Table {
    payloads: Vec<Arc<[u8]>>,
    /// The files that the records came from.
    pub files: Vec<FileFacts>,
    /// What was left out or changed on the way, a sentence each.
    pub notes: Vec<String>,
}

/// What was read from one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFacts {
    pub path: PathBuf,
    pub rows: u64,
    /// How many of its rows were drawn, if not all of them are in the table.
    pub drawn: Option<u64>,
}

/// A table as the scorer's input.
#[derive(Debug, Default)]
pub struct Encoded {
    /// [rows, features], NaN where a value is missing; a refused record's row holds NaN only.
    pub x: Vec<f32>,
    /// [rows]: the schema accepts the record.
    pub accepted: Vec<bool>,
    /// Refused records by reason.
    pub refused: BTreeMap<String, u64>,
}

impl Table {
    /// Reads files in order. If they hold more than `max_rows` records, `max_rows` of them are drawn at random, each equally likely
    /// (reservoir sampling, Vitter 1985, algorithm R); only those are kept in memory.
    ///
    /// `progress` may end the reading.
    ///
    /// # Errors
    /// [`Error`] names the file: it cannot be read, has no rows, or too many of its records are not JSON objects.
    pub fn read(
        paths: &[PathBuf],
        max_rows: usize,
        seed: u64,
        mut progress: impl FnMut(&Path, Progress) -> ControlFlow<()>,
    ) -> Result<Table, Error> {
        let mut reservoir = Reservoir::new(max_rows, seed);
        let mut table = Table::default();
        for (file, path) in paths.iter().enumerate() {
            let mut rows = 0;
            let mut refused = 0;
            let mut data = open(path, &Options::default())?;
            table.notes.extend(data.notes());
            while let Some(example) = data.next() {
                let payload = example?.payload;
                if rows % 4096 == 0 && progress(path, data.progress()).is_break() {
                    return Err(stopped(path));
                }
                if !is_object(&payload) {
                    refused += 1;
                    if refused > ALWAYS_TOLERATED.max((rows + refused) / TOLERATED) {
                        return Err(too_many(path, refused, rows));
                    }
                    continue;
                }
                rows += 1;
                reservoir.offer(file, payload);
            }
            if progress(path, data.progress()).is_break() {
                return Err(stopped(path));
            }
            if rows == 0 {
                return Err(Error {
                    path: path.clone(),
                    kind: ErrorKind::Columns("the file has no rows".to_owned()),
                });
            }
            if refused > 0 {
                table.notes.push(format!(
                    "{}: {refused} records that are not JSON objects are left out",
                    path.display()
                ));
            }
            table.files.push(FileFacts {
                path: path.clone(),
                rows,
                drawn: None,
            });
        }
        let total: u64 = table.files.iter().map(|file| file.rows).sum();
        let sampled = total > reservoir.capacity as u64;
        let drawn = reservoir.into_ordered();
        if sampled {
            for (number, file) in table.files.iter_mut().enumerate() {
                let count = drawn.iter().filter(|(from, _)| *from == number).count();
                file.drawn = Some(count as u64);
                table.notes.push(format!(
                    "{}: {count} of {} rows, drawn at random",
                    file.path.display(),
                    file.rows
                ));
            }
        }
        table.payloads = drawn.into_iter().map(|(_, payload)| payload).collect();
        Ok(table)
    }

    /// A table of JSON objects that are already in memory.
    pub fn from_payloads(payloads: impl IntoIterator<Item = Vec<u8>>) -> Table {
        Table {
            payloads: payloads.into_iter().map(Arc::from).collect(),
            ..Table::default()
        }
    }

    pub fn len(&self) -> usize {
        self.payloads.len()
    }

    pub fn is_empty(&self) -> bool {
        self.payloads.is_empty()
    }

    /// The JSON of one record, as a producer would send it.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn payload(&self, row: usize) -> &[u8] {
        &self.payloads[row]
    }

    pub fn payloads(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.payloads.iter().map(|payload| &**payload)
    }

    /// The rows of those numbers, in that order.
    ///
    /// # Panics
    /// If a number is not one of a row.
    pub fn take(&self, rows: impl IntoIterator<Item = usize>) -> Table {
        Table {
            payloads: rows.into_iter().map(|row| self.payloads[row].clone()).collect(),
            files: self.files.clone(),
            notes: self.notes.clone(),
        }
    }

    /// The records as the daemon's decoder reads them.
    pub fn encode(&self, features: &[Feature]) -> Encoded {
        let width = features.len();
        let mut decoder = JsonDecoder::new(features);
        let mut encoded = Encoded::default();
        let mut counts: HashMap<String, u64> = HashMap::new();
        encoded.x.reserve(width * self.len());
        for payload in self.payloads() {
            let refused = decoder.decode(payload, &mut encoded.x).err();
            encoded.accepted.push(refused.is_none());
            if let Some(error) = refused {
                encoded.x.resize(encoded.x.len() + width, f32::NAN);
                *counts.entry(error.to_string()).or_default() += 1;
            }
        }
        encoded.refused = counts.into_iter().collect();
        encoded
    }
}

fn is_object(payload: &[u8]) -> bool {
    serde_json::from_slice::<ObjectOnly>(payload).is_ok()
}

fn stopped(path: &Path) -> Error {
    Error {
        path: path.into(),
        kind: ErrorKind::Stopped,
    }
}

fn too_many(path: &Path, refused: u64, rows: u64) -> Error {
    Error {
        path: path.into(),
        kind: ErrorKind::Columns(format!(
            "{refused} of the first {} records are not JSON objects: each line must be one",
            rows + refused
        )),
    }
}

/// Any JSON object, its values skipped.
struct ObjectOnly;

impl<'de> serde::Deserialize<'de> for ObjectOnly {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Skip;
        impl<'de> serde::de::Visitor<'de> for Skip {
            type Value = ObjectOnly;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<ObjectOnly, A::Error> {
                use serde::de::IgnoredAny;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(ObjectOnly)
            }
        }
        deserializer.deserialize_map(Skip)
    }
}

/// A uniform sample of a stream of unknown length.
struct Reservoir {
    capacity: usize,
    seen: u64,
    random: fastrand::Rng,
    /// The number in the stream, the file, and the record.
    kept: Vec<(u64, usize, Arc<[u8]>)>,
}

impl Reservoir {
    fn new(capacity: usize, seed: u64) -> Reservoir {
        Reservoir {
            capacity,
            seen: 0,
            random: fastrand::Rng::with_seed(seed),
            kept: Vec::new(),
        }
    }

    fn offer(&mut self, file: usize, payload: Vec<u8>) {
        let number = self.seen;
        self.seen += 1;
        if self.kept.len() < self.capacity {
            self.kept.push((number, file, payload.into()));
            return;
        }
        let slot = self.random.u64(0..self.seen);
        if let Some(kept) = usize::try_from(slot).ok().and_then(|slot| self.kept.get_mut(slot)) {
            *kept = (number, file, payload.into());
        }
    }

    fn into_ordered(mut self) -> Vec<(usize, Arc<[u8]>)> {
        self.kept.sort_unstable_by_key(|(number, _, _)| *number);
        self.kept.into_iter().map(|(_, file, payload)| (file, payload)).collect()
    }
}
