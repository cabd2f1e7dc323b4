//! Reads files of records, sets fields of each record, and writes the records to a new file as NDJSON.

use std::io::Write;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;

use super::files::shown;
use super::new_file::NewFile;
use super::progress;
use super::refusals::Refusals;
use crate::bundle::manifest::Feature;
use crate::dataset::{self, Dataset};
use crate::decode::{DecodeError, Decoder, RecordFormat};
use crate::failure::Failure;
use crate::shutdown::Shutdown;
use crate::synthetic::patch::{self, Edit};

/// The files to read and the file to write.
pub struct Files<'a> {
    pub input: &'a [PathBuf],
    pub options: dataset::Options,
    /// NDJSON; `-` is standard output.
    pub out: &'a Path,
    pub force: bool,
    /// Number of records in a chunk.
    pub at_once: usize,
    pub hide_progress: bool,
}

/// What became of the records.
#[derive(Default)]
pub struct Rewritten {
    pub records: u64,
    pub refusals: Refusals,
}

/// Rewrites the records. `edit` gets the rows of a chunk [N, F] and returns the fields to set in each of the N records.
///
/// # Errors
/// A file cannot be read or written, `edit` fails, no record could be read, or the work was interrupted, which leaves NAME.part.
pub fn rewrite<'f>(
    files: &Files<'_>,
    features: &[Feature],
    stop: &Shutdown,
    mut edit: impl FnMut(&[f32]) -> Result<Vec<Vec<Edit<'f>>>, Failure>,
) -> Result<Rewritten, Failure> {
    let mut data = dataset::open_all(files.input, &files.options)?;
    let mut out = NewFile::open(files.out, files.force, false)?;
    let bar = progress::of_file(&data, files.hide_progress);
    let mut chunk = Chunk::new(features);
    while !stop.is_requested() && chunk.read(&mut data, files.at_once)? {
        chunk.write(&mut edit, &mut out)?;
        bar.set_position(data.progress().done);
    }
    end(chunk.done, stop, files, out, &bar, &data)
}

/// Completes the file, unless the work was interrupted or no record could be read.
fn end(
    done: Rewritten,
    stop: &Shutdown,
    files: &Files<'_>,
    out: NewFile,
    bar: &ProgressBar,
    data: &Dataset,
) -> Result<Rewritten, Failure> {
    progress::end(bar, data);
    if stop.is_requested() {
        let part = out.interrupt()?;
        let place = part.map_or(String::new(), |part| {
            format!("; they are in {}", part.display())
        });
        return Err(Failure::interrupted(format!(
            "interrupted after {} records{place}",
            done.records
        )));
    }
    match (done.records, done.refusals.count()) {
        (0, 0) => {
            out.discard();
            Err(Failure::data(format!(
                "{} contains no records",
                shown(files.input)
            )))
        }
        (0, refused) => {
            out.discard();
            Err(Failure::data(format!(
                "none of the {refused} records could be read: {}",
                done.refusals
            )))
        }
        _ => {
            out.finish()?;
            Ok(done)
        }
    }
}

struct Chunk {
    decoder: Decoder,
    records: Vec<String>,
    /// [records, F]
    rows: Vec<f32>,
    done: Rewritten,
}

impl Chunk {
    fn new(features: &[Feature]) -> Chunk {
        Chunk {
            decoder: Decoder::new(features, RecordFormat::Json, None),
            records: Vec::new(),
            rows: Vec::new(),
            done: Rewritten {
                records: 0,
                refusals: Refusals::by_flags(),
            },
        }
    }

    /// Reads up to `most` records. Returns whether there is something to write.
    fn read(&mut self, data: &mut Dataset, most: usize) -> Result<bool, Failure> {
        self.records.clear();
        self.rows.clear();
        while self.records.len() < most {
            let refusals = &mut self.done.refusals;
            match data.next() {
                None => break,
                Some(Ok(example)) => {
                    match self.decoder.decode(&example.payload, None, &mut self.rows) {
                        Ok(_) => self.records.push(one_line(example.payload)),
                        Err(DecodeError::Row(e)) => refusals.add(e.reason.as_str(), &e.detail),
                        // A deletion, for example.
                        Err(_) => {}
                    }
                }
                Some(Err(e)) if e.is_fatal() => return Err(e.into()),
                Some(Err(e)) => refusals.add("malformed", &e.to_string()),
            }
        }
        Ok(!self.records.is_empty())
    }

    fn write<'f>(
        &mut self,
        edit: &mut impl FnMut(&[f32]) -> Result<Vec<Vec<Edit<'f>>>, Failure>,
        out: &mut NewFile,
    ) -> Result<(), Failure> {
        let edits = edit(&self.rows)?;
        for (record, edits) in self.records.iter().zip(edits) {
            let line = if edits.is_empty() {
                Ok(record.clone())
            } else {
                patch::set(record, edits)
            };
            match line {
                Ok(line) => {
                    self.done.records += 1;
                    writeln!(out, "{line}").map_err(Failure::output)?;
                }
                Err(e) => self.done.refusals.add("malformed", &e.to_string()),
            }
        }
        Ok(())
    }
}

/// Returns the record without line breaks. JSON has them only between its tokens.
fn one_line(record: Vec<u8>) -> String {
    let record = String::from_utf8(record)
        .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned());
    match record.contains(['\n', '\r']) {
        true => record.replace(['\n', '\r'], " "),
        false => record,
    }
}
