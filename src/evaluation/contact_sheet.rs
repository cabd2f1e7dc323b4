//! Writes scored images to one HTML page: the original, the model's reconstruction, and a heatmap of their differences.
//!
//! The page contains its images as `data:` URIs and has no script, so it can be mailed or archived and needs no network.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use askama::Template;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;

use crate::image::Region;

/// A scored image.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    pub name: &'a str,
    /// Width of the original in pixels. `regions` refer to the original. The displayed image may be smaller and is stretched to
    /// this size.
    pub width: usize,
    /// Height of the original in pixels.
    pub height: usize,
    pub score: f32,
    pub p_value: f64,
    /// Score divided by threshold. Above 1 is an anomaly.
    pub grade: f32,
    /// Whether the image is labelled as an anomaly. `None` if it has no label.
    pub label: Option<bool>,
    pub class: Option<&'a str>,
    pub original: Encoded<'a>,
    pub reconstruction: Encoded<'a>,
    /// In grayscale, with black for no heat.
    pub heatmap: Encoded<'a>,
    /// Regions in descending order of their share.
    pub regions: &'a [Region],
}

/// An image in a format that browsers can display.
#[derive(Debug, Clone, Copy)]
pub struct Encoded<'a> {
    /// The media type, for example `image/png` or `image/jpeg`.
    pub content_type: &'a str,
    pub bytes: &'a [u8],
}

/// A page that is being built. Entries wait in an unnamed temporary file beside it, because their order is known only at the end.
/// They take 24 bytes of memory each.
pub struct ContactSheet {
    page: BufWriter<File>,
    waiting: BufWriter<File>,
    /// Bytes in `waiting`.
    written: u64,
    /// Grade, start and end of each entry in `waiting`.
    entries: Vec<(f32, u64, u64)>,
    refused: Vec<(String, String)>,
}

impl ContactSheet {
    /// Creates or truncates the file at `path`.
    ///
    /// # Errors
    /// The page or a temporary file beside it cannot be created.
    pub fn create(path: &Path) -> io::Result<ContactSheet> {
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        Ok(ContactSheet {
            page: BufWriter::new(File::create(path)?),
            waiting: BufWriter::new(tempfile::tempfile_in(folder.unwrap_or(Path::new(".")))?),
            written: 0,
            entries: Vec::new(),
            refused: Vec::new(),
        })
    }

    /// Adds an image.
    ///
    /// # Errors
    /// The temporary file cannot be written.
    pub fn add(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let start = self.written;
        let number = self.entries.len();
        let mut out = Counted {
            inner: &mut self.waiting,
            written: &mut self.written,
        };
        Item { entry, number }.write_into(&mut out)?;
        self.entries.push((entry.grade, start, self.written));
        Ok(())
    }

    /// Adds an image that could not be scored, with the reason.
    pub fn add_refused(&mut self, name: &str, reason: &str) {
        self.refused.push((name.into(), reason.into()));
    }

    /// Writes the page: title, `summary` as names and values, images by descending grade (equal grades in the order they
    /// were added), and images that could not be scored.
    ///
    /// # Errors
    /// The page cannot be written or the temporary file cannot be read.
    pub fn finish(mut self, title: &str, summary: &[(String, String)]) -> io::Result<()> {
        Head { title, summary }.write_into(&mut self.page)?;
        let mut waiting = self.waiting.into_inner()?;
        self.entries.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (_, start, end) in self.entries {
            waiting.seek(SeekFrom::Start(start))?;
            io::copy(&mut (&mut waiting).take(end - start), &mut self.page)?;
        }
        let refused = &self.refused;
        Foot { refused }.write_into(&mut self.page)?;
        self.page.into_inner()?.sync_data()
    }
}

#[derive(Template)]
#[template(path = "contact_sheet/head.html")]
struct Head<'a> {
    title: &'a str,
    summary: &'a [(String, String)],
}

impl Head<'_> {
    const STYLE: &'static str = include_str!("contact_sheet.css");
}

#[derive(Template)]
#[template(path = "contact_sheet/entry.html")]
struct Item<'a> {
    entry: &'a Entry<'a>,
    /// Makes element ids unique on the page.
    number: usize,
}

#[derive(Template)]
#[template(path = "contact_sheet/foot.html")]
struct Foot<'a> {
    refused: &'a [(String, String)],
}

impl Entry<'_> {
    fn flagged(&self) -> bool {
        self.grade > 1.0
    }

    /// Returns the region's share of the heat in percent.
    fn percent(region: &Region) -> String {
        format!("{:.0} %", region.share * 100.0)
    }

    fn wrong(&self) -> bool {
        self.label.is_some_and(|label| label != self.flagged())
    }

    /// Returns the verdict, and whether the label agrees with it.
    fn verdict(&self) -> &'static str {
        match (self.flagged(), self.label) {
            (true, None) => "anomaly",
            (false, None) => "no anomaly",
            (true, Some(true)) => "anomaly, as labelled",
            (true, Some(false)) => "false alarm: labelled normal",
            (false, Some(true)) => "missed: labelled an anomaly",
            (false, Some(false)) => "no anomaly, as labelled",
        }
    }
}

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = Base64Display::new(self.bytes, &STANDARD);
        write!(f, "data:{};base64,{bytes}", self.content_type)
    }
}

struct Counted<'a> {
    inner: &'a mut BufWriter<File>,
    written: &'a mut u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        *self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests;
