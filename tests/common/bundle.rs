//! Copies of the shipped bundle to break, with or without hashes that fit.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::process::run;
use super::{parse, payments, root};

/// A copy that goes away with this value.
pub struct Copy {
    _dir: tempfile::TempDir,
    pub path: PathBuf,
}

/// The files of a bundle: the manifest and those that it lists.
pub fn files(bundle: &Path) -> Vec<String> {
    let manifest = parse(&fs::read(bundle.join("manifest.json")).unwrap());
    let listed = manifest["files"].as_object().unwrap().keys().cloned();
    listed.chain(["manifest.json".to_owned()]).collect()
}

impl Copy {
    pub fn new() -> Copy {
        Copy::of(&payments())
    }

    /// Of `tests/slow_model`: a record's `work` says how long it takes, and 1e15 is for ever.
    pub fn slow() -> Copy {
        Copy::of(&root().join("tests/slow_model"))
    }

    fn of(bundle: &Path) -> Copy {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(bundle.file_name().unwrap());
        fs::create_dir(&path).unwrap();
        for file in files(bundle) {
            fs::copy(bundle.join(&file), path.join(&file)).unwrap();
        }
        Copy { _dir: dir, path }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.file(name)).unwrap()
    }

    pub fn json(&self, name: &str) -> Value {
        parse(&self.read(name))
    }

    /// Writes a file and, unless it is the manifest, its hash into the manifest.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.file(name), bytes).unwrap();
        if name != "manifest.json" {
            let mut manifest = self.json("manifest.json");
            manifest["files"][name] = sha256(bytes).into();
            fs::write(self.file("manifest.json"), manifest.to_string()).unwrap();
        }
    }

    /// Alters JSON, hash included.
    pub fn edit(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut value = self.json(name);
        edit(&mut value);
        self.write(name, value.to_string().as_bytes());
    }

    /// Flips one bit in the middle of a file; the manifest still has the old hash.
    pub fn flip_a_bit(&self, name: &str) {
        let mut bytes = self.read(name);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(self.file(name), bytes).unwrap();
    }
}

impl AsRef<Path> for Copy {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

/// The shipped bundle, calibrated anew on its sample.
pub fn calibrated(dir: &Path, more: &[&str]) -> PathBuf {
    let (sample, out) = (payments().join("sample.ndjson.gz"), dir.join("calibrated"));
    let [bundle, sample, to] = [&payments(), &sample, &out].map(|p| p.to_str().unwrap().to_owned());
    let all = [
        "calibrate",
        &bundle,
        "--data",
        &sample,
        "--label",
        "label",
        "--out",
        &to,
    ];
    run(&[&all, more].concat()).with_code(0);
    out
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
