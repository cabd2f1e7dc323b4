//! Reads files of records, sets fields of each record, and writes the records to a new file as NDJSON.

use std::io::Write;
use std::path::PathBuf;

use indicatif::ProgressBar;

use super::files::{FormatArgument, shown};
use super::new_file::NewFile;
use super::progress;
use super::refusals::Refusals;
use super::wrapping::WrappingArguments;
use crate::bundle::manifest::Feature;
use crate::dataset::{self, Dataset};
use crate::decode::{DecodeError, Decoder, RecordFormat};
use crate::failure::Failure;
use crate::imputation::feature_in;
use crate::patch::{self, Edit, has_field};
use crate::shutdown::Shutdown;

/// The arguments that verbs have in common: what to read, by which bundle, and what to write.
#[derive(clap::Args)]
pub struct RewriteArguments {
    /// Files of records: .csv, .tsv, .ndjson, .jsonl or .json, each also .gz, .parquet, .pq, .arrow, .feather or .npz; a folder of them, a
    /// pattern in quotes such as 'part-*.csv', or - for standard input; for `denoise` with a model of images an image, or a folder of images
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    format: FormatArgument,
    /// Bundle with a generative part; for `denoise` of images also a diffusion pipeline of a denoiser and a scheduler
    #[arg(long, value_name = "DIR")]
    pub bundle: PathBuf,
    #[command(flatten)]
    wrapping: WrappingArguments,
    /// File to write: .ndjson or .jsonl, also .gz; - is standard output. For images a folder, or a file .png for one image
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub out: PathBuf,
    /// Replace an existing file
    #[arg(long)]
    pub force: bool,
    /// Print one JSON object at the end instead of text
    #[arg(long)]
    pub json: bool,
}

impl RewriteArguments {
    /// Returns the name of an option for records that was given.
    pub fn given_for_records(&self) -> Option<&'static str> {
        if self.format.format.is_some() {
            return Some("--format");
        }
        let is_wrapped = self.wrapping.wrapping().is_some();
        is_wrapped.then_some("--envelope, --unwrap or --allow-nan")
    }
}

/// What became of the records.
#[derive(Default)]
pub struct Rewritten {
    pub records: u64,
    pub refusals: Refusals,
    /// Number of records that held the verb's own field already. It was replaced.
    pub replaced: u64,
}

/// Refuses a verb's own field, which tells what was changed, in the place of a feature.
pub fn field_is_free(field: &str, features: &[Feature]) -> Result<(), Failure> {
    match feature_in(field, features) {
        None => Ok(()),
        Some(feature) => Err(Failure::usage(format!(
            "the feature `{}` is read from `{}`, where the verb writes what it changed",
            feature.name, feature.path
        ))),
    }
}

/// Rewrites the records, `at_once` in a chunk. Tells in `field` what was changed. `edit` gets the rows of a chunk [N, F] and returns the fields to set in each of the N records.
///
/// # Errors
/// A file cannot be read or written, `edit` fails, no record could be read, or the work was interrupted, which leaves NAME.part.
pub fn rewrite<'f>(
    arguments: &RewriteArguments,
    field: &str,
    at_once: usize,
    features: &[Feature],
    mut edit: impl FnMut(&[f32]) -> Result<Vec<Vec<Edit<'f>>>, Failure>,
) -> Result<Rewritten, Failure> {
    let options = dataset::Options {
        format: arguments.format.format,
        wrapping: arguments.wrapping.wrapping(),
        ..dataset::Options::default()
    };
    let stop = Shutdown::default();
    progress::stop_on_ctrl_c(&stop)?;
    let mut data = dataset::open_all(&arguments.files, &options)?;
    let mut out = NewFile::open(&arguments.out, arguments.force, false)?;
    let bar = progress::of_file(&data, arguments.json);
    let mut chunk = Chunk::new(features);
    while !stop.is_requested() && chunk.read(&mut data, at_once)? {
        chunk.write(field, &mut edit, &mut out)?;
        bar.set_position(data.progress().done);
    }
    end(chunk.done, &stop, arguments, out, &bar, &data)
}

/// Completes the file, unless the work was interrupted or no record could be read.
fn end(
    done: Rewritten,
    stop: &Shutdown,
    arguments: &RewriteArguments,
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
                shown(&arguments.files)
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

/// Prints how many records were read, and why others were not. Verbs print what they changed after it.
pub fn print_counts(done: &Rewritten, seconds: f64) {
    let Rewritten {
        records,
        refusals,
        replaced,
    } = done;
    eprintln!(
        "{records} records in {seconds:.1} s, {} could not be read",
        refusals.count()
    );
    if refusals.count() > 0 {
        eprintln!("could not be read: {refusals}");
    }
    if *replaced > 0 {
        eprintln!(
            "{replaced} records had a field of the same name as the one that tells what was changed: it was replaced"
        );
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
                replaced: 0,
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
        field: &str,
        edit: &mut impl FnMut(&[f32]) -> Result<Vec<Vec<Edit<'f>>>, Failure>,
        out: &mut NewFile,
    ) -> Result<(), Failure> {
        let edits = edit(&self.rows)?;
        for (record, edits) in self.records.iter().zip(edits) {
            self.done.replaced += u64::from(!edits.is_empty() && has_field(record, field));
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
