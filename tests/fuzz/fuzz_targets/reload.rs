//! A bundle in which one file has arbitrary content and a matching hash. Either it is refused with a short message free of
//! control characters, or it loads and can judge scores. Covers everything a reload does except ONNX Runtime.
#![no_main]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use residuald::bundle::{
    Bundle, Draft, Manifest, ModelInput, SegmentId, incompatibilities, sha256_hex,
};
use residuald::decode::{Decoder, RecordFormat, SegmentReader};
use residuald::verdict::{Judge, ThresholdRule};

type Files = BTreeMap<&'static str, Vec<u8>>;

/// A complete bundle. Each seed is one of its files, preceded by the file's number as an ASCII digit.
const BASE: [(&str, &[u8]); 7] = [
    (
        "manifest.json",
        include_bytes!("../seeds/reload/0-manifest.json"),
    ),
    (
        "calibration.json",
        include_bytes!("../seeds/reload/1-calibration.json"),
    ),
    (
        "golden.ndjson",
        include_bytes!("../seeds/reload/2-golden.ndjson"),
    ),
    ("model.onnx", include_bytes!("../seeds/reload/3-model.onnx")),
    (
        "normals.ndjson",
        include_bytes!("../seeds/reload/4-normals.ndjson"),
    ),
    (
        "screen.json",
        include_bytes!("../seeds/reload/5-screen.json"),
    ),
    (
        "screen.onnx",
        include_bytes!("../seeds/reload/6-screen.onnx"),
    ),
];

static WHOLE: LazyLock<Files> = LazyLock::new(|| {
    let mut files: Files = BASE
        .into_iter()
        .map(|(name, seed)| (name, seed[1..].to_vec()))
        .collect();
    files.insert("nearest.onnx", files["model.onnx"].clone());
    files
});

static SCHEMA: LazyLock<ModelInput> = LazyLock::new(|| {
    let manifest: Manifest = serde_json::from_slice(&WHOLE["manifest.json"]).expect("a manifest");
    manifest.input
});

fuzz_target!(|data: &[u8]| {
    let Some((number, content)) = data.split_first() else {
        return;
    };
    let (name, _) = BASE[usize::from(number.wrapping_sub(b'0')) % BASE.len()];
    let mut files = WHOLE.clone();
    files.insert(name, content.to_vec());
    sign(&mut files);
    let read = |name: &str| {
        files
            .get(name)
            .cloned()
            .ok_or_else(|| "does not exist".to_owned())
    };
    match Draft::of(Path::new("bundle"), &read).finish() {
        Ok(bundle) => judge(&bundle),
        Err(error) => {
            assert!(!error.faults.is_empty());
            let text = error.to_string();
            assert!(text.len() < 100_000, "{}", text.len());
            assert!(
                text.chars().all(|c| !c.is_control() || c == '\n'),
                "{text:?}"
            );
        }
    }
});

/// Lists the files with their hashes in the manifest, if it has an empty `files` object.
fn sign(files: &mut Files) {
    let hash = |(name, bytes): (&&str, &Vec<u8>)| ((*name).to_owned(), sha256_hex(bytes).into());
    let others = files.iter().filter(|(name, _)| **name != "manifest.json");
    let hashes: serde_json::Map<String, serde_json::Value> = others.map(hash).collect();
    let Ok(mut manifest) = serde_json::from_slice::<serde_json::Value>(&files["manifest.json"])
    else {
        return;
    };
    // A manifest that already lists files keeps its own list.
    if manifest["files"]
        .as_object()
        .is_some_and(serde_json::Map::is_empty)
    {
        manifest["files"] = hashes.into();
        files.insert("manifest.json", manifest.to_string().into_bytes());
    }
}

fn judge(bundle: &Bundle) {
    let calibration = &bundle.calibration;
    let segments = calibration.segments.as_ref();
    for rule in [
        ThresholdRule::FalseAlarmRate(0.05),
        ThresholdRule::Quantile(0.5),
        ThresholdRule::Score(0.5),
        ThresholdRule::AlertsPerDay {
            alerts: 1.0,
            records_per_day: 1e6,
        },
    ] {
        let Ok(judge) = Judge::new(bundle.features().to_vec(), calibration.clone(), rule) else {
            continue;
        };
        let count = segments.map_or(0, |segments| segments.values.len());
        let ids = (0..count).map(|at| Some(SegmentId(at as u32)));
        for segment in ids.chain([None]) {
            let threshold = judge.threshold_of(segment);
            assert!(threshold.is_finite() && threshold >= 0.0, "{threshold}");
            for score in [0.0, 1.0, f32::MAX] {
                judge.severity(score, segment);
            }
        }
        if let Some(screen) = &bundle.screen {
            let _ = screen
                .answers
                .bound(judge.threshold, 0.5)
                .map(|bound| screen.answers.cleared(bound));
        }
    }
    for score in [0.0, 1.0, 1e30] {
        let p = calibration.all.p_value(score);
        assert!(p > 0.0 && p <= 1.0, "{p}");
    }
    incompatibilities(&SCHEMA, &bundle.manifest.input);
    let mut decoder = Decoder::new(
        bundle.features(),
        RecordFormat::Json,
        segments.map(SegmentReader::of),
    );
    let records = bundle.golden.iter().map(|golden| &golden.record);
    let normals = bundle.normals.iter().flat_map(|normals| &normals.records);
    for record in records.chain(normals.map(|normal| &normal.record)) {
        let _ = decoder.decode(record.get().as_bytes(), None, &mut Vec::new());
    }
}
