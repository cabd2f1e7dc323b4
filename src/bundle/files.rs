//! Reads the files of a bundle. Only regular files of a bounded size are accepted, so that no read blocks or fills the memory.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::MANIFEST;

const MIB: u64 = 1 << 20;
/// Maximum number of files in a manifest.
pub const MOST_FILES: usize = 64;
/// Maximum length of a file name, in bytes.
const LONGEST_NAME: usize = 255;

/// Returns the maximum size of the bundle's file `name`, in bytes.
pub fn limit(name: &str) -> u64 {
    match name {
        MANIFEST => 8 * MIB,
        graph if is_graph(graph) => 1024 * MIB,
        _ => 64 * MIB,
    }
}

pub fn is_graph(name: &str) -> bool {
    let name = Path::new(name);
    name.extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("onnx"))
}

/// Returns what is wrong with `name` as the name of a file in the bundle's folder.
pub fn name_fault(name: &str) -> Option<&'static str> {
    if name.contains(['/', '\\']) || matches!(name, "" | "." | "..") {
        return Some(
            "every file of a bundle must be directly in the bundle's folder: give its name without a path",
        );
    }
    if name.len() > LONGEST_NAME || name.contains(char::is_control) {
        return Some("a file name must have at most 255 bytes and no control characters");
    }
    None
}

/// Reads the regular file `name` in `dir`. Symbolic links are followed, because Kubernetes mounts a ConfigMap as links.
///
/// # Errors
/// A message, if the file is absent, not a regular file, or too large.
pub fn read(dir: &Path, name: &str) -> Result<Vec<u8>, String> {
    let path = dir.join(name);
    let cannot = |e: std::io::Error| format!("cannot be read: {e}");
    // Checked before opening, because opening a device can have side effects. Checked again afterwards, because the file may have
    // been replaced.
    must_be_regular(&path.metadata().map_err(cannot)?)?;
    let mut file = open(&path).map_err(cannot)?;
    let found = file.metadata().map_err(cannot)?;
    must_be_regular(&found)?;
    let limit = limit(name);
    must_fit(found.len(), limit)?;
    let mut bytes = Vec::with_capacity(usize::try_from(found.len()).unwrap_or(0));
    // The file may grow while it is read.
    let mut bounded = (&mut file).take(limit + 1);
    bounded.read_to_end(&mut bytes).map_err(cannot)?;
    must_fit(bytes.len() as u64, limit)?;
    Ok(bytes)
}

/// Opens a file without blocking, even if it is a named pipe.
fn open(path: &Path) -> std::io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits())
        .expect("the open flags fit into the type that the system uses for them");
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

fn must_be_regular(found: &std::fs::Metadata) -> Result<(), String> {
    let kind = found.file_type();
    let kind = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a named pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    Err(format!(
        "is {kind}, but a bundle may contain only regular files"
    ))
}

fn must_fit(bytes: u64, limit: u64) -> Result<(), String> {
    if bytes <= limit {
        return Ok(());
    }
    let limit = limit / MIB;
    Err(format!(
        "has {bytes} bytes, but may have at most {limit} MiB"
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn only_regular_files_are_read_and_nothing_waits() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        mknodat(CWD, dir.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let _socket = UnixListener::bind(dir.join("socket")).unwrap();
        std::fs::create_dir(dir.join("folder")).unwrap();
        symlink("/dev/zero", dir.join("zero")).unwrap();
        symlink("pipe", dir.join("link")).unwrap();
        symlink("loop", dir.join("loop")).unwrap();
        let sparse = File::create(dir.join("sparse.onnx")).unwrap();
        sparse.set_len(100 << 30).unwrap();
        for (name, said) in [
            ("pipe", "a named pipe"),
            ("link", "a named pipe"),
            ("socket", "a socket"),
            ("folder", "a folder"),
            ("zero", "a device"),
            ("loop", "cannot be read"),
            ("absent", "cannot be read"),
            ("sparse.onnx", "at most 1024 MiB"),
        ] {
            let problem = read(dir, name).unwrap_err();
            assert!(problem.contains(said), "{name}: {problem}");
        }
    }

    #[test]
    fn links_to_regular_files_are_followed_as_in_a_config_map() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        std::fs::create_dir(dir.join("..2026")).unwrap();
        std::fs::write(dir.join("..2026/manifest.json"), "{}").unwrap();
        symlink("..2026", dir.join("..data")).unwrap();
        symlink("..data/manifest.json", dir.join(MANIFEST)).unwrap();
        assert_eq!(read(dir, MANIFEST).unwrap(), b"{}");
    }

    #[test]
    fn a_name_is_plain() {
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "/etc/passwd",
            "..\\x",
            "a\u{1b}[2J",
            "a\nb",
        ] {
            assert!(name_fault(bad).is_some(), "{bad:?}");
        }
        assert!(name_fault(&"x".repeat(256)).is_some());
        assert_eq!(name_fault("model.onnx"), None);
        assert_eq!(name_fault("..data"), None);
    }
}
