//! Decoding an image takes no more memory than was reckoned from its header, and not so much less that good images are refused for
//! nothing: with an allocator that knows the peak.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Cursor;
use std::sync::atomic::{AtomicUsize, Ordering};

use image::codecs::webp::WebPEncoder;
use image::{DynamicImage, GrayImage, ImageBuffer, ImageFormat, Luma, LumaA, Rgb, Rgba};
use residuald::image::{FIELD, ImageError, ImageReader, Limits};

struct Weighing;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grow(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: everything is the system allocator's; counting allocates nothing. Growing is counted as if the old block
// stayed until the new one is there.
unsafe impl GlobalAlloc for Weighing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grow(size);
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Weighing = Weighing;

const WIDTH: u32 = 1500;
const HEIGHT: u32 = 1100;

fn write(image: DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn level(x: u32, y: u32) -> u8 {
    ((x * 31) ^ (y * 17) ^ ((x * y) >> 6)) as u8
}

/// Every format and kind of pixel that can be written here.
fn images() -> Vec<(String, Vec<u8>)> {
    let wide = |x, y| u16::from(level(x, y)) * 257;
    let kinds: [(&str, DynamicImage); 7] = [
        (
            "gray",
            GrayImage::from_fn(WIDTH, HEIGHT, |x, y| Luma([level(x, y)])).into(),
        ),
        (
            "rgb",
            ImageBuffer::from_fn(WIDTH, HEIGHT, |x, y| Rgb([level(x, y); 3])).into(),
        ),
        (
            "rgba",
            ImageBuffer::from_fn(WIDTH, HEIGHT, |x, y| Rgba([level(x, y); 4])).into(),
        ),
        (
            "gray-16",
            ImageBuffer::from_fn(WIDTH, HEIGHT, |x, y| Luma([wide(x, y)])).into(),
        ),
        (
            "gray-alpha-16",
            ImageBuffer::from_fn(WIDTH, HEIGHT, |x, y| LumaA([wide(x, y); 2])).into(),
        ),
        (
            "rgb-16",
            ImageBuffer::from_fn(WIDTH, HEIGHT, |x, y| Rgb([wide(x, y); 3])).into(),
        ),
        (
            "rgba-16",
            ImageBuffer::from_fn(WIDTH, HEIGHT, |x, y| Rgba([wide(x, y); 4])).into(),
        ),
    ];
    let mut all = Vec::new();
    for (kind, image) in kinds {
        all.push((
            format!("png {kind}"),
            write(image.clone(), ImageFormat::Png),
        ));
        if !kind.starts_with("gray-alpha") {
            all.push((
                format!("tiff {kind}"),
                write(image.clone(), ImageFormat::Tiff),
            ));
        }
        if !kind.ends_with("16") {
            all.push((
                format!("bmp {kind}"),
                write(image.clone(), ImageFormat::Bmp),
            ));
            let plain = match kind {
                "rgba" => image.to_rgb8().into(),
                _ => image.clone(),
            };
            all.push((format!("jpeg {kind}"), write(plain, ImageFormat::Jpeg)));
        }
        if matches!(kind, "rgb" | "rgba") {
            let mut bytes = Vec::new();
            let encoder = WebPEncoder::new_lossless(&mut bytes);
            image.write_with_encoder(encoder).unwrap();
            all.push((format!("webp {kind}"), bytes));
        }
    }
    // What the encoders here cannot write: progressive, with all coefficients in memory, and turned.
    for name in [
        "progressive.jpg",
        "cmyk.jpg",
        "turned.jpg",
        "turned.png",
        "large-progressive.jpg",
        "large-lossy.webp",
    ] {
        let path = format!("{}/tests/images/files/{name}", env!("CARGO_MANIFEST_DIR"));
        all.push((name.to_owned(), std::fs::read(path).unwrap()));
    }
    all
}

fn reader(channels: usize, tiles: bool, limits: Limits) -> ImageReader {
    let mut pixels = serde_json::json!(
        {"height": 64, "width": 64, "channels": channels, "resize": "bilinear"}
    );
    if tiles {
        pixels["tiles"] = serde_json::json!({"scale": 1.0, "overlap": 8});
    }
    ImageReader::new(serde_json::from_value(pixels).unwrap(), FIELD, limits)
}

#[test]
fn no_image_takes_more_than_its_header_says() {
    for (name, bytes) in images() {
        for (channels, tiles) in [(1, false), (3, false), (1, true), (3, true)] {
            let reader = reader(channels, tiles, Limits::default());
            let mut reckoned = 0;
            let before = NOW.load(Ordering::Relaxed);
            PEAK.store(before, Ordering::Relaxed);
            let read = reader.read_within(&bytes, |bytes| reckoned = bytes);
            let peak = (PEAK.load(Ordering::Relaxed) - before) as u64;
            assert!(read.is_ok(), "{name}: {read:?}");
            assert!(
                peak <= reckoned,
                "{name} to {channels}, tiles {tiles}: {peak} of {reckoned} bytes"
            );
            let (image, ()) = read.unwrap();
            assert!(
                tiles || reckoned < 4 * peak + (8 << 20) || name.starts_with("webp"),
                "{name} to {channels}: {peak} of {reckoned} bytes is far too little"
            );
            assert!(image.bytes() <= reckoned);
            // A byte less and it is refused, before anything of it is decoded.
            let limits = Limits {
                memory: reckoned - 1,
                ..Limits::default()
            };
            let refused = self::reader(channels, tiles, limits).read(&bytes);
            assert!(
                matches!(refused, Err(ImageError::OverShare { .. })),
                "{name}"
            );
        }
    }
}
