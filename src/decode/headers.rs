//! Headers that other registries and encodings put before a record. With a schema at hand, the record behind them is read. Otherwise
//! the error names them, and what to do.
//!
//! | header | bytes |
//! | --- | --- |
//! | AWS Glue | 3, the compression (0 none, 5 zlib), a schema version's UUID |
//! | Apicurio | 0, a global id in 8 bytes |
//! | Avro's single-object encoding | 0xc3 0x01, the schema's fingerprint (CRC-64-AVRO) in 8 bytes |

use std::borrow::Cow;
use std::io::Read;

use flate2::read::ZlibDecoder;

use super::{RowError, malformed};

const GLUE: usize = 18;
const GLUE_PLAIN: u8 = 0;
const GLUE_ZLIB: u8 = 5;
const APICURIO: usize = 9;
const SINGLE_OBJECT: usize = 10;
/// Maximum size of a record that Glue's serialiser has compressed, in bytes.
const MOST_INFLATED: u64 = 16 << 20;

/// A header and the record behind it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Foreign<'p> {
    Glue {
        compression: u8,
        record: &'p [u8],
    },
    Apicurio {
        id: u64,
        record: &'p [u8],
    },
    SingleObject {
        fingerprint: [u8; 8],
        record: &'p [u8],
    },
}

/// Returns the header that a payload seems to have. A record without any header may look like it.
pub fn foreign(payload: &[u8]) -> Option<Foreign<'_>> {
    match payload {
        [3, compression @ (GLUE_PLAIN | GLUE_ZLIB), ..] if payload.len() > GLUE => {
            Some(Foreign::Glue {
                compression: *compression,
                record: &payload[GLUE..],
            })
        }
        // Confluent's ids begin at 1.
        [0, 0, 0, 0, 0, low @ ..] if payload.len() > APICURIO => Some(Foreign::Apicurio {
            id: u64::from(u32::from_be_bytes(low[..4].try_into().ok()?)),
            record: &payload[APICURIO..],
        }),
        [0xc3, 0x01, rest @ ..] if payload.len() >= SINGLE_OBJECT => Some(Foreign::SingleObject {
            fingerprint: rest[..8].try_into().ok()?,
            record: &payload[SINGLE_OBJECT..],
        }),
        _ => None,
    }
}

impl<'p> Foreign<'p> {
    /// Returns the record behind the header. `known` is the fingerprint of the schema at hand.
    ///
    /// # Errors
    /// The record is compressed and cannot be decompressed, or it was written with another schema.
    pub fn record(self, known: Option<[u8; 8]>) -> Result<Cow<'p, [u8]>, RowError> {
        match self {
            Foreign::Glue {
                compression: GLUE_ZLIB,
                record,
            } => {
                let mut inflated = Vec::new();
                let mut decoder = ZlibDecoder::new(record).take(MOST_INFLATED + 1);
                decoder
                    .read_to_end(&mut inflated)
                    .map_err(|e| malformed(format!("AWS Glue's record is not zlib: {e}")))?;
                if inflated.len() as u64 > MOST_INFLATED {
                    return Err(malformed(format!(
                        "AWS Glue's record takes more than {MOST_INFLATED} bytes once decompressed"
                    )));
                }
                Ok(Cow::Owned(inflated))
            }
            Foreign::SingleObject {
                fingerprint,
                record,
            } => match known {
                Some(known) if known != fingerprint => Err(malformed(format!(
                    "the record is in Avro's single-object encoding and was written with the schema of fingerprint {}, but input.schema_file has {}",
                    hex(fingerprint),
                    hex(known)
                ))),
                _ => Ok(Cow::Borrowed(record)),
            },
            Foreign::Glue { record, .. } | Foreign::Apicurio { record, .. } => {
                Ok(Cow::Borrowed(record))
            }
        }
    }
}

/// Returns what a payload without the header of Confluent's registry seems to be, and what to do about it.
pub fn guess(payload: &[u8]) -> Option<String> {
    let file = "set input.schema_file to its schema instead of input.schema_registry";
    Some(match (foreign(payload), payload) {
        (Some(Foreign::Glue { .. }), _) => {
            format!("it starts like a record of AWS Glue's schema registry: {file}")
        }
        (Some(Foreign::SingleObject { fingerprint, .. }), _) => format!(
            "it starts like Avro's single-object encoding with the schema of fingerprint {}: {file}",
            hex(fingerprint)
        ),
        (Some(Foreign::Apicurio { id, .. }), _) => format!(
            "it starts like Apicurio's header with the global id {id} in 8 bytes: let the producer use the Legacy4ByteIdHandler and contentId, or {file}"
        ),
        (None, [b'O', b'b', b'j', 1, ..]) => {
            "it starts like an Avro file: let the producer write one Avro record a message".to_owned()
        }
        (None, [1, ..]) if payload.len() > 17 => {
            "it may start with the schema's GUID, as Confluent's serialisers can write it: let the producer write the schema's id".to_owned()
        }
        (None, [b'{' | b'[', ..]) => "it starts like JSON: set input.format = \"json\"".to_owned(),
        _ => return None,
    })
}

/// A fingerprint as a number, as tools print it.
fn hex(fingerprint: [u8; 8]) -> String {
    format!("{:016x}", u64::from_le_bytes(fingerprint))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;

    use super::*;

    #[test]
    fn headers_are_recognised() {
        let glue = [&[3, 0][..], &[7; 16], b"record"].concat();
        let apicurio = [&[0, 0, 0, 0, 0, 0, 0, 1, 2][..], b"record"].concat();
        let single = [&[0xc3, 1][..], &[9; 8], b"record"].concat();
        for payload in [&glue, &apicurio, &single] {
            let record = foreign(payload).unwrap().record(None).unwrap();
            assert_eq!(&*record, b"record");
        }
        assert_eq!(
            foreign(&apicurio),
            Some(Foreign::Apicurio {
                id: 258,
                record: b"record"
            })
        );
        assert!(foreign(&single).unwrap().record(Some([9; 8])).is_ok());
        let other = foreign(&single).unwrap().record(Some([8; 8]));
        let said = other.unwrap_err().to_string();
        assert!(
            said.contains("0909090909090909, but input.schema_file has 0808080808080808"),
            "{said}"
        );
        for payload in [
            &b""[..],
            &[3],
            &[3, 0, 1],
            &[0, 0, 0, 0, 7, 1, 2, 3, 4, 5],
            &[0xc3, 1],
        ] {
            assert_eq!(foreign(payload), None, "{payload:?}");
        }
    }

    #[test]
    fn glues_compression_is_bounded() {
        let zlib = |record: &[u8]| {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(record).unwrap();
            [&[3, 5][..], &[7; 16], &encoder.finish().unwrap()].concat()
        };
        let open = |payload: &[u8]| foreign(payload).unwrap().record(None).map(Cow::into_owned);
        assert_eq!(open(&zlib(b"record")).unwrap(), b"record");
        let bomb = open(&zlib(&vec![0; (16 << 20) + 1])).unwrap_err();
        assert!(
            bomb.to_string().contains("more than 16777216 bytes"),
            "{bomb}"
        );
        let broken = open(&[&[3, 5][..], &[7; 20]].concat()).unwrap_err();
        assert!(broken.to_string().contains("is not zlib"), "{broken}");
    }

    #[test]
    fn what_has_another_header_is_named() {
        for (payload, said) in [
            (
                &[&[3, 0][..], &[7; 20]].concat()[..],
                "AWS Glue's schema registry: set input.schema_file",
            ),
            (
                &[0xc3, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0],
                "fingerprint 0807060504030201: set input.schema_file",
            ),
            (&[0, 0, 0, 0, 0, 0, 0, 0, 9, 1], "global id 9"),
            (b"Obj\x01abc", "Avro file"),
            (&[1; 20], "GUID"),
            (b"{\"a\": 1}", "input.format = \"json\""),
        ] {
            let guess = guess(payload).unwrap();
            assert!(guess.contains(said), "{guess}");
        }
        assert_eq!(guess(&[5, 6]), None);
    }
}
