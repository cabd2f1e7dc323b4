//! The header of NumPy files, checked before a library parses it.
//!
//! npyz 0.9 parses the header as a Python literal, in time that is exponential in the number of nested brackets: a file of 200 bytes
//! takes hours.

use std::io::{self, Read};

/// Maximum length of a header. NumPy pads a header of one array to 128 bytes.
const LONGEST: usize = 1 << 16;

/// Reads the magic bytes and the header of an array of plain numbers. What follows in `input` is its data.
///
/// # Errors
/// The input is not a NumPy file, or its header does not describe an array of plain numbers.
pub fn head(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let wrong = |problem: &str| io::Error::new(io::ErrorKind::InvalidData, problem);
    let mut head = vec![0; 8];
    input.read_exact(&mut head)?;
    if !head.starts_with(b"\x93NUMPY") {
        return Err(wrong("not a NumPy file"));
    }
    // Version 1 has two bytes for the length, later ones four.
    let mut length = [0; 4];
    let bytes = if head[6] == 1 { 2 } else { 4 };
    input.read_exact(&mut length[..bytes])?;
    head.extend_from_slice(&length[..bytes]);
    let length = u32::from_le_bytes(length) as usize;
    if length > LONGEST {
        return Err(wrong("its header is too long"));
    }
    let start = head.len();
    head.resize(start + length, 0);
    input.read_exact(&mut head[start..])?;
    let count = |byte: u8| head[start..].iter().filter(|b| **b == byte).count();
    // The header is {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}.
    if count(b'(') > 1 || count(b'{') > 1 || count(b'[') > 0 {
        return Err(wrong(
            "its header does not describe an array of plain numbers",
        ));
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str) -> Vec<u8> {
        let length = (header.len() as u16).to_le_bytes();
        [
            b"\x93NUMPY\x01\x00",
            &length[..],
            header.as_bytes(),
            b"data",
        ]
        .concat()
    }

    #[test]
    fn a_plain_header_is_read_and_the_data_follows() {
        let bytes = file("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n");
        let mut input = &bytes[..];
        let head = head(&mut input).unwrap();
        assert_eq!(input, b"data");
        let parsed = npyz::NpyHeader::from_reader(&head[..]).unwrap();
        assert_eq!(parsed.shape(), [2, 3]);
    }

    #[test]
    fn nested_brackets_and_other_files_are_refused() {
        let nested = format!("{{'shape': {}}}", "(3,".repeat(40));
        for bytes in [
            file(&nested),
            file("{'descr': [('a', '<f4')]}"),
            b"PK\x03\x04....".to_vec(),
            vec![],
            file("")[..9].to_vec(),
        ] {
            assert!(head(&mut &bytes[..]).is_err());
        }
    }
}
