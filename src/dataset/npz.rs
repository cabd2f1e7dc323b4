//! Reads NPZ files: a matrix `X` [rows, columns] and optional labels `y` [rows]. The columns are named `x0`, `x1`, …

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use npyz::npz::file_name_from_array_name;
use npyz::{DType, NpyFile, Order, TypeChar};
use zip::ZipArchive;
use zip::result::ZipError;

use super::json_values::Changes;
use super::{ErrorKind, Numbered, Progress, Unit};
use crate::npy;

/// Maximum size of one array. Its memory is allocated before it is read.
const MOST_NUMBERS: u64 = 1 << 32;

/// Maximum ratio of the size of an array to its size in the archive. Deflate reaches 1032.
const MOST_TIMES: u64 = 1100;

pub struct Rows {
    values: Vec<f64>,
    labels: Option<Vec<f64>>,
    rows: usize,
    columns: usize,
    order: Order,
    next: usize,
    changes: Changes,
}

impl Rows {
    pub fn new(file: File) -> Result<Self, ErrorKind> {
        let mut archive = ZipArchive::new(BufReader::new(file)).map_err(io::Error::from)?;
        let (values, shape, order) = numbers(&mut archive, "X")?.ok_or_else(|| {
            wrong("it needs a matrix of numbers X, and labels y if there are any")
        })?;
        let [rows, columns] = shape[..] else {
            return Err(wrong("X must have two dimensions: rows and columns"));
        };
        let labels = match numbers(&mut archive, "y")? {
            Some((labels, shape, _)) if shape == [rows] => Some(labels),
            Some(_) => return Err(wrong("y must have one label for each row of X")),
            None => None,
        };
        let mut changes = Changes::default();
        values.iter().for_each(|number| changes.count(*number));
        Ok(Rows {
            changes,
            values,
            labels,
            rows: rows as usize,
            columns: columns as usize,
            order,
            next: 0,
        })
    }

    pub fn columns(&self) -> Vec<String> {
        let columns = (0..self.columns).map(|column| format!("x{column}"));
        columns
            .chain(self.labels.is_some().then(|| "y".to_owned()))
            .collect()
    }

    pub fn notes(&self) -> Vec<String> {
        self.changes.notes()
    }

    pub fn progress(&self) -> Progress {
        Progress {
            done: self.next as u64,
            total: self.rows as u64,
            unit: Unit::Rows,
        }
    }

    pub fn read_next(&mut self) -> Result<Option<Numbered>, ErrorKind> {
        if self.next == self.rows {
            return Ok(None);
        }
        let row = self.next;
        self.next += 1;
        let mut payload = b"{".to_vec();
        for column in 0..self.columns {
            let value = match self.order {
                Order::C => self.values[row * self.columns + column],
                Order::Fortran => self.values[column * self.rows + row],
            };
            field(&mut payload, &format!("x{column}"), value)?;
        }
        if let Some(labels) = &self.labels {
            field(&mut payload, "y", labels[row])?;
        }
        payload.push(b'}');
        Ok(Some((self.next as u64, payload)))
    }
}

/// Writes a number. Whole numbers have no fraction, so that labels are `0` and `1`.
fn field(payload: &mut Vec<u8>, name: &str, value: f64) -> Result<(), ErrorKind> {
    const EXACT: f64 = 9e15;
    if payload.len() > 1 {
        payload.push(b',');
    }
    payload.extend_from_slice(format!("\"{name}\":").as_bytes());
    let whole =
        value.fract() == 0.0 && value.abs() < EXACT && !(value == 0.0 && value.is_sign_negative());
    let written = match whole {
        true => serde_json::to_writer(payload, &(value as i64)),
        false => serde_json::to_writer(payload, &value),
    };
    Ok(written.map_err(io::Error::from)?)
}

type Numbers = (Vec<f64>, Vec<u64>, Order);

/// Returns the numbers of an array, its shape and its order. `None` if the archive has no such array.
fn numbers(
    archive: &mut ZipArchive<BufReader<File>>,
    name: &str,
) -> Result<Option<Numbers>, ErrorKind> {
    // The library panics on some damaged headers.
    let panicked = |_| Err(io::Error::other("damaged"));
    let read = AssertUnwindSafe(|| match archive.by_name(&file_name_from_array_name(name)) {
        Ok(mut array) => {
            let most = array.compressed_size().saturating_mul(MOST_TIMES);
            let head = npy::head(&mut array)?;
            as_f64(NpyFile::new(Cursor::new(head).chain(array))?, most).map(Some)
        }
        Err(ZipError::FileNotFound) => Ok(None),
        Err(error) => Err(error.into()),
    });
    Ok(catch_unwind(read).unwrap_or_else(panicked)?)
}

/// Returns the numbers of an array of at most `most` bytes.
fn as_f64<R: Read>(array: NpyFile<R>, most: u64) -> io::Result<Numbers> {
    let (shape, order) = (array.shape().to_vec(), array.order());
    let len = shape
        .iter()
        .try_fold(1_u64, |len, side| len.checked_mul(*side));
    if len.is_none_or(|len| len > MOST_NUMBERS) {
        return Err(io::Error::other(format!(
            "an array has more than {MOST_NUMBERS} numbers"
        )));
    }
    let DType::Plain(kind) = array.dtype() else {
        return Err(io::Error::other("an array holds records, not numbers"));
    };
    if len.is_some_and(|len| len.saturating_mul(kind.size_field()) > most) {
        return Err(io::Error::other("an array is shorter than its shape says"));
    }
    macro_rules! read {
        ($kind:ty) => {
            array
                .into_vec::<$kind>()?
                .into_iter()
                .map(|v| v as f64)
                .collect()
        };
    }
    let values = match (kind.type_char(), kind.size_field()) {
        (TypeChar::Float, 4) => read!(f32),
        (TypeChar::Float, 8) => array.into_vec::<f64>()?,
        (TypeChar::Int, 1) => read!(i8),
        (TypeChar::Int, 2) => read!(i16),
        (TypeChar::Int, 4) => read!(i32),
        (TypeChar::Int, 8) => read!(i64),
        (TypeChar::Uint, 1) => read!(u8),
        (TypeChar::Uint, 2) => read!(u16),
        (TypeChar::Uint, 4) => read!(u32),
        (TypeChar::Uint, 8) => read!(u64),
        (TypeChar::Bool, _) => array
            .into_vec::<bool>()?
            .into_iter()
            .map(|v| f64::from(u8::from(v)))
            .collect(),
        _ => {
            let message = format!("an array holds {}, which are not numbers", kind);
            return Err(io::Error::other(message));
        }
    };
    Ok((values, shape, order))
}

fn wrong(reason: &str) -> ErrorKind {
    ErrorKind::Columns(reason.to_owned())
}
