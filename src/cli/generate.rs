//! `residuald generate`: draws from a model.

mod table;

use std::path::PathBuf;

use crate::bundle::Draft;

use crate::cli::shared::generative::SamplerArguments;
use crate::failure::Failure;
use table::{Common, TableArguments};

/// Draw records from a bundle for tables
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald generate models/payments --count 10000 --out drawn.ndjson
  residuald generate models/payments --count 1000 --where merchant_category=jewellery --out jewellery.csv
  residuald generate models/payments --count 20000 --anomalies 0.01 --key card_id --out labelled.parquet
  residuald generate models/payments --count 100000 --topic rehearsal --rate 500 --key card_id")]
pub struct Arguments {
    /// Folder of the bundle
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// Number of records
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// File to write: .ndjson, .jsonl, .csv, .tsv, each also .gz, or .parquet; - is NDJSON on standard output [default: -]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    sampler: SamplerArguments,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// Print one JSON object at the end instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    table: TableArguments,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let bundle = Draft::read(&arguments.model).finish()?;
    let common = Common {
        count: arguments.count,
        out: arguments.out.as_ref(),
        sampler: &arguments.sampler,
        force: arguments.force,
        json: arguments.json,
    };
    table::run(&bundle, &arguments.table, &common)
}
