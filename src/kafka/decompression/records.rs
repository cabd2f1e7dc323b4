//! The records of a batch in Kafka's format, version 2: counted without keeping them, and one that stands for all.

use std::io::{self, BufRead, BufReader, Error, Read};

/// What a batch holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    pub bytes: u64,
    pub records: u64,
    /// Relative to the batch.
    pub first_offset: i64,
    pub last_offset: i64,
    last_timestamp: i64,
}

/// Reads a batch to its end.
///
/// # Errors
/// What is read are no records.
pub fn walk(batch: impl Read) -> io::Result<Seen> {
    let mut batch = Counted {
        inner: BufReader::new(batch),
        bytes: 0,
    };
    let mut seen = Seen::default();
    while !batch.inner.fill_buf()?.is_empty() {
        let length = u64::try_from(varint(&mut batch)?).map_err(Error::other)?;
        let begin = batch.bytes;
        batch.byte()?; // attributes
        seen.last_timestamp = varint(&mut batch)?;
        seen.last_offset = varint(&mut batch)?;
        if seen.records == 0 {
            seen.first_offset = seen.last_offset;
        }
        let rest = length.checked_sub(batch.bytes - begin);
        batch.skip(rest.ok_or_else(|| Error::other("a record that is too short"))?)?;
        seen.records += 1;
    }
    seen.bytes = batch.bytes;
    if seen.records == 0 || seen.last_offset < seen.first_offset {
        return Err(Error::other("no records"));
    }
    Ok(seen)
}

/// A record without key and value with one header, where the last of `seen` stands.
pub fn stand_in(seen: &Seen, header: &str, value: &str) -> Vec<u8> {
    let mut body = vec![0]; // attributes
    put(&mut body, seen.last_timestamp);
    put(&mut body, seen.last_offset);
    put(&mut body, -1); // no key
    put(&mut body, -1); // no value
    put(&mut body, 1);
    for text in [header, value] {
        put(&mut body, text.len() as i64);
        body.extend_from_slice(text.as_bytes());
    }
    let mut record = Vec::new();
    put(&mut record, body.len() as i64);
    record.extend(body);
    record
}

struct Counted<R> {
    inner: BufReader<R>,
    bytes: u64,
}

impl<R: Read> Counted<R> {
    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.inner.read_exact(&mut byte)?;
        self.bytes += 1;
        Ok(byte[0])
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let mut left = bytes;
        while left > 0 {
            let there = self.inner.fill_buf()?.len() as u64;
            if there == 0 {
                return Err(Error::other("a record that is cut off"));
            }
            let some = there.min(left);
            self.inner.consume(some as usize);
            left -= some;
        }
        self.bytes += bytes;
        Ok(())
    }
}

/// A number in zigzag, seven bits a byte.
fn varint<R: Read>(from: &mut Counted<R>) -> io::Result<i64> {
    let mut number: u64 = 0;
    for shift in (0..64).step_by(7) {
        let byte = from.byte()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok((number >> 1) as i64 ^ -((number & 1) as i64));
        }
    }
    Err(Error::other("a number that is too long"))
}

fn put(into: &mut Vec<u8>, number: i64) {
    let mut rest = ((number << 1) ^ (number >> 63)) as u64;
    while rest >= 0x80 {
        into.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    into.push(rest as u8);
}
