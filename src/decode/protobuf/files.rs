//! Finds the .proto files that a schema file imports, beside it or among Google's. Their size is bounded.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use protox::Error;
use protox::file::{File, FileResolver, GoogleFileResolver, IncludeFileResolver};

use crate::bounded;

/// Maximum size of a schema with everything that it imports, in bytes.
const MOST: u64 = bounded::TEXT;

#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    beside: IncludeFileResolver,
    /// Number of bytes that were read.
    read: AtomicU64,
}

impl Files {
    /// `folder` is where the names of imported files begin.
    pub fn below(folder: &Path) -> Files {
        Files {
            folder: folder.to_owned(),
            beside: IncludeFileResolver::new(folder.to_owned()),
            read: AtomicU64::new(0),
        }
    }
}

impl FileResolver for Files {
    fn resolve_path(&self, path: &Path) -> Option<String> {
        self.beside.resolve_path(path)
    }

    fn open_file(&self, name: &str) -> Result<File, Error> {
        let path = self.folder.join(name);
        match bounded::read_text(&path, MOST) {
            Ok(text) => {
                let before = self.read.fetch_add(text.len() as u64, Relaxed);
                if before + text.len() as u64 > MOST {
                    let message = format!(
                        "the file and what it imports are larger than {} MiB, the limit",
                        MOST >> 20
                    );
                    return Err(Error::new(message));
                }
                File::from_source(name, &text)
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                GoogleFileResolver::new().open_file(name)
            }
            Err(e) => Err(Error::new(format!("{}: {e}", path.display()))),
        }
    }
}
