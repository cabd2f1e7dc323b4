//! Reads bytes from the front of a payload. Confluent's serialisers put a header before a record: a zero byte, the schema's id in
//! 4 bytes, and for Protobuf the message index in the schema's file.

use super::{RowError, headers, malformed};

const MAGIC: u8 = 0;
/// Maximum nesting depth of message types.
const MAX_NESTING: usize = 32;

/// The unread rest of a payload. Every read checks bounds, and none allocates.
#[derive(Debug, Clone, Copy)]
pub struct Cursor<'p>(pub &'p [u8]);

impl<'p> Cursor<'p> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn take(&mut self, count: usize) -> Result<&'p [u8], RowError> {
        match self.0.split_at_checked(count) {
            Some((taken, rest)) => {
                self.0 = rest;
                Ok(taken)
            }
            None => Err(malformed(format!(
                "truncated: {count} bytes expected, {} left",
                self.0.len()
            ))),
        }
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], RowError> {
        Ok(self.take(N)?.try_into().expect("`take` returns N bytes"))
    }

    /// Reads `length` bytes. The length itself was read from the payload.
    pub fn sized(&mut self, length: impl TryInto<usize>) -> Result<&'p [u8], RowError> {
        match length.try_into() {
            Ok(length) => self.take(length),
            Err(_) => Err(malformed("truncated: a length exceeds the payload")),
        }
    }

    /// Reads a varint: 7 bits per byte, the lowest first, at most 10 bytes.
    pub fn varint(&mut self) -> Result<u64, RowError> {
        let mut number = 0;
        for (i, &byte) in self.0.iter().enumerate().take(10) {
            if i == 9 && byte > 1 {
                break;
            }
            number |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                self.0 = &self.0[i + 1..];
                return Ok(number);
            }
        }
        Err(malformed(match self.0.len() {
            0..10 => "truncated in the middle of a number",
            _ => "a number has more than 64 bits",
        }))
    }

    /// Reads a signed number in zigzag encoding: 0, -1, 1, -2, …
    pub fn zigzag(&mut self) -> Result<i64, RowError> {
        let number = self.varint()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }
}

/// Reads the id of the schema from the header.
pub fn schema_id(cursor: &mut Cursor<'_>) -> Result<u32, RowError> {
    let start = cursor.0;
    match start {
        [MAGIC, 0, 0, 0, 0, ..] => {
            let guess = headers::guess(start).map_or(String::new(), |guess| format!("; {guess}"));
            Err(malformed(format!("0 is not the id of a schema{guess}")))
        }
        [MAGIC, a, b, c, d, rest @ ..] => {
            cursor.0 = rest;
            Ok(u32::from_be_bytes([*a, *b, *c, *d]))
        }
        [MAGIC, ..] => Err(malformed(format!(
            "the payload has {} bytes, but a schema registry's header has 5",
            start.len()
        ))),
        _ => {
            let first = start.first();
            let first = first.map_or("missing".into(), |b| format!("0x{b:02x}"));
            let guess = headers::guess(start).map_or(String::new(), |guess| format!("; {guess}"));
            Err(malformed(format!(
                "the payload has no schema registry header: its first byte is {first}, not 0{guess}"
            )))
        }
    }
}

/// Reads the message index of a Protobuf record: the index of the outermost message in its file, then of the message nested in
/// it, and so on.
pub fn message_index(cursor: &mut Cursor<'_>) -> Result<Vec<usize>, RowError> {
    let bad = || malformed("the header's message index is invalid");
    let depth = usize::try_from(cursor.zigzag()?).map_err(|_| bad())?;
    // The first message of the file has a short form. It is nearly always that one.
    if depth == 0 {
        return Ok(vec![0]);
    }
    if depth > MAX_NESTING {
        return Err(bad());
    }
    let mut index = Vec::with_capacity(depth);
    for _ in 0..depth {
        index.push(usize::try_from(cursor.zigzag()?).map_err(|_| bad())?);
    }
    Ok(index)
}

/// Returns whether a payload seems to have the header of a schema registry.
pub fn looks_framed(payload: &[u8]) -> bool {
    payload.len() > 5 && payload[0] == MAGIC && payload[1] == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn varints_are_bounded() {
        let read = |bytes: &[u8]| Cursor(bytes).varint().map_err(|e| e.detail);
        assert_eq!(read(&[0]), Ok(0));
        assert_eq!(read(&[0xac, 0x02]), Ok(300));
        let mut most = [0xff; 10];
        most[9] = 1;
        assert_eq!(read(&most), Ok(u64::MAX));
        most[9] = 2;
        assert!(read(&most).unwrap_err().contains("64 bits"));
        assert!(read(&[0x80; 11]).unwrap_err().contains("64 bits"));
        assert!(read(&[0x80, 0x80]).unwrap_err().contains("truncated"));
        assert!(read(&[]).unwrap_err().contains("truncated"));
        assert!(Cursor(&[1]).sized(u64::MAX).is_err());
        assert!(Cursor(&[1]).sized(-1_i64).is_err());
    }

    #[test]
    fn zigzag_numbers() {
        for (bytes, number) in [(&[0][..], 0), (&[1], -1), (&[2], 1), (&[0x7f], -64)] {
            assert_eq!(Cursor(bytes).zigzag(), Ok(number));
        }
    }

    #[test]
    fn the_header_is_zero_and_an_id() {
        let mut cursor = Cursor(&[0, 0, 0, 1, 2, 9]);
        assert_eq!(schema_id(&mut cursor), Ok(258));
        assert_eq!(cursor.0, [9]);
        for (payload, expected) in [
            (&b"{\"a\": 1}"[..], "0x7b"),
            (&[1, 0, 0, 0, 1, 2], "0x01"),
            (&[0, 0, 0], "has 3 bytes"),
            (&[], "missing"),
        ] {
            let error = schema_id(&mut Cursor(payload)).unwrap_err();
            assert!(error.detail.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_place_of_a_message_has_a_short_form() {
        let read = |bytes: &[u8]| message_index(&mut Cursor(bytes));
        assert_eq!(read(&[0]), Ok(vec![0]));
        assert_eq!(read(&[2, 0]), Ok(vec![0]));
        assert_eq!(read(&[4, 2, 6]), Ok(vec![1, 3]));
        for bad in [
            &[][..],
            &[1],
            &[2],
            &[2, 1],
            &[0xff, 0xff, 0xff, 0x7f],
            &[4, 0],
        ] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics(payload in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut cursor = Cursor(&payload);
            let _ = schema_id(&mut cursor).and_then(|_| message_index(&mut cursor));
        }
    }
}
