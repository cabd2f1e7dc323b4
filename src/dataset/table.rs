//! Holds whole files in memory for the trainer: the same payloads that `score` and `produce` see, decoded into rows by the same
//! decoder as in the daemon.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::arrow::Payloads;
use super::format::Format;
use super::json_values::Changes;
use super::layout::Layout;
use super::pick::canonical;
use super::scan::{Scalar, scan};
use super::{Error, ErrorKind, Options, Progress, open_all};
use crate::bundle::{Feature, path};
use crate::clip::clip;
use crate::decode::{JsonDecoder, Wrapping, envelope_likeness, likeness};
use arrow_array::RecordBatch;
use arrow_schema::{ArrowError, SchemaRef};

/// At most one record in this many may be something other than a JSON object.
const TOLERATED: u64 = 10;
/// Number of bytes of a record that is no JSON object that are shown.
const EXAMPLE: usize = 60;
/// This many records that are not JSON objects never cause an error.
const ALWAYS_TOLERATED: u64 = 10;
/// Maximum number of different refusals that are counted separately.
const MOST_REFUSALS: usize = 1000;

/// Records in the order of their files. Clones and parts share the memory of the records.
#[derive(Debug, Clone, Default)]
pub struct Table {
    payloads: Vec<Arc<[u8]>>,
    /// The files that the records came from.
    pub files: Vec<FileFacts>,
    /// What was left out or changed, one sentence each.
    pub notes: Vec<String>,
}

/// The number of rows that were read from one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFacts {
    pub path: PathBuf,
    pub rows: u64,
    /// The number of rows that were drawn. `None` if all of them are in the table.
    pub drawn: Option<u64>,
}

/// A table as input of the scorer.
#[derive(Debug, Default)]
pub struct Encoded {
    /// [rows, features]. NaN if a value is missing. The row of a refused record contains only NaN.
    pub x: Vec<f32>,
    /// [rows]. Whether the schema accepts the record.
    pub accepted: Vec<bool>,
    /// Number of refused records by reason.
    pub refused: BTreeMap<String, u64>,
}

impl Table {
    /// Reads files in order, each as in [`open`](super::open). If they hold more than `max_rows` records, `max_rows` of them are drawn at random, each equally likely
    /// (reservoir sampling, algorithm R in Vitter 1985). Only those are kept in memory.
    ///
    /// `progress` is called now and then, and may stop the reading.
    ///
    /// # Errors
    /// A file cannot be read, has no rows, or has too many records that are not JSON objects. The error names the file.
    pub fn read(
        paths: &[PathBuf],
        format: Option<Format>,
        wrapping: Option<Wrapping>,
        max_rows: usize,
        seed: u64,
        mut progress: impl FnMut(&Path, Progress) -> ControlFlow<()>,
    ) -> Result<Table, Error> {
        let mut reservoir = Reservoir::new(max_rows, seed);
        let mut table = Table::default();
        let options = Options {
            format,
            wrapping,
            ..Options::default()
        };
        let mut data = open_all(paths, &options)?;
        let files: Vec<PathBuf> = data.paths().map(Path::to_owned).collect();
        let mut counts = vec![Count::default(); files.len()];
        let mut read = 0_u64;
        // The first record of the only file.
        let mut document = Vec::new();
        while let Some(example) = data.next() {
            let (file, done) = data.file();
            let (path, count) = (&files[file], &mut counts[file]);
            let payload = match example {
                // A record whose envelope cannot be opened counts like one that is not an object.
                Err(e) if options.wrapping.is_some() && !e.is_fatal() => {
                    count.first.get_or_insert(e.to_string());
                    Vec::new()
                }
                example => example?.payload,
            };
            if read.is_multiple_of(4096) && progress(path, done).is_break() {
                return Err(stopped(path));
            }
            read += 1;
            if !is_object(&payload) {
                count.refused += 1;
                let start = &payload[..payload.len().min(EXAMPLE)];
                let example = String::from_utf8_lossy(start);
                count.first.get_or_insert(format!("`{}`", clip(&example)));
                let most = (count.rows + count.refused) / TOLERATED;
                if count.refused > ALWAYS_TOLERATED.max(most) {
                    return Err(too_many(path, count));
                }
                continue;
            }
            if count.rows == 0 && files.len() == 1 {
                document.clone_from(&payload);
            }
            if count.rows == 0
                && options.wrapping.is_none()
                && let Some(likeness) = envelope_likeness(&payload)
            {
                let path = path.display();
                table.notes.push(format!("{path}: {likeness}"));
            }
            count.rows += 1;
            reservoir.offer(file, payload);
        }
        let (last, done) = data.file();
        if progress(&files[last], done).is_break() {
            return Err(stopped(&files[last]));
        }
        table.notes.extend(data.notes());
        if let [only] = &counts[..]
            && only.rows == 1
            && options.wrapping.is_none()
            && let Some(note) = document_note(&document)
        {
            table.notes.push(format!("{}: {note}", files[0].display()));
        }
        let several = files.len() > 1;
        let empty = counts.iter().filter(|count| count.rows == 0).count();
        for (path, count) in files.into_iter().zip(&counts) {
            if count.rows == 0 && count.refused > 0 {
                return Err(too_many(&path, count));
            }
            if count.rows == 0 && (!several || empty == counts.len()) {
                return Err(Error {
                    path,
                    kind: ErrorKind::Columns("the file has no rows".to_owned()),
                });
            }
            if count.refused > 0 {
                let first = count.first.as_ref();
                let first = first.map_or(String::new(), |first| format!(", for instance {first}"));
                table.notes.push(format!(
                    "{}: {} records that are not JSON objects are left out{first}",
                    path.display(),
                    count.refused
                ));
            }
            table.files.push(FileFacts {
                path,
                rows: count.rows,
                drawn: None,
            });
        }
        if empty > 0 {
            let first = table.files.iter().find(|file| file.rows == 0);
            let first = first.map_or(String::new(), |file| file.path.display().to_string());
            table.notes.push(format!(
                "{empty} of {} files have no rows, such as {first}",
                counts.len()
            ));
        }
        let total: u64 = table.files.iter().map(|file| file.rows).sum();
        let sampled = total > reservoir.capacity as u64;
        let drawn = reservoir.into_ordered();
        if sampled {
            let mut counts = vec![0; table.files.len()];
            for (file, _) in &drawn {
                counts[*file] += 1;
            }
            for (file, drawn) in table.files.iter_mut().zip(&counts) {
                file.drawn = Some(*drawn);
            }
            let drawn: u64 = counts.iter().sum();
            table
                .notes
                .push(format!("{drawn} of {total} rows, drawn at random"));
        }
        table.payloads = drawn.into_iter().map(|(_, payload)| payload).collect();
        Ok(table)
    }

    /// Builds a table from JSON objects that are already in memory.
    pub fn from_payloads(payloads: impl IntoIterator<Item = Vec<u8>>) -> Table {
        Table {
            payloads: payloads.into_iter().map(Arc::from).collect(),
            ..Table::default()
        }
    }

    /// Builds a table from Arrow's record batches with one schema. A column `a.b` becomes the field `b` of the object `a`.
    ///
    /// # Errors
    /// Two columns are the same field, or `batches` fails.
    pub fn from_batches(
        schema: SchemaRef,
        batches: impl IntoIterator<Item = Result<RecordBatch, ArrowError>>,
    ) -> Result<Table, ErrorKind> {
        let mut writer = Payloads::new(schema)?;
        let mut table = Table::default();
        for batch in batches {
            let batch = batch.map_err(|e| ErrorKind::Columns(e.to_string()))?;
            for row in 0..batch.num_rows() {
                table.payloads.push(writer.write(&batch, row)?.into());
            }
        }
        table.notes = writer.notes();
        Ok(table)
    }

    /// Builds a table from numbers, `rows` [n, paths], which become the fields at these dotted paths. NaN is a missing value.
    ///
    /// # Errors
    /// Two paths are the same field, or one is the parent of another.
    pub fn from_rows(paths: &[String], rows: &[f64]) -> Result<Table, ErrorKind> {
        let layout = Layout::new(paths.iter().map(String::as_str))?;
        let mut payloads = Vec::with_capacity(rows.len() / paths.len().max(1));
        let mut changes = Changes::default();
        rows.iter().for_each(|number| changes.count(*number));
        for row in rows.chunks(paths.len().max(1)) {
            let mut payload = Vec::new();
            layout.write(&mut payload, &mut |column, out| {
                Ok(write_number(row[column], out)?)
            })?;
            payloads.push(payload);
        }
        let table = Table::from_payloads(payloads);
        Ok(Table {
            notes: changes.notes(),
            ..table
        })
    }

    pub fn len(&self) -> usize {
        self.payloads.len()
    }

    pub fn is_empty(&self) -> bool {
        self.payloads.is_empty()
    }

    /// Returns the JSON of one record, as a producer would send it.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn payload(&self, row: usize) -> &[u8] {
        &self.payloads[row]
    }

    pub fn payloads(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.payloads.iter().map(|payload| &**payload)
    }

    /// Returns the rows with these indices, in this order.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn take(&self, rows: impl IntoIterator<Item = usize>) -> Table {
        Table {
            payloads: rows
                .into_iter()
                .map(|row| self.payloads[row].clone())
                .collect(),
            files: self.files.clone(),
            notes: self.notes.clone(),
        }
    }

    /// Returns the dotted paths of all fields, in the order of their first appearance.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        let mut seen = HashSet::new();
        self.scan(|_, path, _| {
            if !seen.contains(path) {
                seen.insert(path.to_owned());
                paths.push(path.to_owned());
            }
        });
        paths
    }

    /// Returns the string, number or boolean at `path` in each record as text, in the form in which categories are compared. `None`
    /// if it is absent or null.
    pub fn texts(&self, path: &str) -> Vec<Option<String>> {
        let mut texts = vec![None; self.len()];
        let path = path::canonical(path);
        self.scan(|row, at, value| {
            if at == path {
                texts[row] = value.text().map(Cow::into_owned);
            }
        });
        texts
    }

    /// Returns the number at `path` in each record, or NaN if there is none. Booleans count as 0 and 1.
    pub fn numbers(&self, path: &str) -> Vec<f64> {
        let mut numbers = vec![f64::NAN; self.len()];
        let path = path::canonical(path);
        self.scan(|row, at, value| {
            if at == path {
                numbers[row] = value.number().unwrap_or(f64::NAN);
            }
        });
        numbers
    }

    /// Returns whether the label at `path` in each record is `normal`. `None` if it is absent or null. Labels are compared as
    /// described at [`Options::normal`].
    pub fn is_normal(&self, path: &str, normal: &str) -> Vec<Option<bool>> {
        let normal = canonical(normal);
        let texts = self.texts(path).into_iter();
        texts
            .map(|text| text.map(|text| canonical(&text) == normal))
            .collect()
    }

    fn scan(&self, mut each: impl FnMut(usize, &str, Scalar<'_>)) {
        for (row, payload) in self.payloads().enumerate() {
            let scanned = scan(payload, |path, value| each(row, path, value));
            debug_assert!(scanned.is_ok(), "a table holds JSON objects only");
        }
    }

    /// Decodes the records as the daemon does.
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
                let mut refusal = error.to_string();
                if counts.len() >= MOST_REFUSALS && !counts.contains_key(&refusal) {
                    refusal = "other refusals".to_owned();
                }
                *counts.entry(refusal).or_default() += 1;
            }
        }
        encoded.refused = counts.into_iter().collect();
        encoded
    }
}

/// Writes a whole number without a fraction, because that is how categories and booleans are written.
fn write_number(value: f64, out: &mut Vec<u8>) -> std::io::Result<()> {
    /// 2^53: whole numbers up to here are exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.is_nan() {
        out.write_all(b"null")
    } else if value.fract() == 0.0 && value.abs() <= EXACT {
        write!(out, "{}", value as i64)
    } else if value.is_finite() {
        write!(out, "{value:?}")
    } else {
        // JSON has no infinity. This number is beyond float32, so the decoder refuses it as out of range.
        write!(out, "{}1e300", if value < 0.0 { "-" } else { "" })
    }
}

fn is_object(payload: &[u8]) -> bool {
    scan(payload, |_, _| {}).is_ok()
}

fn stopped(path: &Path) -> Error {
    Error {
        path: path.into(),
        kind: ErrorKind::Stopped,
    }
}

/// Says what a file seems to be that is one record, if that is not what it seems to be.
fn document_note(document: &[u8]) -> Option<String> {
    if envelope_likeness(document).is_some() {
        // This is said of every file.
        return None;
    }
    if let Some(likeness) = likeness(document) {
        return Some(format!("it is one record; {likeness}"));
    }
    let fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(document).ok()?;
    let is_like = |first: &serde_json::Value, other: &serde_json::Value| match (first, other) {
        (serde_json::Value::Array(first), serde_json::Value::Array(other)) => {
            first.len() > 1 && first.len() == other.len()
        }
        (serde_json::Value::Object(first), serde_json::Value::Object(other)) => {
            first.len() > 1 && first.keys().eq(other.keys())
        }
        _ => false,
    };
    let mut values = fields.values();
    let first = values.next()?;
    let are_columns = is_like(first, first) && values.all(|value| is_like(first, value));
    let is_split = fields.contains_key("columns") && fields.contains_key("data");
    (are_columns || is_split).then(|| {
        "it is one record that seems to hold columns or a whole table: write a record for each row (in pandas: df.to_json(path, orient=\"records\", lines=True))".to_owned()
    })
}

/// The number of records of one file.
#[derive(Debug, Clone, Default)]
struct Count {
    rows: u64,
    /// Records that are not JSON objects.
    refused: u64,
    /// The first of them, or why it could not be taken out of its envelope.
    first: Option<String>,
}

fn too_many(path: &Path, count: &Count) -> Error {
    let Count {
        rows,
        refused,
        first,
    } = count;
    let first = first.as_ref();
    let first = first.map_or(String::new(), |first| format!(" (the first: {first})"));
    Error {
        path: path.into(),
        kind: ErrorKind::Columns(format!(
            "{refused} of the first {} records are not JSON objects: each line must be one{first}",
            rows + refused
        )),
    }
}

/// A uniform sample of a stream of unknown length.
struct Reservoir {
    capacity: usize,
    seen: u64,
    random: fastrand::Rng,
    /// The position in the stream, the index of the file, and the record.
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
        if let Some(kept) = usize::try_from(slot)
            .ok()
            .and_then(|slot| self.kept.get_mut(slot))
        {
            *kept = (number, file, payload.into());
        }
    }

    fn into_ordered(mut self) -> Vec<(usize, Arc<[u8]>)> {
        self.kept.sort_unstable_by_key(|(number, _, _)| *number);
        self.kept
            .into_iter()
            .map(|(_, file, payload)| (file, payload))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(records: &[&str]) -> Table {
        Table::from_payloads(records.iter().map(|record| record.as_bytes().to_vec()))
    }

    fn read(text: &str, max_rows: usize, seed: u64) -> Result<Table, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.ndjson");
        std::fs::write(&path, text).unwrap();
        Table::read(&[path], None, None, max_rows, seed, |_, _| {
            ControlFlow::Continue(())
        })
        .map_err(|e| e.kind.to_string())
    }

    #[test]
    fn texts_numbers_and_labels_of_a_path() {
        let table = table(&[
            r#"{"a": {"b": 1.50}, "c": "x"}"#,
            r#"{"a.b": true, "c": null}"#,
            r#"{"a": {"b": "0"}, "d": [1]}"#,
        ]);
        assert_eq!(table.paths(), ["a.b", "c", "d"]);
        let texts = [Some("1.5"), Some("true"), Some("0")].map(|text| text.map(str::to_owned));
        assert_eq!(table.texts("a.b"), texts);
        assert_eq!(table.numbers("a.b")[..2], [1.5, 1.0]);
        assert!(table.numbers("a.b")[2].is_nan());
        assert_eq!(
            table.is_normal("a.b", "0.0"),
            [Some(false), Some(false), Some(true)]
        );
        assert_eq!(table.is_normal("c", "x"), [Some(true), None, None]);
    }

    #[test]
    fn few_records_that_are_not_objects_are_left_out_and_said() {
        let good = "{\"a\": 1}\n".repeat(200);
        let table = read(&format!("[1]\n{good}nonsense\n"), usize::MAX, 0).unwrap();
        assert_eq!(table.len(), 200);
        assert!(
            table.notes[0]
                .contains("2 records that are not JSON objects are left out, for instance `"),
            "{:?}",
            table.notes
        );
        let error = read(&"[1]\n".repeat(12), usize::MAX, 0).unwrap_err();
        assert!(error.starts_with("11 of the first 11 records"), "{error}");
        assert_eq!(read("", usize::MAX, 0).unwrap_err(), "the file has no rows");
    }

    #[test]
    fn a_sample_is_uniform_ordered_and_the_same_for_a_seed() {
        let lines: String = (0..1000).map(|i| format!("{{\"i\": {i}}}\n")).collect();
        let drawn = |seed| read(&lines, 100, seed).unwrap().numbers("i");
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        assert!(drawn(1).is_sorted());
        let mean: f64 = (0..50).flat_map(drawn).sum::<f64>() / 5000.0;
        assert!(
            (mean - 499.5).abs() < 5.0 * 288.7 / 5000_f64.sqrt(),
            "{mean}"
        );
        let table = read(&lines, 100, 1).unwrap();
        assert_eq!(
            (table.files[0].rows, table.files[0].drawn),
            (1000, Some(100))
        );
    }

    #[test]
    fn rows_are_the_decoders_and_refusals_are_counted() {
        let table = table(&[r#"{"a": 1}"#, r#"{"a": "x"}"#, r#"{}"#, r#"{"a": 2.5}"#]);
        let features: Vec<Feature> = serde_json::from_value(
            serde_json::json!([{"name": "a", "path": "a", "type": "number"}]),
        )
        .unwrap();
        let encoded = table.encode(&features);
        assert_eq!(encoded.accepted, [true, false, false, true]);
        assert_eq!((encoded.x[0], encoded.x[3]), (1.0, 2.5));
        assert!(encoded.x[1].is_nan() && encoded.x[2].is_nan());
        assert_eq!(encoded.refused.len(), 2);
        assert_eq!(table.take([3, 0]).numbers("a"), [2.5, 1.0]);
    }

    /// Exports that are one JSON object are no table, and say how they become one.
    #[test]
    fn a_file_that_is_one_record_says_what_it_seems_to_be() {
        let folder = tempfile::tempdir().unwrap();
        let notes = |text: &str| {
            let path = folder.path().join("a.json");
            std::fs::write(&path, text).unwrap();
            let more = |_: &Path, _| ControlFlow::Continue(());
            let table = Table::read(&[path], None, None, 100, 0, more).unwrap();
            table.notes.join("\n")
        };
        for (text, said) in [
            (
                r#"{"type": "x", "features": [{"a": 1}, {"a": 2}]}"#,
                "it is one record; it looks like records in a list: set input.unwrap = \"features\"",
            ),
            (
                r#"{"hits": {"total": {"value": 2}, "hits": [{"a": 1}]}}"#,
                "input.unwrap = \"hits.hits\"",
            ),
            (
                r#"{"a": [1, 2], "b": ["x", "y"]}"#,
                "seems to hold columns or a whole table",
            ),
            (
                r#"{"a": {"0": 1, "1": 2}, "b": {"0": 3, "1": 4}}"#,
                "orient=\"records\"",
            ),
            (
                r#"{"columns": ["a", "b"], "index": [0], "data": [[1, 2]]}"#,
                "seems to hold columns or a whole table",
            ),
        ] {
            let notes = notes(text);
            assert!(notes.contains(said), "{notes}");
        }
        for text in [
            r#"{"a": 1, "b": {"c": 2}}"#,
            r#"{"order": {"a": 1, "b": 2}, "customer": {"c": 1, "d": 2}}"#,
            "{\"a\": [1, 2], \"b\": [3, 4]}\n{\"a\": [1, 2], \"b\": [3, 4]}",
        ] {
            assert_eq!(notes(text), "");
        }
    }
}
