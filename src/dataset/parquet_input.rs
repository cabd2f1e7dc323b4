//! Checks that the parquet crate (60.1) leaves out. A damaged file of a kilobyte could otherwise take minutes or gigabytes.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;

use bytes::Bytes;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{ChunkReader, Length, RowGroupReader};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::record::reader::RowIter;

use crate::decode::Cursor;

/// The longest page in bytes, uncompressed. Most writers end a page after a megabyte, and fastparquet after 500.
const MAX_PAGE: i64 = 512 << 20;

/// The pages of a file. The file's end is an error: pages never reach it, because the footer is there. The crate skips over a damaged
/// page header without noticing the end, so a list that claims two billion items would be skipped item by item.
pub struct Pages(pub File);

/// Reads until the end, which is an error. What is read first is the header of a page.
pub struct FromHeader {
    file: File,
    is_checked: bool,
}

impl Read for FromHeader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        if read == 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !self.is_checked {
            check_size(&buffer[..read])?;
            self.is_checked = true;
        }
        Ok(read)
    }
}

/// Fails if a page claims to be longer than `MAX_PAGE`. The crate allocates memory for as many bytes before it decompresses the page. A
/// forged header that repeats the field gets past this check, and the crate's own limit of 2 GiB remains.
///
/// A header starts with the page's type and its length, each an integer with the number of its field
/// ([Thrift's compact protocol](https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md)).
fn check_size(header: &[u8]) -> io::Result<()> {
    const NEXT_FIELD_IS_I32: &[u8] = &[0x15];
    let damaged = || io::Error::other("a page's header is damaged");
    let mut header = Cursor(header);
    let mut length = 0;
    for _ in 0..2 {
        if header.take(1).ok() != Some(NEXT_FIELD_IS_I32) {
            return Err(damaged());
        }
        length = header.zigzag().map_err(|_| damaged())?;
    }
    match length {
        0..=MAX_PAGE => Ok(()),
        // The crate would take the lowest 32 bits.
        ..0 | 0x8000_0000.. => Err(damaged()),
        _ => Err(io::Error::other(format!(
            "a page takes {length} bytes uncompressed, and at most {MAX_PAGE} are read. Write the file again with smaller pages"
        ))),
    }
}

impl Length for Pages {
    fn len(&self) -> u64 {
        self.0.len()
    }
}

impl ChunkReader for Pages {
    type T = BufReader<FromHeader>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        let mut file = self.0.try_clone()?;
        file.seek(SeekFrom::Start(start))?;
        Ok(BufReader::new(FromHeader {
            file,
            is_checked: false,
        }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        self.0.get_bytes(start, length)
    }
}

/// A row group whose pages are checked.
pub struct CheckedGroup<'g> {
    pub group: Box<dyn RowGroupReader + 'g>,
    pub pages: Arc<Pages>,
}

impl RowGroupReader for CheckedGroup<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.group.metadata()
    }

    fn num_columns(&self) -> usize {
        self.group.num_columns()
    }

    fn get_column_page_reader(&self, column: usize) -> Result<Box<dyn PageReader>> {
        let metadata = self.group.metadata();
        let rows = usize::try_from(metadata.num_rows())?;
        let pages = self.pages.clone();
        let pages = SerializedPageReader::new(pages, metadata.column(column), rows, None)?;
        Ok(Box::new(CheckedPages(pages)))
    }

    fn get_column_bloom_filter(&self, column: usize) -> Option<&parquet::bloom_filter::Sbbf> {
        self.group.get_column_bloom_filter(column)
    }

    fn get_row_iter(
        &self,
        projection: Option<parquet::schema::types::Type>,
    ) -> Result<RowIter<'_>> {
        RowIter::from_row_group(projection, self)
    }
}

/// Dictionaries that hold as many values as they claim. The crate allocates memory for the values before it reads them.
struct CheckedPages(SerializedPageReader<Pages>);

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.0.get_next_page()?;
        // Each value of a dictionary takes at least one byte.
        if let Some(Page::DictionaryPage {
            buf, num_values, ..
        }) = &page
            && *num_values as usize > buf.len()
        {
            let problem = format!(
                "a dictionary claims {num_values} values in {} bytes",
                buf.len()
            );
            return Err(ParquetError::General(problem));
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.0.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.0.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.0.at_record_boundary()
    }
}

impl Iterator for CheckedPages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}
