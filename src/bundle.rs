//! The model bundle: a folder with the files that scoring needs. Loading checks all of them and reports every fault at once.

pub mod calibration;
mod files;
pub mod generative;
pub mod golden;
pub mod graph;
pub mod image_generative;
pub mod manifest;
pub mod notation;
pub mod path;
pub mod normals;
pub mod p_value;
mod schema;
pub mod screen;
pub mod segments;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::text::escaped;
pub use calibration::Calibration;
pub use files::is_graph;
pub use generative::Generative;
pub use golden::Golden;
pub use image_generative::{ImageAbout, ImageGenerative};
pub use manifest::{Feature, FeatureKind, Manifest, Missing, ModelInput, Pixels, Tolerance};
pub use normals::{Normal, Normals};
pub use p_value::{RateTooFine, ScoreDistribution};
pub use schema::incompatibilities;
pub use screen::{Answers, Screen, TooFewProbes};
pub use segments::{SegmentBy, SegmentId, Segments};

pub const MANIFEST: &str = "manifest.json";
const REQUIRED: [&str; 3] = ["model.onnx", "calibration.json", "golden.ndjson"];
const OPTIONAL: [&str; 4] = [
    "normals.ndjson",
    "nearest.onnx",
    "screen.json",
    "screen.onnx",
];

/// Maximum length of a fault's text, in characters. Longer text is cut.
const LONGEST_TEXT: usize = 1000;
/// Maximum number of faults that an error message lists.
const MOST_SHOWN: usize = 20;

/// Reads the bundle's file with the given name. The error is a message.
pub type Read<'r> = &'r dyn Fn(&str) -> Result<Vec<u8>, String>;

/// A bundle whose files match its manifest. [`crate::onnx`] checks the graph's tensors and the golden records later.
#[derive(Debug, Clone)]
pub struct Bundle {
    pub manifest: Manifest,
    pub calibration: Calibration,
    pub golden: Vec<Golden>,
    /// The bytes of `model.onnx`.
    pub model: Vec<u8>,
    /// Normal records to show beside an anomaly, if the bundle has them.
    pub normals: Option<Normals>,
    /// The screen, which lets clearly normal records skip the scorer, if the bundle has one.
    pub screen: Option<Screen>,
    /// What draws records, if the bundle has it.
    pub generative: Option<Generative>,
    /// What draws images, if the bundle has it.
    pub image_generative: Option<ImageGenerative>,
    /// SHA-256 of `manifest.json`. It identifies the whole bundle, because the manifest contains the hash of every other file.
    pub sha256: String,
}

/// A problem of a bundle, and the file that has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    pub file: String,
    pub problem: String,
}

impl Fault {
    pub fn new(file: &str, problem: impl Into<String>) -> Fault {
        Fault {
            file: cut(file.to_owned()),
            problem: cut(problem.into()),
        }
    }

    /// Returns one fault for each problem of `file`.
    pub fn all(file: &str, problems: Vec<String>) -> impl Iterator<Item = Fault> {
        problems
            .into_iter()
            .map(move |problem| Fault::new(file, problem))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", escaped(&self.file), escaped(&self.problem))
    }
}

/// Cuts `text` to [`LONGEST_TEXT`] characters, because a problem may quote a whole file.
fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(LONGEST_TEXT) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// A refused bundle with all of its faults. The message lists the first [`MOST_SHOWN`].
#[derive(Debug, Clone, thiserror::Error)]
pub struct BundleError {
    pub dir: PathBuf,
    pub faults: Vec<Fault>,
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bundle {} refused", self.dir.display())?;
        let mut shown = self.faults.iter().take(MOST_SHOWN);
        shown.try_for_each(|fault| write!(f, "\n  {fault}"))?;
        match self.faults.len().saturating_sub(MOST_SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

/// A bundle that is being checked: the parts that could be read, and the faults found so far.
#[derive(Debug)]
pub struct Draft {
    dir: PathBuf,
    pub manifest: Option<Manifest>,
    pub calibration: Option<Calibration>,
    pub golden: Option<Vec<Golden>>,
    pub model: Option<Vec<u8>>,
    pub normals: Option<Normals>,
    pub screen: Option<Screen>,
    pub generative: Option<Generative>,
    pub image_generative: Option<ImageGenerative>,
    sha256: String,
    pub faults: Vec<Fault>,
}

impl Draft {
    /// Reads and checks the bundle in the folder `dir`. Its faults are missing or altered files, and files whose content is
    /// invalid.
    pub fn read(dir: &Path) -> Draft {
        Draft::of(dir, &|name| files::read(dir, name))
    }

    /// Like [`Draft::read`], but gets the content of each file from `read`.
    pub fn of(dir: &Path, read: Read<'_>) -> Draft {
        let mut draft = Draft {
            dir: dir.to_owned(),
            manifest: None,
            calibration: None,
            golden: None,
            model: None,
            normals: None,
            screen: None,
            generative: None,
            image_generative: None,
            sha256: String::new(),
            faults: Vec::new(),
        };
        draft.read_parts(read);
        draft
    }

    /// Returns the bundle if it has no faults.
    ///
    /// # Errors
    /// [`BundleError`] with every fault.
    pub fn finish(self) -> Result<Bundle, BundleError> {
        let parts = (self.manifest, self.calibration, self.golden, self.model);
        match parts {
            (Some(manifest), Some(calibration), Some(golden), Some(model))
                if self.faults.is_empty() =>
            {
                Ok(Bundle {
                    manifest,
                    calibration,
                    golden,
                    model,
                    normals: self.normals,
                    screen: self.screen,
                    generative: self.generative,
                    image_generative: self.image_generative,
                    sha256: self.sha256,
                })
            }
            _ => Err(BundleError {
                dir: self.dir,
                faults: self.faults,
            }),
        }
    }

    fn read_parts(&mut self, read: Read<'_>) {
        let faults = &mut self.faults;
        let Some(manifest_bytes) = read_file(read, MANIFEST, faults) else {
            return;
        };
        let Some(manifest) = parse_json::<Manifest>(MANIFEST, &manifest_bytes, faults) else {
            return;
        };
        faults.extend(Fault::all(MANIFEST, manifest.faults()));
        for name in REQUIRED {
            if !manifest.files.contains_key(name) {
                faults.push(Fault::new(
                    MANIFEST,
                    format!("`files` does not list {name}, which every bundle must contain"),
                ));
            }
        }
        let mut contents = BTreeMap::new();
        for (name, expected) in manifest.files.iter().take(files::MOST_FILES) {
            if let Some(bytes) = read_checked(read, name, expected, faults) {
                faults.extend(graph_fault(name, &bytes));
                // Unknown files need not stay in memory.
                if is_known(name) {
                    contents.insert(name.as_str(), bytes);
                }
            }
        }
        if let Some(bytes) = contents.get("calibration.json") {
            self.calibration = parse_json("calibration.json", bytes, faults);
        }
        if let Some(calibration) = &self.calibration {
            let problems = calibration.faults(&manifest.input);
            faults.extend(Fault::all("calibration.json", problems));
        }
        if let Some(bytes) = contents.get("golden.ndjson") {
            let text = std::str::from_utf8(bytes).map_err(|e| e.to_string());
            match text.and_then(Golden::parse) {
                Ok(golden) => self.golden = Some(golden),
                Err(problem) => faults.push(Fault::new("golden.ndjson", problem)),
            }
        }
        self.normals = normals(&mut contents, &manifest.input, faults);
        let golden = self.golden.as_ref().map_or(0, Vec::len);
        self.screen = screen(&mut contents, &manifest.input, golden, faults);
        match &manifest.input {
            ModelInput::Tabular { features } => {
                self.generative = generative(&mut contents, features, faults);
            }
            ModelInput::Image(pixels) => {
                self.image_generative = image_generative(&mut contents, pixels, faults);
            }
        }
        self.model = contents.remove("model.onnx");
        self.sha256 = sha256_hex(&manifest_bytes);
        self.manifest = Some(manifest);
    }
}

impl Bundle {
    pub fn features(&self) -> &[Feature] {
        self.manifest.input.features()
    }
}

/// Takes an optional file and its graph out of `contents`. A bundle must contain both or neither.
fn pair(
    contents: &mut BTreeMap<&str, Vec<u8>>,
    (file, graph): (&'static str, &str),
    input: &ModelInput,
    faults: &mut Vec<Fault>,
) -> Option<(Vec<u8>, Vec<u8>)> {
    let found = match (contents.remove(file), contents.remove(graph)) {
        (Some(content), Some(model)) => (content, model),
        (None, None) => return None,
        _ => {
            let problem = format!("requires {graph}: a bundle must contain both or neither");
            faults.push(Fault::new(file, problem));
            return None;
        }
    };
    if matches!(input, ModelInput::Image(_)) {
        faults.push(Fault::new(
            file,
            "is for bundles that read tables, but this bundle reads images: leave it out",
        ));
        return None;
    }
    Some(found)
}

fn normals(
    contents: &mut BTreeMap<&str, Vec<u8>>,
    input: &ModelInput,
    faults: &mut Vec<Fault>,
) -> Option<Normals> {
    const FILES: (&str, &str) = ("normals.ndjson", "nearest.onnx");
    let (records, model) = pair(contents, FILES, input, faults)?;
    let text = std::str::from_utf8(&records).map_err(|e| e.to_string());
    let parsed = text.and_then(Normal::parse);
    parsed
        .map(|records| Normals { records, model })
        .map_err(|problem| faults.push(Fault::new(FILES.0, problem)))
        .ok()
}

fn screen(
    contents: &mut BTreeMap<&str, Vec<u8>>,
    input: &ModelInput,
    golden: usize,
    faults: &mut Vec<Fault>,
) -> Option<Screen> {
    const FILES: (&str, &str) = ("screen.json", "screen.onnx");
    let (answers, model) = pair(contents, FILES, input, faults)?;
    let answers: Answers = parse_json(FILES.0, &answers, faults)?;
    let problems = answers.faults(golden);
    if problems.is_empty() {
        return Some(Screen { answers, model });
    }
    faults.extend(Fault::all(FILES.0, problems));
    None
}

fn generative(
    contents: &mut BTreeMap<&str, Vec<u8>>,
    features: &[Feature],
    faults: &mut Vec<Fault>,
) -> Option<Generative> {
    use generative::{ABOUT, DECODE, DENOISER, ENCODE, FILES, REFERENCE, SCHEDULER};
    all_or_none(contents, &FILES, faults)?;
    let mut take = |name: &str| contents.remove(name).unwrap_or_default();
    let about: generative::About = parse_json(ABOUT, &take(ABOUT), faults)?;
    let scheduler = parse_json(SCHEDULER, &take(SCHEDULER), faults)?;
    let reference = generative::Reference::parse(&take(REFERENCE), features.len());
    let reference = reference.map_err(|problem| faults.push(Fault::new(REFERENCE, problem)));
    let problems = about.faults(features);
    let is_sound = problems.is_empty();
    faults.extend(Fault::all(ABOUT, problems));
    let reference = reference.ok().filter(|_| is_sound)?;
    Some(Generative {
        scheduler,
        denoiser: take(DENOISER),
        encode: take(ENCODE),
        decode: take(DECODE),
        reference,
        about,
    })
}

fn image_generative(
    contents: &mut BTreeMap<&str, Vec<u8>>,
    pixels: &Pixels,
    faults: &mut Vec<Fault>,
) -> Option<ImageGenerative> {
    use generative::{ABOUT, DENOISER, SCHEDULER};
    let files = image_generative::FILES;
    let of_tables = generative::FILES.iter().filter(|name| {
        let is_of_tables = !files.contains(name);
        is_of_tables && contents.contains_key(**name)
    });
    faults.extend(of_tables.map(|name| {
        let problem = "is for bundles that read tables, but this bundle reads images: leave it out";
        Fault::new(name, problem)
    }));
    all_or_none(contents, &files, faults)?;
    let mut take = |name: &str| contents.remove(name).unwrap_or_default();
    let about = parse_json::<ImageAbout>(ABOUT, &take(ABOUT), faults)?;
    let scheduler = parse_json(SCHEDULER, &take(SCHEDULER), faults)?;
    let problems = about.faults(pixels);
    let is_sound = problems.is_empty();
    faults.extend(Fault::all(ABOUT, problems));
    is_sound.then(|| ImageGenerative {
        scheduler,
        denoiser: take(DENOISER),
        about,
    })
}

/// Returns `Some` if all files of a generative part are there. If only some are, it adds a fault.
fn all_or_none(
    contents: &BTreeMap<&str, Vec<u8>>,
    files: &[&str],
    faults: &mut Vec<Fault>,
) -> Option<()> {
    let (found, absent): (Vec<&str>, Vec<&str>) = files
        .iter()
        .copied()
        .partition(|name| contents.contains_key(name));
    let first = found.first()?;
    if absent.is_empty() {
        return Some(());
    }
    let problem = format!(
        "requires {}: a bundle must contain all files of its generative part or none",
        absent.join(", ")
    );
    faults.push(Fault::new(first, problem));
    None
}

/// Returns whether residuald uses the content of the file.
fn is_known(name: &str) -> bool {
    let all = REQUIRED.iter().chain(&OPTIONAL).chain(&generative::FILES);
    all.copied().any(|known| known == name)
}

fn read_file(read: Read<'_>, name: &str, faults: &mut Vec<Fault>) -> Option<Vec<u8>> {
    read(name)
        .map_err(|problem| faults.push(Fault::new(name, problem)))
        .ok()
}

fn graph_fault(name: &str, bytes: &[u8]) -> Option<Fault> {
    let problem = files::is_graph(name).then(|| graph::fault(bytes))?;
    problem.map(|problem| Fault::new(name, problem))
}

fn read_checked(
    read: Read<'_>,
    name: &str,
    expected: &str,
    faults: &mut Vec<Fault>,
) -> Option<Vec<u8>> {
    if let Some(problem) = files::name_fault(name) {
        faults.push(Fault::new(name, problem));
        return None;
    }
    let bytes = read_file(read, name, faults)?;
    let actual = sha256_hex(&bytes);
    if actual != expected {
        faults.push(Fault::new(
            name,
            format!(
                "was altered after export: its SHA-256 is {actual}, but the manifest has {expected}"
            ),
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

/// Returns the SHA-256 of `bytes` in lower-case hexadecimal, as in a manifest.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_a_manifest_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = Draft::read(dir.path()).finish().unwrap_err();
        assert_eq!(error.faults.len(), 1);
        assert_eq!(error.faults[0].file, MANIFEST);
    }

    #[test]
    fn what_is_said_is_bounded_whatever_the_bundle_holds() {
        let long = "x".repeat(1 << 20);
        let dir = PathBuf::from("b");
        let faults = (0..1000)
            .map(|_| Fault::new(&long, long.as_str()))
            .collect();
        let text = BundleError { dir, faults }.to_string();
        assert!(text.len() < 50_000, "{}", text.len());
        assert!(text.ends_with("and 980 more"));
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
        std::fs::write(dir.path().join(MANIFEST), manifest.to_string()).unwrap();
        std::fs::write(dir.path().join("model.onnx"), b"altered").unwrap();
        let error = Draft::read(dir.path()).finish().unwrap_err();
        let text = error.to_string();
        for expected in [
            "`files` does not list golden.ndjson",
            "model.onnx: was altered",
            "calibration.json: cannot be read",
            "../escape: every file of a bundle must be directly in",
        ] {
            assert!(text.contains(expected), "{expected} not in {text}");
        }
    }
}
