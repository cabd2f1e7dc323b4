//! Files of a folder, each written whole or not at all.

use std::collections::HashSet;
use std::fs::Permissions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use npyz::WriterBuilder;
use tempfile::NamedTempFile;

use crate::failure::Failure;

/// Creates the folder, and refuses names that are there already.
pub fn create(
    folder: &Path,
    names: impl Iterator<Item = String>,
    overwrites: bool,
) -> Result<(), Failure> {
    std::fs::create_dir_all(folder).map_err(|e| failed(folder, &e))?;
    if overwrites {
        return Ok(());
    }
    let there = std::fs::read_dir(folder).map_err(|e| failed(folder, &e))?;
    let there: HashSet<_> = there.flatten().map(|entry| entry.file_name()).collect();
    match names
        .into_iter()
        .find(|name| there.contains(name.as_ref() as &std::ffi::OsStr))
    {
        None => Ok(()),
        Some(name) => Err(Failure::usage(format!(
            "{} is there already: name another folder, or overwrite with --force",
            folder.join(name).display()
        ))),
    }
}

/// Writes to a temporary file beside `path`, which then takes its name.
pub fn write_whole(
    path: &Path,
    overwrites: bool,
    write: impl FnOnce(&mut BufWriter<&mut NamedTempFile>) -> io::Result<()>,
) -> Result<(), Failure> {
    let folder = path.parent().unwrap_or(Path::new("."));
    // As a new file has them; a temporary one is its owner's alone.
    let permissions = Permissions::from_mode(0o666);
    let file = tempfile::Builder::new()
        .permissions(permissions)
        .tempfile_in(folder);
    let written = file.and_then(|mut file| {
        let mut out = BufWriter::new(&mut file);
        write(&mut out)?;
        out.flush()?;
        drop(out);
        match overwrites {
            true => file.persist(path)?,
            false => file.persist_noclobber(path)?,
        };
        Ok(())
    });
    written.map_err(|e| failed(path, &e))
}

/// Writes values of a shape to a NumPy file.
pub fn write_npy(
    path: &Path,
    overwrites: bool,
    shape: &[u64],
    values: &[f32],
) -> Result<(), Failure> {
    write_whole(path, overwrites, |out| {
        let options = npyz::WriteOptions::new().default_dtype().shape(shape);
        let mut npy = options.writer(out).begin_nd()?;
        npy.extend(values.iter().copied())?;
        npy.finish()
    })
}

pub fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::data(format!("{}: {error}", path.display()))
}
