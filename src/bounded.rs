//! Reads a whole file of bounded size.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Maximum size of a schema, a certificate or another text that a person writes, in bytes.
pub const TEXT: u64 = 16 << 20;
/// Maximum size of an image file, in bytes.
pub const IMAGE: u64 = 256 << 20;

/// Returns the content of a file of at most `limit` bytes.
///
/// # Errors
/// The file cannot be read, or is larger.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let message = format!("the file is larger than {} MiB, the limit", limit >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

/// Like [`read`], for UTF-8.
///
/// # Errors
/// As [`read`], or the file is not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    let text = String::from_utf8(read(path, limit)?);
    text.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.utf8_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_file_and_one_without_an_end_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "four").unwrap();
        assert_eq!(read_text(&path, 4).unwrap(), "four");
        assert!(read(&path, 3).is_err());
        assert!(read(Path::new("/dev/zero"), TEXT).is_err());
        std::fs::write(&path, [0xff]).unwrap();
        assert!(read_text(&path, 4).is_err());
    }
}
