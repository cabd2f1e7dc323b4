//! Removes what surrounds the JSON of a message, and recognises messages that are not JSON.

use super::super::headers::{self, Foreign};

/// The first byte of Confluent's header. A schema id of four bytes follows.
const MAGIC: u8 = 0;
const HEADER: usize = 5;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Returns the JSON of a message without a byte order mark and without the header of a JSON Schema serialiser: Confluent's, Apicurio's
/// or AWS Glue's. JSON never starts with them.
pub fn unframed(payload: &[u8]) -> &[u8] {
    let is_json = |at: usize| matches!(payload.get(at), Some(b'{' | b'[' | b'"'));
    let payload = match headers::foreign(payload) {
        _ if payload.first() == Some(&MAGIC) && is_json(HEADER) => &payload[HEADER..],
        Some(Foreign::Apicurio { record, .. } | Foreign::Glue { record, .. })
            if is_json(payload.len() - record.len()) =>
        {
            record
        }
        _ => payload,
    };
    payload.strip_prefix(BYTE_ORDER_MARK).unwrap_or(payload)
}

/// Returns what a payload that is not JSON seems to be, and what to do about it.
pub fn guess(payload: &[u8]) -> Option<String> {
    let starts = |magic: &[u8]| payload.starts_with(magic);
    Some(match payload {
        [MAGIC, id @ ..] if id.len() >= 4 => {
            let id = u32::from_be_bytes([id[0], id[1], id[2], id[3]]);
            format!(
                "it starts like a record with the schema registry's id {id}: set input.format to \"avro\" or \"protobuf\", and input.schema_registry.url"
            )
        }
        _ if starts(b"\x1f\x8b") => compressed("gzip"),
        _ if starts(b"\x28\xb5\x2f\xfd") => compressed("zstd"),
        _ if starts(b"\x04\x22\x4d\x18") => compressed("lz4"),
        _ if starts(b"\xff\xfe") || starts(b"\xfe\xff") => {
            "it starts like UTF-16: let the producer write UTF-8".to_owned()
        }
        _ if starts(b"Obj\x01") => {
            "it starts like an Avro file: let the producer write one Avro record a message".to_owned()
        }
        _ if starts(b"\xc3\x01") => {
            "it starts like Avro's single-object encoding: set input.format = \"avro\" and input.schema_file"
                .to_owned()
        }
        [3, 5, ..] if payload.len() > 18 => {
            "it starts like a compressed record of AWS Glue's schema registry: for Avro set input.format = \"avro\" and input.schema_file, for JSON let the producer not compress"
                .to_owned()
        }
        [3, 0, ..] if payload.len() > 18 => {
            "it starts like a record of AWS Glue's schema registry: set input.format = \"avro\" and input.schema_file"
                .to_owned()
        }
        _ if starts(b"PAR1") => "it starts like a Parquet file: send one record a message".to_owned(),
        _ => return None,
    })
}

fn compressed(how: &str) -> String {
    format!(
        "it starts like {how}: residuald reads compressed topics (the producer's compression.type), but not values that are compressed before"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_found_behind_a_header_or_a_mark() {
        assert_eq!(unframed(b"{}"), b"{}");
        assert_eq!(unframed(b"\x00\x00\x00\x00\x07{}"), b"{}");
        assert_eq!(unframed(b"\xef\xbb\xbf{}"), b"{}");
        let glue = [&[3, 0][..], &[7; 16], b"{}"].concat();
        assert_eq!(unframed(&glue), b"{}");
        assert_eq!(unframed(b"\x00\x00\x00\x00\x00\x00\x00\x00\x07{}"), b"{}");
        for other in [
            &b""[..],
            b"\x00",
            b"\x00\x00\x00\x00\x07",
            b"\x00\x00\x00\x00\x07\x02",
        ] {
            assert_eq!(unframed(other), other);
        }
    }

    #[test]
    fn what_is_not_json_is_named() {
        for (payload, said) in [
            (&b"\x00\x00\x00\x00\x07\x02abc"[..], "id 7"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"\x28\xb5\x2f\xfd", "zstd"),
            (b"\xff\xfe{\x00", "UTF-16"),
            (b"Obj\x01", "Avro file"),
            (b"\xc3\x01abc", "single-object"),
            (b"\x03\x00aaaaaaaaaaaaaaaaa", "Glue"),
        ] {
            let guess = guess(payload).unwrap();
            assert!(guess.contains(said), "{guess}");
        }
        assert_eq!(guess(b"not json"), None);
        assert_eq!(guess(b""), None);
    }
}
