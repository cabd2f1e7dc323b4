//! Writes maps as files to `output.media_dir`. A file appears completely or not at all, even if other processes write
//! to the folder.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

const PREFIX: &str = ".residuald-";
const SUFFIX: &str = ".part";
/// The maximum length of a file name, below the limit of file systems, 255 bytes.
const LONGEST_NAME: usize = 200;

/// Returns the file name of a map of the verdict `id`. The same verdict always has the same name.
pub fn name(id: &str, kind: &str) -> String {
    let name = format!("{id}-{kind}.png");
    if name.len() <= LONGEST_NAME {
        return name;
    }
    let hash = Sha256::digest(id);
    let hash = hex::encode(&hash[..16]);
    let start = &id[..id.floor_char_boundary(100)];
    format!("{start}-{hash}-{kind}.png")
}

/// Writes a map unless it already exists. Symbolic links are replaced, not followed.
///
/// # Errors
/// When the map cannot be written. Nothing of it is left behind.
pub fn write(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let path = folder.join(name);
    if is_there(&path, bytes) {
        return Ok(());
    }
    let mut draft = draft(folder)?;
    draft.write_all(bytes)?;
    draft.persist(&path)?;
    Ok(())
}

/// Checks that files can be created in the folder. A full disk is not an error, because writing waits for space.
///
/// # Errors
/// When files cannot be created, so that the setting must be corrected.
pub fn probe(folder: &Path) -> io::Result<()> {
    use ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    match draft(folder) {
        Err(e) if matches!(e.kind(), PermissionDenied | ReadOnlyFilesystem) => Err(e),
        _ => Ok(()),
    }
}

/// Removes unfinished files of killed processes and returns their number. Files that are still being written are locked
/// and stay.
///
/// # Errors
/// When the folder cannot be listed.
pub fn sweep(folder: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if !is_file || !is_draft(&entry.file_name().to_string_lossy()) {
            continue;
        }
        let unlocked = File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        if unlocked && fs::remove_file(entry.path()).is_ok() {
            removed += 1;
        }
    }
    Ok(removed)
}

/// Creates a temporary file, which is removed when dropped.
fn draft(folder: &Path) -> io::Result<NamedTempFile> {
    let draft = tempfile::Builder::new()
        .prefix(PREFIX)
        .suffix(SUFFIX)
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    // This fails on a file system without locks. There, a starting process may remove this file, and the map is written
    // again.
    let _ = draft.as_file().try_lock();
    Ok(draft)
}

/// Returns whether this is the name of an unfinished file, including the form of versions up to 0.1.0: `.NAME.png.PID`.
fn is_draft(name: &str) -> bool {
    let now = name.starts_with(PREFIX) && name.ends_with(SUFFIX);
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let before = name.starts_with('.')
        && name
            .rsplit_once(".png.")
            .is_some_and(|(_, pid)| number(pid));
    now || before
}

fn is_there(path: &Path, bytes: &[u8]) -> bool {
    let same_size = |meta: fs::Metadata| meta.is_file() && meta.len() == bytes.len() as u64;
    fs::symlink_metadata(path).is_ok_and(same_size)
        && fs::read(path).is_ok_and(|there| there == bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_written_whole_and_again() {
        let folder = tempfile::tempdir().unwrap();
        for bytes in [&b"one"[..], b"two"] {
            write(folder.path(), "a.png", bytes).unwrap();
            assert_eq!(fs::read(folder.path().join("a.png")).unwrap(), bytes);
        }
        assert_eq!(names(folder.path()), ["a.png"]);
        let mode = fs::metadata(folder.path().join("a.png"))
            .unwrap()
            .permissions();
        assert_eq!(mode.mode() & 0o600, 0o600);
    }

    #[test]
    fn what_fails_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("a.png")).unwrap();
        assert!(write(folder.path(), "a.png", b"one").is_err());
        assert_eq!(names(folder.path()), ["a.png"]);
        assert!(write(&folder.path().join("gone"), "a.png", b"one").is_err());
    }

    #[test]
    fn a_link_is_replaced_and_its_target_stays() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        fs::write(&target, "mine").unwrap();
        for (link, bytes) in [("a.png", &b"other"[..]), ("b.png", b"mine")] {
            let path = folder.path().join(link);
            std::os::unix::fs::symlink(&target, &path).unwrap();
            write(folder.path(), link, bytes).unwrap();
            assert!(fs::symlink_metadata(&path).unwrap().is_file(), "{link}");
        }
        assert_eq!(fs::read(&target).unwrap(), b"mine");
    }

    #[test]
    fn drafts_of_the_dead_go_and_those_of_the_living_stay() {
        let folder = tempfile::tempdir().unwrap();
        let living = draft(folder.path()).unwrap();
        for dead in [".residuald-abc.part", ".in-0-1@9f2c61aa-heatmap.png.17"] {
            fs::write(folder.path().join(dead), "").unwrap();
        }
        for other in [".residuald-abc", ".a.png.17b", "a.png.17", "a.part"] {
            fs::write(folder.path().join(other), "").unwrap();
        }
        std::os::unix::fs::symlink("a.part", folder.path().join(".residuald-x.part")).unwrap();
        assert_eq!(sweep(folder.path()).unwrap(), 2);
        let left = names(folder.path());
        let living = living.path().file_name().unwrap().to_string_lossy();
        assert!(left.iter().any(|name| *name == living), "{left:?}");
        assert_eq!(left.len(), 6, "{left:?}");
    }

    #[test]
    fn a_long_name_is_hashed() {
        let id = |offset| format!("{}-3-{offset}@9f2c61aa", "t".repeat(249));
        assert_eq!(
            name("t-3-7@9f2c61aa", "heatmap"),
            "t-3-7@9f2c61aa-heatmap.png"
        );
        let names = [
            name(&id(1), "heatmap"),
            name(&id(2), "heatmap"),
            name(&id(1), "reconstruction"),
        ];
        let folder = tempfile::tempdir().unwrap();
        for name in &names {
            write(folder.path(), name, name.as_bytes()).unwrap();
        }
        let read = names
            .iter()
            .map(|name| fs::read(folder.path().join(name)).unwrap());
        assert!(read.eq(names.iter().map(|name| name.as_bytes().to_vec())));
    }
}
