//! The records of a batch in Kafka's format, version 2. Counts the records without keeping them, and writes a stand-in
//! record.

use std::io::{self, BufRead, BufReader, Error, Read};

/// The number of records in a batch, and their range of offsets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    pub bytes: u64,
    pub records: u64,
    /// Relative to the base offset of the batch, like `last_offset`.
    pub first_offset: i64,
    pub last_offset: i64,
    last_timestamp: i64,
}

/// Reads a batch to its end and summarises it.
///
/// # Errors
/// When the bytes are not records.
pub fn walk(batch: impl Read) -> io::Result<Summary> {
    let mut batch = Counted {
        inner: BufReader::new(batch),
        bytes: 0,
    };
    let mut summary = Summary::default();
    while !batch.inner.fill_buf()?.is_empty() {
        let length = u64::try_from(varint(&mut batch)?).map_err(Error::other)?;
        let begin = batch.bytes;
        batch.byte()?; // attributes
        summary.last_timestamp = varint(&mut batch)?;
        summary.last_offset = varint(&mut batch)?;
        if summary.records == 0 {
            summary.first_offset = summary.last_offset;
        }
        let rest = length.checked_sub(batch.bytes - begin);
        batch.skip(rest.ok_or_else(|| Error::other("a record is too short"))?)?;
        summary.records += 1;
    }
    summary.bytes = batch.bytes;
    if summary.records == 0 || summary.last_offset < summary.first_offset {
        return Err(Error::other("a batch holds no records"));
    }
    Ok(summary)
}

/// Builds a record with one header and without key and value, at the offset of the last record of the batch.
pub fn stand_in(summary: &Summary, header: &str, value: &str) -> Vec<u8> {
    let mut body = vec![0]; // attributes
    put(&mut body, summary.last_timestamp);
    put(&mut body, summary.last_offset);
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
                return Err(Error::other("a record is cut off"));
            }
            let some = there.min(left);
            self.inner.consume(some as usize);
            left -= some;
        }
        self.bytes += bytes;
        Ok(())
    }
}

/// Reads a zigzag-encoded number with seven bits per byte.
fn varint<R: Read>(from: &mut Counted<R>) -> io::Result<i64> {
    let mut number: u64 = 0;
    for shift in (0..64).step_by(7) {
        let byte = from.byte()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok((number >> 1) as i64 ^ -((number & 1) as i64));
        }
    }
    Err(Error::other("a number in a record is too long"))
}

fn put(into: &mut Vec<u8>, number: i64) {
    let mut rest = ((number << 1) ^ (number >> 63)) as u64;
    while rest >= 0x80 {
        into.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    into.push(rest as u8);
}
