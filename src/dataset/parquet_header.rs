//! The header of a Parquet page, read only to check how long the page claims to be.
//!
//! It is a struct in [Thrift's compact protocol](https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md).
//! The parquet crate (60.1) reads it as well, but allocates memory for the claim at once.

use std::io::{self, Read};

/// The longest page in bytes, uncompressed. Most writers end a page after a megabyte, and fastparquet after 500.
const MAX_PAGE: i64 = 512 << 20;
/// The number of the field `uncompressed_page_size`.
const UNCOMPRESSED_SIZE: i64 = 2;
/// The type of a signed number of up to 32 bits.
const I32: u8 = 5;
/// Maximum nesting depth of structs, lists and maps.
const MAX_NESTING: usize = 8;

/// Fails if the page claims to be longer than [`MAX_PAGE`], or its header is damaged.
pub fn check(mut header: impl Read) -> io::Result<()> {
    let header = &mut header;
    let mut field = 0;
    while let Some(kind) = next_field(header, &mut field)? {
        if field != UNCOMPRESSED_SIZE {
            skip(header, kind, MAX_NESTING)?;
            continue;
        }
        let length = zigzag(header)?;
        if kind != I32 || !(0..=MAX_PAGE).contains(&length) {
            return Err(io::Error::other(format!(
                "a page claims to take {length} bytes uncompressed, and at most {MAX_PAGE} are read. Write the file again with smaller pages"
            )));
        }
    }
    Ok(())
}

/// Reads the start of a field -> its type, or `None` at the end of the struct. `field` is the number of the last field, and then of this.
fn next_field(input: &mut impl Read, field: &mut i64) -> io::Result<Option<u8>> {
    let start = byte(input)?;
    if start == 0 {
        return Ok(None);
    }
    *field = match start >> 4 {
        0 => zigzag(input)?,
        step => field.saturating_add(step.into()),
    };
    Ok(Some(start & 15))
}

/// Skips a value of a type.
fn skip(input: &mut impl Read, kind: u8, nesting: usize) -> io::Result<()> {
    let Some(inner) = nesting.checked_sub(1) else {
        return Err(damaged());
    };
    match kind {
        // Booleans in a struct have their value in the type.
        1 | 2 => {}
        3 => skip_bytes(input, 1)?,
        4..=6 => drop(varint(input)?),
        7 => skip_bytes(input, 8)?,
        8 => {
            let length = varint(input)?;
            skip_bytes(input, length)?;
        }
        9 | 10 => {
            let start = byte(input)?;
            let count = match start >> 4 {
                15 => varint(input)?,
                count => count.into(),
            };
            for _ in 0..count {
                skip_item(input, start & 15, inner)?;
            }
        }
        11 => {
            let count = varint(input)?;
            let kinds = if count > 0 { byte(input)? } else { 0 };
            for _ in 0..count {
                skip_item(input, kinds >> 4, inner)?;
                skip_item(input, kinds & 15, inner)?;
            }
        }
        12 => {
            let mut field = 0;
            while let Some(kind) = next_field(input, &mut field)? {
                skip(input, kind, inner)?;
            }
        }
        _ => return Err(damaged()),
    }
    Ok(())
}

/// Skips an item of a list or map, where a boolean is a byte.
fn skip_item(input: &mut impl Read, kind: u8, nesting: usize) -> io::Result<()> {
    skip(input, if kind <= 2 { 3 } else { kind }, nesting)
}

fn skip_bytes(input: &mut impl Read, count: u64) -> io::Result<()> {
    match io::copy(&mut input.take(count), &mut io::sink())? == count {
        true => Ok(()),
        false => Err(damaged()),
    }
}

fn byte(input: &mut impl Read) -> io::Result<u8> {
    let mut byte = [0];
    input.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// Reads 7 bits per byte, the lowest first.
fn varint(input: &mut impl Read) -> io::Result<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = byte(input)?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(damaged())
}

/// Reads a signed number: 0, -1, 1, -2, …
fn zigzag(input: &mut impl Read) -> io::Result<i64> {
    let number = varint(input)?;
    Ok((number >> 1) as i64 ^ -((number & 1) as i64))
}

fn damaged() -> io::Error {
    io::Error::other("the header of a page is damaged")
}
