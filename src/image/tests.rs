//! What comes from outside: every format, every oddity, every limit.

use std::io::Cursor;

use ::image::{DynamicImage, ImageBuffer, ImageFormat, Luma, LumaA, Rgb, Rgba};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::*;

const FORMATS: [ImageFormat; 5] = [
    ImageFormat::Png,
    ImageFormat::Jpeg,
    ImageFormat::WebP,
    ImageFormat::Bmp,
    ImageFormat::Tiff,
];
const SMALL: Limits = Limits {
    bytes: 1 << 20,
    pixels: 1 << 20,
    memory: u64::MAX,
};

macro_rules! stored {
    ($name:literal) => {
        include_bytes!(concat!("../../tests/images/files/", $name)).as_slice()
    };
}

fn reader(channels: usize) -> ImageReader {
    let pixels = serde_json::json!({
        "height": 8, "width": 8, "channels": channels, "resize": "bilinear",
    });
    ImageReader::new(serde_json::from_value(pixels).unwrap(), "image", SMALL)
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn rgb(width: u32, height: u32) -> Vec<u8> {
    let colour = ImageBuffer::from_pixel(width, height, Rgb([200_u8, 100, 50]));
    encoded(colour, ImageFormat::Png)
}

fn first(channels: usize, payload: &[u8]) -> Vec<u8> {
    let image = reader(channels).read(payload).unwrap();
    assert_eq!(image.rows.len(), 64 * channels);
    image.rows[..channels].to_vec()
}

fn refused(payload: &[u8]) -> String {
    reader(1).read(payload).unwrap_err().to_string()
}

#[test]
fn every_format_becomes_rows() {
    for format in FORMATS {
        let colour = ImageBuffer::from_pixel(20, 10, Rgb([200_u8, 100, 50]));
        let bytes = encoded(colour, format);
        let near = |got: &[u8], want: [u8; 3]| {
            let close = |(a, b): (&u8, u8)| a.abs_diff(b) <= 2;
            assert!(got.iter().zip(want).all(close), "{format:?}: {got:?}");
        };
        near(&first(3, &bytes), [200, 100, 50]);
        near(&first(1, &bytes), [124; 3]);
        let image = reader(3).read(&bytes).unwrap();
        assert_eq!((image.width, image.height), (20, 10));
    }
}

#[test]
fn colours_and_depths_become_what_the_table_says() {
    let png = |image: DynamicImage| encoded(image, ImageFormat::Png);
    let gray = |v: u8| png(ImageBuffer::from_pixel(3, 3, Luma([v])).into());
    assert_eq!(first(3, &gray(7)), [7, 7, 7]);
    let clear = png(ImageBuffer::from_pixel(3, 3, LumaA([9_u8, 0])).into());
    assert_eq!(first(1, &clear), [9], "alpha is dropped");
    let clear = png(ImageBuffer::from_pixel(3, 3, Rgba([1_u8, 2, 3, 0])).into());
    assert_eq!(first(3, &clear), [1, 2, 3]);
    for (deep, expected) in [(0_u16, 0), (128, 0), (129, 1), (257 * 9, 9), (65_535, 255)] {
        let sixteen = png(ImageBuffer::from_pixel(3, 3, Luma([deep])).into());
        assert_eq!(first(1, &sixteen), [expected], "{deep}");
    }
    let deep = Rgba([0_u16, 257 * 100, 65_535, 5]);
    let sixteen = png(ImageBuffer::from_pixel(3, 3, deep).into());
    assert_eq!(first(3, &sixteen), [0, 100, 255]);
    let tiff = encoded(
        ImageBuffer::from_pixel(3, 3, Luma([257_u16 * 9])),
        ImageFormat::Tiff,
    );
    assert_eq!(first(1, &tiff), [9]);
    assert_eq!(first(3, stored!("palette.png")), [200, 100, 50]);
    assert_eq!(first(1, stored!("bilevel.png")), [0]);
    let red = first(3, stored!("cmyk.jpg"));
    assert!(red[0] > 245 && red[1] < 10 && red[2] < 10, "{red:?}");
    let progressive = reader(1).read(stored!("progressive.jpg")).unwrap();
    assert!(progressive.rows[0] < 10 && progressive.rows[7] > 245);
}

#[test]
fn a_turned_image_is_put_upright() {
    for file in [stored!("turned.jpg"), stored!("turned.png")] {
        let image = reader(1).read(file).unwrap();
        assert_eq!((image.width, image.height), (8, 16));
        assert!(image.rows[..8].iter().all(|v| *v < 10));
        assert!(image.rows[56..].iter().all(|v| *v > 245));
        let opened = decode::Opened::new(file, 1, 1 << 20).unwrap();
        assert_eq!((opened.width, opened.height), (8, 16));
    }
}

#[test]
fn corrupt_exif_and_profiles_do_not_cost_the_image() {
    let turned = stored!("turned.jpg");
    let at = turned.windows(4).position(|w| w == b"Exif").unwrap();
    let mut corrupt = turned.to_vec();
    corrupt[at + 6..at + 20].fill(0xee);
    let image = reader(1).read(&corrupt).unwrap();
    assert_eq!((image.width, image.height), (16, 8), "as it lies");
    // An invalid colour profile before the pixels.
    let png = rgb(4, 4);
    let profile = chunk(*b"iCCP", b"bad\0\0not a zlib stream");
    let with_profile = [&png[..33], &profile, &png[33..]].concat();
    assert_eq!(first(3, &with_profile), [200, 100, 50]);
}

fn chunk(kind: [u8; 4], content: &[u8]) -> Vec<u8> {
    let mut hasher = flate2::Crc::new();
    hasher.update(&kind);
    hasher.update(content);
    let length = (content.len() as u32).to_be_bytes();
    [&length, &kind[..], content, &hasher.sum().to_be_bytes()].concat()
}

/// Returns a PNG with an arbitrary header.
fn png_of(width: u32, height: u32, pixels: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let (w, h) = (width.to_be_bytes(), height.to_be_bytes());
    let header = [&w[..], &h, &[8, 0, 0, 0, 0]].concat();
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    zlib.write_all(pixels).unwrap();
    [
        b"\x89PNG\r\n\x1a\n".to_vec(),
        chunk(*b"IHDR", &header),
        chunk(*b"IDAT", &zlib.finish().unwrap()),
        chunk(*b"IEND", b""),
    ]
    .concat()
}

#[test]
fn limits_hold_before_anything_is_decoded() {
    let too_large = |payload: &[u8]| {
        let error = reader(1).read(payload).unwrap_err();
        let expected = matches!(
            error,
            ImageError::TooLarge { .. } | ImageError::TooMuchMemory(_)
        );
        assert!(expected, "{error}");
    };
    too_large(&vec![0; SMALL.bytes + 1]);
    let base64 = STANDARD.encode(vec![0; SMALL.bytes + 1]);
    too_large(format!(r#"{{"image": "{base64}"}}"#).as_bytes());
    // Image bombs: a few bytes whose header claims billions of pixels.
    too_large(&png_of(65_535, 65_535, &[0; 100]));
    too_large(&png_of(1 << 30, 1 << 30, &[0; 100]));
    for format in [ImageFormat::Tiff, ImageFormat::Bmp] {
        let mut bytes = encoded(ImageBuffer::from_pixel(3, 2, Luma([0_u8])), format);
        let (w, h) = match format {
            ImageFormat::Bmp => (18, 22),
            _ => {
                let is = |w: &[u8], tag: [u8; 2]| w[..2] == tag && w[3..] == [0, 1, 0, 0, 0];
                let entry = |tag| {
                    let at = bytes.windows(8).position(|w| is(w, tag));
                    at.unwrap() + 8
                };
                (entry([0x00, 0x01]), entry([0x01, 0x01]))
            }
        };
        for at in [w, h] {
            bytes[at..at + 2].copy_from_slice(&30_000_u16.to_le_bytes());
        }
        let error = reader(1).read(&bytes).unwrap_err();
        let bounded = !matches!(error, ImageError::Unknown);
        assert!(bounded, "{format:?}: {error}");
    }
    // Extreme but small.
    let wide = encoded(
        ImageBuffer::from_pixel(65_535, 2, Luma([5_u8])),
        ImageFormat::Png,
    );
    assert_eq!(first(1, &wide), [5]);
    assert_eq!(first(3, &rgb(1, 1)), [200, 100, 50]);
}

#[test]
fn what_is_no_one_whole_image_is_refused() {
    for (payload, named) in [
        (&b"GIF89a"[..], "neither a PNG"),
        (b"", "neither a PNG"),
        (b"\x00\x01\x02", "neither a PNG"),
        (stored!("animated.png"), "animated"),
        (stored!("animated.webp"), "animated"),
        (stored!("pages.tiff"), "several pages"),
        (&png_of(0, 4, b""), ""),
        (&png_of(4, 0, b""), ""),
    ] {
        let error = refused(payload);
        assert!(error.contains(named), "{named}: {error}");
    }
    for format in FORMATS {
        let noise =
            ImageBuffer::from_fn(40, 40, |x, y| Rgb([(x * y) as u8, (x * 7) as u8, y as u8]));
        let whole = encoded(noise, format);
        for length in [8, whole.len() / 2, whole.len() * 3 / 4] {
            let result = reader(1).read(&whole[..length]);
            assert!(result.is_err(), "{format:?} cut off at {length}");
        }
    }
    let mut swapped = rgb(8, 8);
    swapped[..4].copy_from_slice(&[0xff, 0xd8, 0xff, 0xe0]);
    assert!(reader(1).read(&swapped).is_err(), "wrong magic");
}

#[test]
fn a_model_of_whole_images_bounds_their_pixels_memory_and_runs() {
    let model = WholeModel {
        channels: 3,
        tile: [8, 8],
        runs: [5, 64],
        bytes: 1000,
        kept_bytes: 6,
    };
    let reader = ImageReader {
        limits: Limits::default(),
        ..reader(1)
    };
    let reader = reader.with_model(model);
    assert_eq!(reader.largest().0, MOST_WHOLE);
    // Four tiles in a row, of which neighbours share at least 2 pixels.
    let payload = rgb(26, 8);
    let load = reader.load(&payload);
    let bytes = 8 * 8 + 26 * 8 * 6;
    assert_eq!((load.bytes, load.runs), (bytes, 4 * 5 + 64));
    let (image, reserved) = reader.decode_within(&payload, |bytes| bytes).unwrap();
    assert!(reserved >= 26 * 8 * 1000, "{reserved}");
    assert_eq!(image.pixels[..3], [200, 100, 50], "in the model's channels");
    assert_eq!(image.number, noise_number(&payload));
    let in_json = format!(r#"{{"image": "{}"}}"#, STANDARD.encode(&payload));
    let (again, _) = reader.decode_within(in_json.as_bytes(), |_| ()).unwrap();
    assert_eq!(again, image);
    let gray = super::tests::reader(1).with_model(WholeModel {
        channels: 1,
        ..model
    });
    let (image, ()) = gray.decode_within(&payload, |_| ()).unwrap();
    assert_eq!(image.lost.names(), ["colour"]);
}

#[test]
fn an_image_in_json_is_replaced_in_its_form() {
    let with_image = |field: &str, payload: &str| {
        let reader = ImageReader {
            field: field.to_owned(),
            ..reader(1)
        };
        let (made, is_bare) = reader.with_image(payload.as_bytes(), b"\xfb\xff");
        assert!(!is_bare);
        String::from_utf8(made).unwrap()
    };
    for (field, payload, expected) in [
        (
            "image",
            r#" {"image": "AA" , "a": 1.50} "#,
            r#"{"image":"+/8=","a":1.50}"#,
        ),
        ("image", r#"{"image": "_-AA"}"#, r#"{"image":"-_8="}"#),
        (
            "a.b",
            r#"{"a": {"c": [1], "b": "data:image/jpeg;base64,AA"}, "b": "x"}"#,
            r#"{"a":{"c":[1],"b":"data:image/png;base64,+/8="},"b":"x"}"#,
        ),
        ("a.b", r#"{"a": 5, "a.b": "AA"}"#, r#"{"a":5,"a.b":"+/8="}"#),
    ] {
        assert_eq!(with_image(field, payload), expected);
    }
    assert_eq!(
        reader(1).with_image(&rgb(2, 2), b"PNG"),
        (b"PNG".to_vec(), true)
    );
}

#[test]
fn an_image_in_json_is_found_and_left_out_of_the_record() {
    let base64 = STANDARD.encode(rgb(2, 2));
    let nested = ImageReader {
        field: "shot.image".to_owned(),
        ..reader(3)
    };
    let payload = format!(
        r#" {{"id": 7.50, "shot": {{"camera": "a\"b", "image": "{base64}"}}, "big": 12345678901234567890123}}"#
    );
    let image = nested.read(payload.as_bytes()).unwrap();
    assert_eq!(image.rows[..3], [200, 100, 50]);
    let context = nested.context(payload.as_bytes()).unwrap();
    assert_eq!(
        context.get(),
        r#"{"id":7.50,"shot":{"camera": "a\"b"},"big":12345678901234567890123}"#
            .replace(r#""camera": "#, r#""camera":"#)
    );
    assert!(
        nested.context(&rgb(2, 2)).is_none(),
        "bare images have none"
    );
    // A path as in a schema: keys with dots, quoted keys, and both ways to nest.
    for (field, payload, context) in [
        (
            "shot.image",
            r#"{"shot.image": "IMAGE", "a": 1}"#,
            r#"{"a":1}"#,
        ),
        (
            r#""shot.image""#,
            r#"{"shot.image": "IMAGE", "shot": {"image": 1}}"#,
            r#"{"shot":{"image": 1}}"#,
        ),
        (
            r#"a."b.c"."""#,
            r#"{"a": {"b.c": {"": "IMAGE", "d": 2}}}"#,
            r#"{"a":{"b.c":{"d":2}}}"#,
        ),
        (
            "a.b.c",
            r#"{"a.b": {"c": "IMAGE"}, "a": {"b": {}}}"#,
            r#"{"a.b":{},"a":{"b":{}}}"#,
        ),
    ] {
        let reader = ImageReader {
            field: field.to_owned(),
            ..reader(3)
        };
        let payload = payload.replace("IMAGE", &base64);
        assert_eq!(
            reader.read(payload.as_bytes()).unwrap().rows,
            image.rows,
            "{field}"
        );
        assert_eq!(reader.context(payload.as_bytes()).unwrap().get(), context);
    }
    let twice = format!(r#"{{"shot.image": "{base64}", "shot": {{"image": "{base64}"}}}}"#);
    assert!(matches!(
        nested.read(twice.as_bytes()),
        Err(ImageError::Duplicate(_))
    ));
    for (payload, expected) in [
        (r#"{}"#, ImageError::Missing("image".into())),
        (r#"{"image": null}"#, ImageError::Missing("image".into())),
        (r#"{"image": 5}"#, ImageError::NotString("image".into())),
        (
            r#"{"image": "a", "image": "b"}"#,
            ImageError::Duplicate("image".into()),
        ),
    ] {
        assert_eq!(
            reader(1).read(payload.as_bytes()),
            Err(expected),
            "{payload}"
        );
    }
    for payload in [
        r#"{"image": "%%%%"}"#,
        r#"{"image": "#,
        "{\"image\": \"\u{ff}\"}",
    ] {
        assert!(reader(1).read(payload.as_bytes()).is_err(), "{payload}");
    }
    assert!(reader(1).read(b"{\"image\": \"\xff\"}").is_err());
}

#[test]
fn base64_is_read_as_browsers_mails_and_tokens_write_it() {
    use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
    let png = rgb(2, 2);
    let plain = STANDARD.encode(&png);
    let lines: Vec<&str> = plain
        .as_bytes()
        .chunks(20)
        .map(|l| std::str::from_utf8(l).unwrap())
        .collect();
    let expected = reader(3).read(&png).unwrap();
    for written in [
        plain.clone(),
        format!("data:image/png;base64,{plain}"),
        format!("data:image/png;charset=utf-8;base64,{plain}"),
        lines.join("\\r\\n"),
        STANDARD_NO_PAD.encode(&png),
        URL_SAFE.encode(&png),
        URL_SAFE_NO_PAD.encode(&png),
    ] {
        let payload = format!(r#"{{"image": "{written}"}}"#);
        assert_eq!(
            reader(3).read(payload.as_bytes()).unwrap().rows,
            expected.rows,
            "{written}"
        );
    }
    for broken in [
        format!("data:image/png,{plain}"),
        format!("{plain}-"),
        "data:;base64,%".to_owned(),
    ] {
        let payload = format!(r#"{{"image": "{broken}"}}"#);
        assert!(reader(3).read(payload.as_bytes()).is_err(), "{broken}");
    }
}

#[test]
fn tiles_cover_an_image_and_their_bytes_are_known_before() {
    let pixels = serde_json::json!({
        "height": 8, "width": 8, "channels": 3, "resize": "bilinear",
        "tiles": {"scale": 0.5, "overlap": 2},
    });
    let reader = ImageReader::new(serde_json::from_value(pixels).unwrap(), "image", SMALL);
    let bytes = rgb(60, 31);
    let image = reader.read(&bytes).unwrap();
    assert_eq!((image.layout.width, image.layout.height), (30, 16));
    assert_eq!(image.layout.rows(), 5 * 3);
    assert_eq!(image.rows.len(), 15 * 8 * 8 * 3);
    assert_eq!(reader.load(&bytes).bytes, image.rows.len());
    assert_eq!(reader.load(b"nothing").bytes, 0);
    assert!(
        image
            .rows
            .as_chunks::<3>()
            .0
            .iter()
            .all(|p| *p == [200, 100, 50])
    );
    let tiny = reader.read(&rgb(1, 1)).unwrap();
    assert_eq!((tiny.layout.rows(), tiny.rows.len()), (1, 8 * 8 * 3));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// For any bytes, reading returns a result and does not panic.
    #[test]
    fn damaged_images_have_an_answer(which in 0..5_usize, places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let noise = ImageBuffer::from_fn(24, 24, |x, y| Rgb([(x * y) as u8, x as u8, y as u8]));
        let mut bytes = encoded(noise, FORMATS[which]);
        for (place, value) in places {
            let at = place.index(bytes.len());
            bytes[at] = value;
        }
        let _ = reader(3).read(&bytes);
        let _ = reader(1).load(&bytes);
    }
}
