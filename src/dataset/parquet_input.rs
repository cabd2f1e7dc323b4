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

use super::parquet_header;

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
        if !self.is_checked {
            let start = self.file.stream_position()?;
            parquet_header::check(BufReader::new(&self.file))?;
            self.file.seek(SeekFrom::Start(start))?;
            self.is_checked = true;
        }
        match self.file.read(buffer)? {
            0 if !buffer.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            read => Ok(read),
        }
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
