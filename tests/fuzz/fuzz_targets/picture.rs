//! Pictures, bare and in JSON: rows of the right size or a refusal, whatever comes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use residuald::picture::{Limits, Reader};

/// Small, so that a run is fast; tiles, so that no picture of any shape is left out.
const PIXELS: &str = r#"{
    "height": 16, "width": 16, "channels": 3, "resize": "bilinear", "tiles": {"scale": 0.5, "overlap": 4}
}"#;
const LIMITS: Limits = Limits {
    bytes: 1 << 16,
    pixels: 1 << 16,
};

fuzz_target!(|payload: &[u8]| {
    let pixels = serde_json::from_str(PIXELS).expect("a schema");
    let reader = Reader::new(pixels, "image", LIMITS);
    let expected = reader.row_bytes(payload);
    if let Ok(picture) = reader.read(payload) {
        assert_eq!(picture.rows.len(), expected);
        assert_eq!(picture.rows.len(), picture.layout.rows() * 16 * 16 * 3);
    }
    let _ = reader.context(payload);
});
