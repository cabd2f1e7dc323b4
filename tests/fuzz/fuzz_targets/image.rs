//! Payloads decoded as images, to gray and to colour, whole and in tiles. Each becomes pixels for complete model rows or an error.
#![no_main]

#[path = "../common.rs"]
mod common;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use residuald::bundle::Pixels;
use residuald::image::{FIELD, ImageError, ImageReader, Limits};
use serde_json::json;

/// Small, so that most of the time goes into decoding and not into large images.
const LIMITS: Limits = Limits {
    bytes: 3000,
    pixels: 1 << 16,
    memory: 8 << 20,
};

static READERS: LazyLock<[ImageReader; 2]> = LazyLock::new(|| {
    common::allow_panics_of_crates();
    let gray = json!({"height": 16, "width": 24, "channels": 1, "resize": "bilinear"});
    let tiles = json!({"scale": 0.75, "overlap": 4});
    let colour =
        json!({"height": 16, "width": 16, "channels": 3, "resize": "bilinear", "tiles": tiles});
    [gray, colour].map(|pixels| {
        let pixels: Pixels = serde_json::from_value(pixels).expect("pixels");
        ImageReader::new(pixels, FIELD, LIMITS)
    })
});

fuzz_target!(|data: &[u8]| {
    let mut upright = None;
    for reader in READERS.iter() {
        let row = reader.pixels().row_bytes();
        match reader.read(data) {
            Ok(image) => {
                let size = (image.width, image.height);
                assert!(size.0 > 0 && size.1 > 0);
                assert!((size.0 * size.1) as u64 <= LIMITS.pixels);
                assert!(image.layout.rows() > 0);
                assert_eq!(image.rows.len(), image.layout.rows() * row);
                assert_eq!(reader.row_bytes(data), image.rows.len());
                assert_eq!(
                    *upright.get_or_insert(size),
                    size,
                    "both readers report the same size"
                );
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                assert!(
                    upright.is_none() || matches!(error, ImageError::TooLarge { .. }),
                    "{error}"
                );
            }
        }
    }
    if let Some(context) = READERS[0].context(data) {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(context.get());
        // The context may be invalid JSON only where the payload was: it may contain a lone surrogate or 1e999.
        if let Ok(parsed) = parsed {
            assert!(parsed.get(FIELD).is_none());
        }
    }
});
