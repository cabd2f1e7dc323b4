//! The argument that tells the format of files of records.

use std::path::Path;

use crate::dataset::format::Format;

#[derive(clap::Args)]
pub struct FormatArgument {
    /// Format of the files, whatever their names: csv, tsv, ndjson, json, parquet, arrow or npz, each also compressed with gzip
    /// [default: as their extensions tell, or their content if they have none]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
}

/// Returns the paths as one text for messages.
pub fn shown<P: AsRef<Path>>(paths: &[P]) -> String {
    let shown = paths.iter().map(|path| path.as_ref().display().to_string());
    shown.collect::<Vec<_>>().join(", ")
}
