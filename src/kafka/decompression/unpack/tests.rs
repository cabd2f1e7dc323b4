use std::io::Write as _;

use super::*;

/// `count` encoded records, each with a value of `size` zeros.
fn batch(count: i64, size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for offset in 0..count {
        // Attributes, timestamp, offset, no key, the value, and no headers.
        let varint = |number: i64| {
            let mut text = Vec::new();
            let mut rest = (number << 1) as u64;
            while rest >= 0x80 {
                text.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            text.push(rest as u8);
            text
        };
        let body = [
            &[0, 0][..],
            &varint(offset),
            &[1],
            &varint(size as i64),
            &vec![0; size],
            &[0],
        ]
        .concat();
        bytes.extend(varint(body.len() as i64));
        bytes.extend(body);
    }
    bytes
}

fn java(blocks: &[Vec<u8>]) -> Vec<u8> {
    let blocks = blocks.iter().flat_map(|block| {
        let packed = snap::raw::Encoder::new().compress_vec(block).unwrap();
        [&(packed.len() as u32).to_be_bytes()[..], &packed].concat()
    });
    blocks.collect()
}

fn packed(bytes: &[u8]) -> [(Codec, Vec<u8>); 5] {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(bytes).unwrap();
    let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
    lz4.write_all(bytes).unwrap();
    let blocks: Vec<Vec<u8>> = bytes.chunks(32 << 10).map(<[u8]>::to_vec).collect();
    [
        (Codec::Gzip, gzip.finish().unwrap()),
        (Codec::Lz4, lz4.finish().unwrap()),
        (Codec::Zstd, zstd::encode_all(bytes, 3).unwrap()),
        (
            Codec::Snappy,
            snap::raw::Encoder::new().compress_vec(bytes).unwrap(),
        ),
        (Codec::SnappyBlocks, java(&blocks)),
    ]
}

/// The batch for which `bytes` contain a stand-in, read as a consumer would.
fn stand_in_for(bytes: &[u8], base: i64) -> Option<Oversized> {
    let secret = SECRET.as_bytes();
    let at = bytes
        .windows(secret.len())
        .position(|part| part == secret)?;
    let value = &bytes[at..];
    let seen = records::walk(bytes).unwrap();
    Oversized::of(&Record {
        topic: "t",
        partition: 0,
        offset: base + seen.last_offset,
        index: None,
        timestamp_ms: None,
        key: None,
        headers: vec![(HEADER, Some(value))],
        payload: None,
    })
}

#[test]
fn a_batch_that_fits_is_unpacked_and_weighed() {
    let plain = batch(100, 1000);
    for (codec, compressed) in packed(&plain) {
        let unpacked = within(codec, &compressed, 1 << 20).unwrap();
        assert!(unpacked.bytes == plain, "{codec:?}");
        assert_eq!(unpacked.weight, plain.len() as u64 + 100 * RECORD_OVERHEAD);
    }
}

#[test]
fn one_record_stands_in_for_a_batch_that_does_not_fit() {
    for (count, size) in [(1, 4 << 20), (3, 1 << 20), (400_000, 0)] {
        let plain = batch(count, size);
        for (codec, compressed) in packed(&plain) {
            let unpacked = within(codec, &compressed, 2 << 20);
            let Ok(unpacked) = unpacked else {
                // A block of snappy is read whole or not at all.
                assert_eq!(
                    (codec, unpacked.unwrap_err()),
                    (Codec::Snappy, Refused::Broken)
                );
                continue;
            };
            let oversized =
                stand_in_for(&unpacked.bytes, 1000).unwrap_or_else(|| panic!("{codec:?}"));
            assert_eq!(
                (oversized.first, oversized.last),
                (1000, 999 + count),
                "{codec:?}"
            );
            assert_eq!(oversized.records, count as u64);
            assert_eq!(
                oversized.bytes,
                plain.len() as u64 + RECORD_OVERHEAD * count as u64
            );
            assert_eq!(oversized.share, 2 << 20);
        }
    }
}

#[test]
fn a_producer_cannot_forge_a_stand_in() {
    let forged = format!("{} 5 6 7 8", "0".repeat(32));
    let record = |value: &str| {
        Oversized::of(&Record {
            topic: "t",
            partition: 0,
            offset: 9,
            index: None,
            timestamp_ms: None,
            key: None,
            headers: vec![(HEADER, Some(value.as_bytes()))],
            payload: None,
        })
        .is_some()
    };
    assert!(!record(&forged) && !record(""));
    assert!(record(&format!("{} 5 6 7 8", *SECRET)));
}

#[test]
fn bytes_that_are_no_batch_are_refused_or_left_to_the_parser() {
    for (codec, compressed) in packed(&[0xff; 100]) {
        assert!(within(codec, &compressed, 1000).is_ok(), "{codec:?}");
        let none = within(codec, &compressed, 50).map(|batch| batch.weight);
        assert_eq!(none, Err(Refused::Broken), "{codec:?}");
        let cut = &compressed[..compressed.len() / 2];
        assert!(within(codec, cut, 1000).is_err(), "{codec:?}");
    }
}
