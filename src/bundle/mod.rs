//! The model bundle: a folder with everything that scoring needs. Read raw, then checked; every fault at once.

pub mod calibration;
pub mod golden;
pub mod manifest;

use std::fmt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub use calibration::{Calibration, RateTooFine};
pub use golden::Golden;
pub use manifest::{Feature, FeatureKind, Manifest, Missing, Tolerance};

const REQUIRED: [&str; 3] = ["model.onnx", "calibration.json", "golden.ndjson"];

/// A bundle whose files agree with its manifest. Whether the graph keeps its promises only ONNX Runtime can say:
/// [`crate::onnx`] checks tensors and golden records.
#[derive(Debug, Clone)]
pub struct Bundle {
    pub manifest: Manifest,
    pub calibration: Calibration,
    pub golden: Vec<Golden>,
    /// The ONNX graph, as bytes whose hash was checked.
    pub model: Vec<u8>,
    /// SHA-256 of `manifest.json`, which holds the hash of every other file: it names the whole bundle.
    pub sha256: String,
}

/// One thing that is wrong with a bundle: where, and what.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    pub file: String,
    pub problem: String,
}

impl Fault {
    pub fn new(file: &str, problem: impl Into<String>) -> Fault {
        Fault {
            file: file.to_owned(),
            problem: problem.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file, self.problem)
    }
}

/// Why a bundle was refused: every fault that was found.
#[derive(Debug, Clone, thiserror::Error)]
pub struct BundleError {
    pub dir: PathBuf,
    pub faults: Vec<Fault>,
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bundle {} refused", self.dir.display())?;
        self.faults
            .iter()
            .try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl Bundle {
    /// Reads and checks the folder `dir`.
    ///
    /// # Errors
    /// [`BundleError`] with every fault: missing and altered files, a manifest or calibration that does not parse or does not fit.
    pub fn read(dir: &Path) -> Result<Bundle, BundleError> {
        let mut faults = Vec::new();
        let bundle = read_parts(dir, &mut faults);
        match bundle {
            Some(bundle) if faults.is_empty() => Ok(bundle),
            _ => Err(BundleError {
                dir: dir.to_owned(),
                faults,
            }),
        }
    }

    /// The first eight digits of the fingerprint: enough to tell models apart in an id.
    pub fn short_sha256(&self) -> &str {
        &self.sha256[..8]
    }

    pub fn features(&self) -> &[Feature] {
        self.manifest.input.features()
    }
}

fn read_parts(dir: &Path, faults: &mut Vec<Fault>) -> Option<Bundle> {
    let manifest_bytes = read_file(dir, "manifest.json", faults)?;
    let manifest: Manifest = parse_json("manifest.json", &manifest_bytes, faults)?;
    faults.extend(
        manifest
            .faults()
            .into_iter()
            .map(|problem| Fault::new("manifest.json", problem)),
    );
    for name in REQUIRED {
        if !manifest.files.contains_key(name) {
            faults.push(Fault::new(
                "manifest.json",
                format!("`files` does not list {name}"),
            ));
        }
    }
    let mut contents = std::collections::BTreeMap::new();
    for (name, expected) in &manifest.files {
        if let Some(bytes) = read_checked(dir, name, expected, faults) {
            contents.insert(name.as_str(), bytes);
        }
    }
    let calibration: Option<Calibration> = contents
        .get("calibration.json")
        .and_then(|bytes| parse_json("calibration.json", bytes, faults));
    if let Some(calibration) = &calibration {
        let problems = calibration.faults(manifest.input.features().len());
        faults.extend(
            problems
                .into_iter()
                .map(|problem| Fault::new("calibration.json", problem)),
        );
    }
    let golden = contents.get("golden.ndjson").and_then(|bytes| {
        let parsed = std::str::from_utf8(bytes)
            .map_err(|e| e.to_string())
            .and_then(Golden::parse);
        parsed
            .map_err(|problem| faults.push(Fault::new("golden.ndjson", problem)))
            .ok()
    });
    let model = contents.remove("model.onnx");
    Some(Bundle {
        calibration: calibration?,
        golden: golden?,
        model: model?,
        sha256: sha256_hex(&manifest_bytes),
        manifest,
    })
}

fn read_file(dir: &Path, name: &str, faults: &mut Vec<Fault>) -> Option<Vec<u8>> {
    std::fs::read(dir.join(name))
        .map_err(|e| faults.push(Fault::new(name, format!("cannot be read: {e}"))))
        .ok()
}

fn read_checked(
    dir: &Path,
    name: &str,
    expected: &str,
    faults: &mut Vec<Fault>,
) -> Option<Vec<u8>> {
    // A name is a file in this folder, never a way out of it.
    if name.contains(['/', '\\']) || name == ".." {
        faults.push(Fault::new(
            name,
            "a bundle's file must lie in the bundle's folder",
        ));
        return None;
    }
    let bytes = read_file(dir, name, faults)?;
    let actual = sha256_hex(&bytes);
    if actual != expected {
        faults.push(Fault::new(
            name,
            format!("was altered after export: sha256 is {actual}, the manifest says {expected}"),
        ));
        return None;
    }
    Some(bytes)
}

fn parse_json<T: serde::de::DeserializeOwned>(
    name: &str,
    bytes: &[u8],
    faults: &mut Vec<Fault>,
) -> Option<T> {
    serde_json::from_slice(bytes)
        .map_err(|e| faults.push(Fault::new(name, e.to_string())))
        .ok()
}

fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_a_manifest_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = Bundle::read(dir.path()).unwrap_err();
        assert_eq!(error.faults.len(), 1);
        assert_eq!(error.faults[0].file, "manifest.json");
    }

    #[test]
    fn every_missing_or_altered_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = serde_json::json!({
            "format": 1, "name": "m", "version": "1",
            "files": {"model.onnx": "00", "calibration.json": "00", "../escape": "00"},
            "golden": {"relative_tolerance": 1e-5, "absolute_tolerance": 1e-6},
            "input": {"kind": "tabular", "features": [{"name": "a", "path": "a", "type": "number"}]},
        });
        std::fs::write(dir.path().join("manifest.json"), manifest.to_string()).unwrap();
        std::fs::write(dir.path().join("model.onnx"), b"altered").unwrap();
        let error = Bundle::read(dir.path()).unwrap_err();
        let text = error.to_string();
        for expected in [
            "`files` does not list golden.ndjson",
            "model.onnx: was altered",
            "calibration.json: cannot be read",
            "../escape: a bundle's file must lie",
        ] {
            assert!(text.contains(expected), "{expected} not in {text}");
        }
    }
}
