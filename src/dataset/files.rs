//! Finds the files that an argument stands for: a file, a folder of part files, a pattern, or `-` for standard input.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use glob::MatchOptions;
use percent_encoding::percent_decode_str;
use walkdir::WalkDir;

use super::file::STDIN;
use super::format::Format;
use super::{Error, ErrorKind, csv};

/// Maximum number of files.
const MOST_FILES: usize = 100_000;
/// Maximum number of files or columns that a note lists.
const MOST_LISTED: usize = 5;
/// What Hive calls a folder of records without a value.
const HIVE_NULL: &str = "__HIVE_DEFAULT_PARTITION__";
/// The folder by which a Delta Lake table is recognised.
const DELTA_LOG: &str = "_delta_log";

/// A file, and the fields that the names of its folders give to its records.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    pub path: PathBuf,
    /// Names and JSON values, from folders such as `day=2026-01-31`.
    pub fields: Vec<(String, String)>,
}

/// The files of an argument, sorted by path.
#[derive(Debug, Default)]
pub struct Found {
    pub files: Vec<Source>,
    /// What was left out, one sentence each.
    pub notes: Vec<String>,
}

/// Finds the files of one argument.
///
/// # Errors
/// It is a folder or a pattern without files of records, or names too many.
pub fn find(argument: &Path, declared: Option<Format>) -> Result<Found, Error> {
    let fail = |kind| Error {
        path: argument.into(),
        kind,
    };
    if argument.as_os_str() == STDIN {
        return Ok(Found::one(argument));
    }
    if argument.is_dir() {
        return in_folder(argument, declared).map_err(fail);
    }
    let pattern = argument.to_string_lossy();
    if !pattern.contains(['*', '?', '[']) || argument.exists() {
        return Ok(Found::one(argument));
    }
    matching(&pattern, declared).map_err(fail)
}

impl Found {
    fn one(path: &Path) -> Found {
        let file = Source {
            path: path.into(),
            fields: vec![],
        };
        Found {
            files: vec![file],
            notes: vec![],
        }
    }
}

/// Finds the files that match a pattern. A folder that matches stands for its files.
fn matching(pattern: &str, declared: Option<Format>) -> Result<Found, ErrorKind> {
    let options = MatchOptions {
        require_literal_leading_dot: true,
        require_literal_separator: true,
        ..MatchOptions::default()
    };
    let paths = glob::glob_with(pattern, options);
    let paths = paths.map_err(|e| ErrorKind::Folder(format!("not a pattern of files: {e}")))?;
    let mut found = Found::default();
    let mut left_out = Vec::new();
    for path in paths {
        let path = path.map_err(|e| ErrorKind::Io(e.into()))?;
        if path.is_dir() {
            let inside = in_folder(&path, declared)?;
            found.files.extend(inside.files);
            found.notes.extend(inside.notes);
        } else if is_marker(&path) {
            left_out.push(path);
        } else {
            found.files.push(Source {
                path,
                fields: vec![],
            });
        }
        enough(found.files.len())?;
    }
    if found.files.is_empty() {
        let hint = "no file of records matches this pattern";
        return Err(ErrorKind::Folder(hint.to_owned()));
    }
    found.notes.extend(said_left_out(pattern, &left_out));
    Ok(found)
}

/// Finds the files of records in a folder and its subfolders.
fn in_folder(folder: &Path, declared: Option<Format>) -> Result<Found, ErrorKind> {
    if folder.join(DELTA_LOG).is_dir() {
        let reason = "it is a Delta Lake table, whose files also hold rows that were deleted or replaced: export the table to Parquet first";
        return Err(ErrorKind::Folder(reason.to_owned()));
    }
    let mut found = Found::default();
    let mut left_out = Vec::new();
    let entries = WalkDir::new(folder).follow_links(true).sort_by_file_name();
    let mut entries = entries.into_iter();
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(io::Error::from)?;
        let path = entry.path();
        if entry.depth() > 0 && is_marker(path) {
            if entry.file_type().is_dir() {
                entries.skip_current_dir();
            }
            left_out.push(path.to_owned());
            continue;
        }
        if !entry.file_type().is_file() {
            continue;
        }
        let is_known = declared.is_some() || Format::of_name(path).is_some();
        if !is_known && path.extension().is_some() {
            left_out.push(path.to_owned());
            continue;
        }
        found.files.push(Source {
            path: path.to_owned(),
            fields: fields(folder, path)?,
        });
        enough(found.files.len())?;
    }
    let note = said_left_out(&folder.display().to_string(), &left_out);
    if found.files.is_empty() {
        let hint = note.map_or(String::new(), |note| format!(" ({note})"));
        return Err(ErrorKind::Folder(format!(
            "the folder holds no file of records: {}{hint}",
            super::format::SUPPORTED
        )));
    }
    found.notes.extend(note);
    let names: HashSet<&str> = found
        .files
        .iter()
        .flat_map(|file| file.fields.iter().map(|(name, _)| name.as_str()))
        .collect();
    if !names.is_empty() {
        let mut names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        names.sort();
        found.notes.push(format!(
            "{}: the names of its folders give every record the columns {}",
            folder.display(),
            names.join(", ")
        ));
    }
    Ok(found)
}

fn enough(files: usize) -> Result<(), ErrorKind> {
    let message = || ErrorKind::Folder(format!("these are more than {MOST_FILES} files"));
    if files > MOST_FILES {
        Err(message())
    } else {
        Ok(())
    }
}

/// Returns whether a file or folder is hidden, or one that Spark or Hive writes beside the data, such as `_SUCCESS`.
fn is_marker(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // A folder such as `_day=2026-01-31` holds data.
    name.starts_with('.') || (name.starts_with('_') && !name.contains('='))
}

/// Returns what the folders between `folder` and the file say, as in Hive: `day=2026-01-31` is the field `day`.
fn fields(folder: &Path, file: &Path) -> Result<Vec<(String, String)>, ErrorKind> {
    let inside = file
        .parent()
        .and_then(|parent| parent.strip_prefix(folder).ok());
    let mut fields = Vec::new();
    for part in inside.into_iter().flatten() {
        let part = part.to_string_lossy();
        let Some((name, value)) = part.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            continue;
        };
        let text = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
        let json = match value {
            HIVE_NULL => "null".to_owned(),
            value => csv::cell(&text(value))?,
        };
        fields.push((text(name), json));
    }
    Ok(fields)
}

fn said_left_out(place: &str, left_out: &[PathBuf]) -> Option<String> {
    let names = left_out.iter().take(MOST_LISTED);
    let names: Vec<String> = names
        .map(|path| {
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    let more = if left_out.len() > MOST_LISTED {
        ", …"
    } else {
        ""
    };
    (!left_out.is_empty()).then(|| {
        format!(
            "{place}: {} files or folders are not data and are left out: {}{more}",
            left_out.len(),
            names.join(", ")
        )
    })
}

/// Compares the columns of files with those of the first.
#[derive(Debug, Default)]
pub struct Differences {
    first: Option<(PathBuf, Vec<String>)>,
    files: u64,
    different: u64,
    examples: Vec<String>,
}

impl Differences {
    /// Takes a file's columns. Files whose records have fields of their own are not compared.
    pub fn take(&mut self, path: &Path, columns: Vec<String>) {
        if columns.is_empty() {
            return;
        }
        self.files += 1;
        let Some((_, first)) = &self.first else {
            self.first = Some((path.to_owned(), columns));
            return;
        };
        let without = |these: &[String], those: &[String]| -> Vec<String> {
            let those: HashSet<&String> = those.iter().collect();
            let missing = these.iter().filter(|name| !those.contains(name));
            missing.map(|name| format!("`{name}`")).collect()
        };
        let (lacks, adds) = (without(first, &columns), without(&columns, first));
        if lacks.is_empty() && adds.is_empty() {
            return;
        }
        self.different += 1;
        if self.examples.len() < MOST_LISTED {
            let listed = |names: Vec<String>| {
                let more = if names.len() > MOST_LISTED {
                    ", …"
                } else {
                    ""
                };
                let few: Vec<String> = names.into_iter().take(MOST_LISTED).collect();
                format!("{}{more}", few.join(", "))
            };
            let mut parts = Vec::new();
            if !lacks.is_empty() {
                parts.push(format!("lacks {}", listed(lacks)));
            }
            if !adds.is_empty() {
                parts.push(format!("also has {}", listed(adds)));
            }
            self.examples
                .push(format!("{} {}", path.display(), parts.join(" and ")));
        }
    }

    /// Returns a sentence if files have different columns.
    pub fn note(&self) -> Option<String> {
        let (first, _) = self.first.as_ref()?;
        (self.different > 0).then(|| {
            format!(
                "{} of {} files have other columns than {}: {}",
                self.different,
                self.files,
                first.display(),
                self.examples.join("; ")
            )
        })
    }
}

/// Notes about files. The same note about several files is kept once.
#[derive(Debug, Clone, Default)]
pub struct Notes(BTreeMap<String, (usize, PathBuf, u64)>);

impl Notes {
    /// Maximum number of different notes.
    const MOST: usize = 100;

    pub fn take(&mut self, path: &Path, notes: Vec<String>) {
        for note in notes {
            let next = self.0.len();
            if next >= Notes::MOST && !self.0.contains_key(&note) {
                continue;
            }
            let entry = self.0.entry(note);
            entry.or_insert_with(|| (next, path.to_owned(), 0)).2 += 1;
        }
    }

    /// Returns the notes in the order in which they were taken first.
    pub fn all(&self) -> Vec<String> {
        let mut all: Vec<_> = self.0.iter().collect();
        all.sort_by_key(|(_, (order, ..))| *order);
        let said = all.into_iter().map(|(note, (_, path, files))| {
            let path = path.display();
            match files {
                1 => format!("{path}: {note}"),
                files => format!("{path} and {} other files: {note}", files - 1),
            }
        });
        said.collect()
    }
}
