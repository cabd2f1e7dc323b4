//! Writes a bundle with a new calibration. It is completely written and checked before it replaces anything.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::Value;

use crate::bundle::{Calibration, Draft, MANIFEST, sha256_hex};
use crate::failure::Failure;

const CALIBRATION: &str = "calibration.json";

/// Checks that the new bundle may be written to `out`.
///
/// # Errors
/// `out` exists, and `force` is not set or `out` is not a bundle.
pub fn may_be_written(out: &Path, force: bool) -> Result<(), Failure> {
    if out.exists() && !force {
        return Err(Failure::usage(format!(
            "--out {} already exists: choose another folder, or overwrite it with --force",
            out.display()
        )));
    }
    if out.exists() && !out.join(MANIFEST).is_file() {
        return Err(Failure::usage(format!(
            "--out {} exists, but is not a bundle and is not overwritten: choose another folder",
            out.display()
        )));
    }
    Ok(())
}

/// Writes the bundle in `from` with the new `calibration` to `out`, and replaces an existing bundle there.
pub fn bundle(
    from: &Path,
    out: &Path,
    calibration: &Calibration,
    version: &str,
    facts: &Value,
) -> Result<(), Failure> {
    let failed = |e: io::Error| Failure::data(format!("{}: {e}", out.display()));
    let parent = out.parent().filter(|parent| *parent != Path::new(""));
    let parent = parent.unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(failed)?;
    let scratch = tempfile::Builder::new()
        .prefix(".residuald-calibrate-")
        .tempdir_in(parent)
        .map_err(failed)?;
    let (new, old) = (scratch.path().join("new"), scratch.path().join("old"));
    copy(from, &new, calibration, version, facts).map_err(failed)?;
    Draft::read(&new).finish()?;
    if out.exists() {
        fs::rename(out, &old).map_err(failed)?;
    }
    fs::rename(&new, out).map_err(failed)
}

fn copy(
    from: &Path,
    to: &Path,
    calibration: &Calibration,
    version: &str,
    facts: &Value,
) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if let (true, Some(name)) = (path.is_file(), path.file_name()) {
            fs::copy(&path, to.join(name))?;
        }
    }
    let text = serde_json::to_vec(calibration)?;
    let mut manifest: Value = serde_json::from_slice(&fs::read(to.join(MANIFEST))?)?;
    manifest["files"][CALIBRATION] = sha256_hex(&text).into();
    manifest["calibration"] = facts.clone();
    manifest["version"] = version.into();
    fs::write(to.join(CALIBRATION), text)?;
    fs::write(to.join(MANIFEST), serde_json::to_vec_pretty(&manifest)?)
}
