//! `residuald profile`: checks files of records against a schema, or shows what schema inference would make of them.

mod checked;

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::PathBuf;

use serde_json::json;

use crate::bounded;
use crate::bundle::manifest::feature_faults;
use crate::bundle::{Draft, Feature, ModelInput};
use crate::dataset;
use crate::dataset::inference::{InferredColumn, Wishes, infer_columns};
use crate::dataset::table::Table;
use crate::decode::SetBy;
use crate::text::escaped;

use crate::cli::shared::files::{FormatArgument, shown};
use crate::cli::shared::progress;
use crate::cli::shared::wrapping::WrappingArguments;
use crate::failure::Failure;
use checked::{Checked, Ranges};

/// Maximum number of records from which a schema is inferred.
const MOST_ROWS: usize = 1_000_000;

/// Check files of records against a schema: what would be refused and why, missing values, unseen categories
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald profile history.csv
  residuald profile 'day/part-*.parquet' --bundle models/payments
  residuald profile history.csv --schema schema.json --json

Without --schema and --bundle it shows what schema inference would make of the columns. If every record would be refused, the exit code
is 65.")]
pub struct Arguments {
    /// Files of records: .csv, .tsv, .ndjson, .jsonl or .json, each also .gz, .parquet, .pq, .arrow, .feather or .npz; a folder of them, a
    /// pattern in quotes such as 'part-*.csv', or - for standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    format: FormatArgument,
    #[command(flatten)]
    wrapping: WrappingArguments,
    /// Schema file to check against, as `residuald-train schema` writes it
    #[arg(long, value_name = "FILE", conflicts_with = "bundle")]
    schema: Option<PathBuf>,
    /// Bundle to check against
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    match schema(arguments)? {
        Some((features, ranges)) => check(arguments, features, ranges),
        None => infer(arguments),
    }
}

/// Tells the number of files, unless it is one.
fn of_files(files: usize) -> String {
    match files {
        1 => String::new(),
        _ => format!(" of {files} files"),
    }
}

/// Returns the features to check against, and the ranges that the bundle was trained on. `None` if neither is given.
fn schema(arguments: &Arguments) -> Result<Option<(Vec<Feature>, Ranges)>, Failure> {
    if let Some(path) = &arguments.schema {
        let wrong = |problem: String| Failure::data(format!("{}: {problem}", path.display()));
        let text = bounded::read(path, bounded::TEXT).map_err(|e| wrong(e.to_string()))?;
        let input: ModelInput = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
        let ModelInput::Tabular { features } = input else {
            return Err(wrong(
                "the schema is for images, not for records".to_owned(),
            ));
        };
        let faults = feature_faults(&features);
        if !faults.is_empty() {
            return Err(wrong(faults.join("; ")));
        }
        return Ok(Some((features, Ranges::default())));
    }
    let Some(folder) = &arguments.bundle else {
        return Ok(None);
    };
    let bundle = Draft::read(folder).finish()?;
    if let ModelInput::Image(_) = bundle.manifest.input {
        return Err(Failure::usage(format!(
            "the bundle {} reads images, and a profile is of records",
            folder.display()
        )));
    }
    let ranges = Ranges::of(&bundle.manifest.training["ranges"]);
    Ok(Some((bundle.features().to_vec(), ranges)))
}

fn check(arguments: &Arguments, features: Vec<Feature>, ranges: Ranges) -> Result<(), Failure> {
    let options = dataset::Options {
        format: arguments.format.format,
        wrapping: arguments.wrapping.wrapping(),
        ..dataset::Options::default()
    };
    let mut data = dataset::open_all(&arguments.files, &options)?;
    let mut checked = Checked::new(features, ranges);
    let bar = progress::of_file(&data, arguments.json);
    while let Some(next) = data.next() {
        match next {
            Ok(example) => checked.take(&example.payload),
            Err(e) if e.is_fatal() => return Err(e.into()),
            Err(e) => checked.unreadable(&e.to_string()),
        }
        bar.set_position(data.progress().done);
    }
    progress::end(&bar, &data);
    if checked.rows == 0 {
        return Err(Failure::data(format!(
            "{} contains no records",
            shown(&arguments.files)
        )));
    }
    if arguments.json {
        println!("{}", checked.json(data.paths().len()));
    } else {
        checked.print(data.paths().len());
    }
    match checked.fitting() {
        0 => Err(Failure::data(format!(
            "all {} records would be refused: {}",
            checked.rows, checked.refusals
        ))),
        _ => Ok(()),
    }
}

fn infer(arguments: &Arguments) -> Result<(), Failure> {
    let format = arguments.format.format;
    let wrapping = arguments.wrapping.wrapping();
    let more = |_: &std::path::Path, _| ControlFlow::Continue(());
    let table = Table::read(&arguments.files, format, wrapping, MOST_ROWS, 0, more)?;
    let notes = table.notes.iter().map(|note| SetBy::Flags.named(note));
    let notes: Vec<_> = notes.collect();
    let inferred = infer_columns(&table, &Wishes::default()).map_err(Failure::data)?;
    if arguments.json {
        println!(
            "{}",
            json!({
                "rows": table.len(),
                "files": table.files.len(),
                "columns": inferred.columns,
                "notes": notes,
            })
        );
        return Ok(());
    }
    for note in notes {
        eprintln!("{}", escaped(&note));
    }
    println!("{} records{}", table.len(), of_files(table.files.len()));
    print_columns(&inferred.columns);
    if std::io::stdout().is_terminal() {
        println!(
            "\nTo write an editable schema: residuald-train schema --data FILE --out schema.json"
        );
    }
    Ok(())
}

fn print_columns(columns: &[InferredColumn]) {
    let rows = columns.iter().map(|column| {
        let reasons = match column.notes.is_empty() {
            true => format!("such as {}", column.examples.join(", ")),
            false => column.notes.join("; "),
        };
        let read_as = column.read_as.as_deref().unwrap_or("left out");
        let missing = column.missing.to_string();
        [column.path.as_str(), read_as, &missing, &reasons].map(|cell| escaped(cell).into_owned())
    });
    print_table(
        ["column", "read as", "missing", ""],
        &rows.collect::<Vec<_>>(),
    );
}

/// Prints rows in columns that are as wide as their longest cell. The last one is not padded.
fn print_table(header: [&str; 4], rows: &[[String; 4]]) {
    const WIDEST: usize = 40;
    let header = header.map(str::to_owned);
    let all = || std::iter::once(&header).chain(rows);
    let width = |at: usize| {
        let widths = all().map(|row| row[at].chars().count());
        widths.max().unwrap_or(0).min(WIDEST)
    };
    let [first, second, third] = [width(0), width(1), width(2)];
    for [a, b, c, d] in all() {
        let line = format!("{a:<first$}  {b:<second$}  {c:>third$}  {d}");
        println!("{}", line.trim_end());
    }
}
