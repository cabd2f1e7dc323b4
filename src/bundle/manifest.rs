//! `manifest.json`: the bundle's name and version, the input that the model reads, and the hash of every other file.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::files::MOST_FILES;
use super::notation::{MissingValue, Notation};
use super::path;

/// Maximum number of features.
const MOST_FEATURES: usize = 10_000;
/// Maximum length of a name, version or unit, in bytes. They are displayed and become metric labels.
const LONGEST_WORD: usize = 256;
/// Maximum number of conflicting paths that are reported. It could otherwise grow with the square of the number of features.
const MOST_CONFLICTS: usize = 100;
/// Maximum length of a feature's path or name, in bytes. They come from the column names of the user's data.
const LONGEST_PATH: usize = 1024;

/// The bundle formats that this version reads. Format 2 has further spellings of values, which a version that only knows format 1
/// would ignore.
pub const FORMATS: RangeInclusive<u32> = 1..=2;

/// The manifest as the trainer writes it. `training` and `scoring` are information for people and are passed on unchanged.
#[derive(Debug, Clone, Deserialize)]
pub struct Manifest {
    pub format: u32,
    pub name: String,
    pub version: String,
    /// SHA-256 of each file in lower-case hexadecimal, by file name.
    pub files: BTreeMap<String, String>,
    pub input: ModelInput,
    pub golden: Tolerance,
    #[serde(default)]
    pub scoring: serde_json::Value,
    #[serde(default)]
    pub training: serde_json::Value,
}

/// How far the score of a golden record may deviate from the trainer's: `absolute + relative * |expected|`.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Tolerance {
    pub relative_tolerance: f32,
    pub absolute_tolerance: f32,
}

impl Tolerance {
    /// Returns whether `got` is within the tolerance of `want`. NaN never is.
    pub fn accepts(self, got: f32, want: f32) -> bool {
        (got - want).abs() <= self.absolute_tolerance + self.relative_tolerance * want.abs()
    }
}

/// The input that the model reads.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "WrittenInput")]
pub enum ModelInput {
    Tabular { features: Vec<Feature> },
    Image(Pixels),
}

/// The input as it is written in the manifest.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum WrittenInput {
    Tabular {
        features: Vec<Feature>,
        /// Values that count as missing in every feature.
        #[serde(default)]
        missing_values: Vec<MissingValue>,
    },
    Image(Pixels),
}

impl From<WrittenInput> for ModelInput {
    fn from(input: WrittenInput) -> ModelInput {
        match input {
            WrittenInput::Tabular {
                mut features,
                missing_values,
            } => {
                add_missing_values(&mut features, &missing_values);
                ModelInput::Tabular { features }
            }
            WrittenInput::Image(pixels) => ModelInput::Image(pixels),
        }
    }
}

/// Adds values that count as missing to every feature.
pub fn add_missing_values(features: &mut [Feature], values: &[MissingValue]) {
    for feature in features {
        let own = &mut feature.notation.missing_values;
        for value in values {
            if !own.contains(value) {
                own.push(value.clone());
            }
        }
    }
}

impl ModelInput {
    /// Returns the columns of the scorer's input `x` in order, or an empty slice for images.
    pub fn features(&self) -> &[Feature] {
        match self {
            ModelInput::Tabular { features } => features,
            ModelInput::Image(_) => &[],
        }
    }

    fn faults(&self) -> Vec<String> {
        match self {
            ModelInput::Tabular { features } => feature_faults(features),
            ModelInput::Image(pixels) => pixels.faults(),
        }
    }
}

/// The rows that an image is converted to before it is scored, one or more. Each is uint8 [height, width, channels].
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Pixels {
    pub height: usize,
    pub width: usize,
    /// 1 for gray, 3 for RGB.
    pub channels: usize,
    pub resize: Filter,
    /// If `None`, the image is not cut into tiles: the whole image is resized and scored as one row.
    #[serde(default)]
    pub tiles: Option<Tiles>,
}

/// How an image is resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// Pillow's BILINEAR: a triangle filter. When an image is reduced, the filter covers all source pixels of a target pixel, so
    /// that none is skipped.
    Bilinear,
}

/// How an image is tiled: it is resized by `scale`, then cut into overlapping tiles. Each tile is a row.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Tiles {
    /// The factor by which the image is resized, in (0, 1].
    pub scale: f64,
    /// Minimum overlap of neighbouring tiles, in pixels after resizing.
    pub overlap: usize,
}

impl Pixels {
    /// Maximum height and width of a row, in pixels.
    const LONGEST: usize = 4096;

    /// Returns the size of a row in bytes, which is also its number of input values.
    pub fn row_bytes(&self) -> usize {
        self.height * self.width * self.channels
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (name, side) in [("height", self.height), ("width", self.width)] {
            if side == 0 || side > Pixels::LONGEST {
                faults.push(format!(
                    "input.{name} is {side}: it must be between 1 and {}",
                    Pixels::LONGEST
                ));
            }
        }
        if !matches!(self.channels, 1 | 3) {
            faults.push(format!(
                "input.channels is {}: it must be 1 (gray) or 3 (RGB)",
                self.channels
            ));
        }
        if let Some(tiles) = self.tiles {
            if !(tiles.scale > 0.0 && tiles.scale <= 1.0) {
                faults.push(format!(
                    "input.tiles.scale is {}: it must be above 0 and at most 1",
                    tiles.scale
                ));
            }
            if tiles.overlap > self.height.min(self.width) / 2 {
                faults.push(format!(
                    "input.tiles.overlap is {}: it must be at most half of the tile's shorter side",
                    tiles.overlap
                ));
            }
        }
        faults
    }
}

/// One column of the scorer's input.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Feature {
    pub name: String,
    /// Dotted path of object keys in the decoded record, as in [`path`].
    pub path: String,
    #[serde(flatten)]
    pub kind: FeatureKind,
    #[serde(default)]
    pub missing: Missing,
    /// The unit that people see, for example EUR, km or seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Further spellings of its values.
    #[serde(flatten)]
    pub notation: Notation,
}

/// The type of a feature's value.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum FeatureKind {
    Number,
    Bool,
    Categorical {
        vocabulary: Vec<String>,
    },
    Timestamp {
        part: TimePart,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        epoch_unit: Option<EpochUnit>,
    },
}

/// The part of a timestamp that becomes the feature, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TimePart {
    /// The hour with its fraction, in [0, 24).
    HourOfDay,
    /// From 0 (Monday) to 6 (Sunday).
    DayOfWeek,
}

/// The unit of a timestamp that is a number since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub enum EpochUnit {
    #[serde(rename = "d")]
    Days,
    #[serde(rename = "s")]
    Seconds,
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "us")]
    Microseconds,
    #[serde(rename = "ns")]
    Nanoseconds,
}

/// What happens to a record without this feature.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// The graph gets NaN, imputes it and leaves it out of the score.
    Impute,
    /// The record becomes a dead letter.
    #[default]
    Reject,
}

impl Manifest {
    /// Returns a message for each problem of the manifest itself.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if !FORMATS.contains(&self.format) {
            faults.push(format!(
                "format {} is not supported, because this version reads the formats {} and {}: export the bundle again with a matching residuald-train",
                self.format,
                FORMATS.start(),
                FORMATS.end()
            ));
        }
        if self.name.is_empty() || self.version.is_empty() {
            faults.push("name and version must not be empty".into());
        }
        faults.extend(name_fault("name", &self.name));
        faults.extend(name_fault("version", &self.version));
        if self.files.len() > MOST_FILES {
            let count = self.files.len();
            faults.push(format!(
                "`files` lists {count} files, but at most {MOST_FILES} are allowed"
            ));
        }
        let tolerances = [
            self.golden.relative_tolerance,
            self.golden.absolute_tolerance,
        ];
        if tolerances.iter().any(|t| !(0.0..=0.01).contains(t)) {
            faults.push("the golden tolerances must be between 0 and 0.01".into());
        }
        faults.extend(self.input.faults());
        faults
    }
}

/// Everything that is wrong with the columns of a table together.
pub fn feature_faults(features: &[Feature]) -> Vec<String> {
    let mut faults = Vec::new();
    if features.is_empty() {
        faults.push("input.features is empty: list at least one feature".into());
    }
    if features.len() > MOST_FEATURES {
        let count = features.len();
        return vec![format!(
            "input has {count} features, but at most {MOST_FEATURES} are allowed"
        )];
    }
    let mut names = HashSet::new();
    for feature in features {
        let unit = feature.unit.as_deref().unwrap_or_default();
        faults.extend(length_fault(
            "a feature's name",
            &feature.name,
            LONGEST_PATH,
        ));
        faults.extend(length_fault(
            "a feature's path",
            &feature.path,
            LONGEST_PATH,
        ));
        faults.extend(length_fault("a feature's unit", unit, LONGEST_WORD));
        if !names.insert(&feature.name) {
            faults.push(format!("feature `{}` is listed twice", feature.name));
        }
        if let Err(problem) = path::keys(&feature.path) {
            faults.push(format!("feature `{}`: {problem}", feature.name));
        }
        faults.extend(feature.notation.faults(&feature.name));
        if let FeatureKind::Categorical { vocabulary } = &feature.kind {
            let distinct: HashSet<_> = vocabulary.iter().collect();
            if vocabulary.is_empty() || distinct.len() != vocabulary.len() {
                faults.push(format!(
                    "the vocabulary of feature `{}` must be a non-empty list of distinct entries",
                    feature.name
                ));
            }
        }
    }
    faults.extend(path_conflicts(features));
    faults
}

/// Returns what is wrong with a bundle's name or version. `what` is the word for it in the message.
fn name_fault(what: &str, name: &str) -> Option<String> {
    let controls = name.contains(char::is_control);
    let controls = controls.then(|| format!("{what} `{name}` contains control characters"));
    length_fault(what, name, LONGEST_WORD).or(controls)
}

fn length_fault(what: &str, text: &str, longest: usize) -> Option<String> {
    let start: String = text.chars().take(32).collect();
    let too_long = text.len() > longest;
    too_long.then(|| format!("{what} `{start}…` is longer than {longest} bytes"))
}

/// Returns a message for each path that is a value for one feature and an object for another. No record can have both.
fn path_conflicts(features: &[Feature]) -> Vec<String> {
    let keys = features
        .iter()
        .map(|f| (path::keys_or_parts(&f.path), &f.path));
    let paths: HashMap<_, _> = keys.collect();
    let mut faults = Vec::new();
    for (keys, path) in &paths {
        for length in 1..keys.len() {
            if let Some(parent) = paths.get(&keys[..length])
                && faults.len() < MOST_CONFLICTS
            {
                faults.push(format!(
                    "path `{parent}` is both a value and the parent of `{path}`"
                ));
            }
        }
    }
    faults.sort();
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(features: serde_json::Value) -> Manifest {
        serde_json::from_value(serde_json::json!({
            "format": 1, "name": "m", "version": "1", "files": {},
            "golden": {"relative_tolerance": 1e-5, "absolute_tolerance": 1e-6},
            "input": {"kind": "tabular", "features": features},
        }))
        .unwrap()
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        let manifest = manifest(serde_json::json!([
            {"name": "a", "path": "a", "type": "number"},
            {"name": "a", "path": "a.b", "type": "number"},
            {"name": "c", "path": "c..d", "type": "categorical", "vocabulary": []},
        ]));
        let faults = manifest.faults();
        assert_eq!(faults.len(), 4, "{faults:#?}");
    }

    #[test]
    fn missing_values_of_the_schema_are_those_of_every_feature() {
        let input: ModelInput = serde_json::from_value(serde_json::json!({
            "kind": "tabular", "missing_values": ["n.a.", -1],
            "features": [
                {"name": "a", "path": "a", "type": "number"},
                {"name": "b", "path": "b", "type": "bool", "missing_values": [-1, "?"]},
            ],
        }))
        .unwrap();
        let lists = input.features().iter().map(|f| &f.notation.missing_values);
        let lists: Vec<_> = lists.map(|list| serde_json::json!(list)).collect();
        assert_eq!(
            lists,
            [
                serde_json::json!(["n.a.", -1.0]),
                serde_json::json!([-1.0, "?", "n.a."])
            ]
        );
    }

    #[test]
    fn what_is_shown_is_short() {
        let mut manifest = manifest(serde_json::json!([
            {"name": "a\n", "path": "a\n", "type": "number"},
            {"name": "n".repeat(2000), "path": "b".repeat(2000), "type": "number", "unit": "x".repeat(300)},
        ]));
        manifest.name = "n".repeat(300);
        manifest.version = "1\n2".into();
        let files = (0..65).map(|i| (format!("{i}"), String::new()));
        manifest.files = files.collect();
        let faults = manifest.faults();
        assert_eq!(faults.len(), 6, "{faults:#?}");
    }

    #[test]
    fn an_image_schema_is_checked() {
        let image = |input: serde_json::Value| {
            let input: ModelInput = serde_json::from_value(input).unwrap();
            input.faults()
        };
        let mut input = serde_json::json!({
            "kind": "image", "height": 64, "width": 32, "channels": 3, "resize": "bilinear",
        });
        assert_eq!(image(input.clone()), Vec::<String>::new());
        input["tiles"] = serde_json::json!({"scale": 0.5, "overlap": 16});
        assert_eq!(image(input.clone()), Vec::<String>::new());
        input["tiles"]["overlap"] = (1_u64 << 63).into();
        assert_eq!(image(input).len(), 1);
        let faults = image(serde_json::json!({
            "kind": "image", "height": 0, "width": 5000, "channels": 4, "resize": "bilinear",
            "tiles": {"scale": 0.0, "overlap": 16},
        }));
        assert_eq!(faults.len(), 5, "{faults:#?}");
    }

    #[test]
    fn an_unknown_type_or_kind_does_not_parse() {
        let text = r#"{"name": "a", "path": "a", "type": "complex"}"#;
        assert!(serde_json::from_str::<Feature>(text).is_err());
    }

    #[test]
    fn tolerance_is_relative_plus_absolute_and_refuses_nan() {
        let tolerance = Tolerance {
            relative_tolerance: 1e-5,
            absolute_tolerance: 1e-6,
        };
        assert!(tolerance.accepts(1000.009, 1000.0));
        assert!(!tolerance.accepts(1000.02, 1000.0));
        assert!(!tolerance.accepts(f32::NAN, 1.0));
        assert!(!tolerance.accepts(1.0, f32::NAN));
    }
}
