//! The features by path: a tree that a format walks along with a record, filling the row on the way.

use rustc_hash::FxHashMap;

use super::segment::{Names, SegmentReader};
use super::value::{Column, Value};
use super::{Reason, RowError};
use crate::bundle::{Feature, Missing, SegmentBy, SegmentId};

/// Marks a column that is not filled yet: a NaN that no null produces.
pub const UNSET: u32 = 0x7fc0_dead;

/// The features of a bundle, ready to be found in records.
#[derive(Debug)]
pub struct Paths {
    pub root: Node,
    /// In the order of the row, then the segment's column, if a field gives the segment. That one is not part of the row.
    pub columns: Vec<Column>,
    features: Vec<Feature>,
}

/// The fields that features need at one level of a record.
#[derive(Debug, Default)]
pub struct Node {
    pub keys: Vec<(String, Child)>,
    index: FxHashMap<String, usize>,
    /// Whether a feature is below it, not only the segment.
    pub has_features: bool,
}

#[derive(Debug)]
pub enum Child {
    Node(Node),
    /// Columns; several when parts of one timestamp are features.
    Leaf(Vec<usize>),
}

impl Paths {
    /// `features` as in the manifest, whose checks guarantee that no path is both a value and a parent; those of the calibration
    /// that this holds for the path of `segment` as well.
    pub fn new(features: &[Feature], segment: Option<SegmentReader>) -> Paths {
        let mut root = Node::default();
        for (column, feature) in features.iter().enumerate() {
            root.insert(&feature.path, column, true);
        }
        let mut columns: Vec<Column> = features.iter().map(Column::new).collect();
        if let Some(SegmentReader {
            by: SegmentBy::Field(path),
            names,
        }) = segment
        {
            root.insert(&path, columns.len(), false);
            columns.push(Column::of_segment(path, names));
        }
        Paths {
            root,
            columns,
            features: features.to_vec(),
        }
    }

    /// The names of the segments, if a field gives them.
    pub fn segments(&self) -> Option<Names> {
        self.columns.last()?.segments()
    }

    /// Appends a row to `rows` that `fill` fills, and applies the rule for missing values; leaves `rows` as it was on an error. Gives the
    /// record's segment.
    pub fn append(
        &self,
        rows: &mut Vec<f32>,
        fill: impl FnOnce(&mut [f32]) -> Result<(), RowError>,
    ) -> Result<Option<SegmentId>, RowError> {
        let start = rows.len();
        rows.resize(start + self.columns.len(), f32::from_bits(UNSET));
        let row = &mut rows[start..];
        let result = fill(row).and_then(|()| self.settle_missing(row));
        let end = start + self.features.len();
        let segment = rows.get(end).filter(|number| **number >= 0.0);
        let segment = segment.map(|number| SegmentId(*number as u32));
        rows.truncate(if result.is_ok() { end } else { start });
        result.map(|()| segment)
    }

    fn settle_missing(&self, row: &mut [f32]) -> Result<(), RowError> {
        for (value, feature) in row.iter_mut().zip(&self.features) {
            if value.is_nan() {
                if feature.missing == Missing::Reject {
                    return Err(RowError {
                        reason: Reason::Missing,
                        detail: format!(
                            "field `{}`: required by feature `{}`, absent or null",
                            feature.path, feature.name
                        )
                        .into(),
                    });
                }
                *value = f32::NAN;
            }
        }
        Ok(())
    }

    /// Writes a value, or its absence, into columns of `row`, replacing what is there. `scratch` saves an allocation.
    pub fn store(
        &self,
        row: &mut [f32],
        columns: &[usize],
        value: Option<Value<'_>>,
        scratch: &mut String,
    ) -> Result<(), RowError> {
        for &column in columns {
            row[column] = match value {
                Some(value) => self.columns[column].read(value, scratch)?,
                None => f32::NAN,
            };
        }
        Ok(())
    }
}

impl Node {
    fn insert(&mut self, path: &str, column: usize, is_feature: bool) {
        self.has_features |= is_feature;
        let (key, rest) = match path.split_once('.') {
            Some((key, rest)) => (key, Some(rest)),
            None => (path, None),
        };
        let next = self.keys.len();
        let at = *self.index.entry(key.to_owned()).or_insert(next);
        if at == next {
            let child = if rest.is_some() {
                Child::Node(Node::default())
            } else {
                Child::Leaf(Vec::new())
            };
            self.keys.push((key.to_owned(), child));
        }
        match (&mut self.keys[at].1, rest) {
            (Child::Node(node), Some(rest)) => node.insert(rest, column, is_feature),
            (Child::Leaf(columns), None) => columns.push(column),
            _ => unreachable!("the manifest's checks refuse a path that is both value and parent"),
        }
    }

    /// What `key` leads to, and its place among the keys. Tries the place `expected` first: producers keep their keys in order. A key
    /// with dots leads where objects in objects would: `{"a.b": 1}` is read as `{"a": {"b": 1}}`.
    pub fn find(&self, key: &str, expected: usize) -> Option<(&Child, usize)> {
        if let Some((next, child)) = self.keys.get(expected)
            && next == key
        {
            return Some((child, expected));
        }
        if let Some(&at) = self.index.get(key) {
            return Some((&self.keys[at].1, at));
        }
        let (first, rest) = key.split_once('.')?;
        let at = *self.index.get(first)?;
        match &self.keys[at].1 {
            Child::Node(node) => node.find(rest, 0).map(|(child, _)| (child, at)),
            Child::Leaf(_) => None,
        }
    }

    pub fn child(&self, key: &str) -> Option<&Child> {
        Some(&self.keys[*self.index.get(key)?].1)
    }

    /// The columns of this node and all below.
    pub fn columns(&self) -> Vec<usize> {
        self.keys.iter().flat_map(|(_, c)| c.columns()).collect()
    }
}

impl Child {
    pub fn columns(&self) -> Vec<usize> {
        match self {
            Child::Node(node) => node.columns(),
            Child::Leaf(columns) => columns.clone(),
        }
    }
}
