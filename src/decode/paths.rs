//! The features as a tree of paths. A decoder walks the tree along with a record and fills the row.

use std::borrow::Cow;

use rustc_hash::FxHashMap;

use super::segment::{Names, SegmentReader};
use super::value::{Column, Value};
use super::{Reason, RowError};
use crate::bundle::{Feature, Missing, SegmentBy, SegmentId, path};

/// Bits of a column that is not filled yet: a NaN that a null never produces.
pub const UNSET: u32 = 0x7fc0_dead;

/// The features of a bundle, arranged so that they can be found in records.
#[derive(Debug)]
pub struct Paths {
    pub root: Node,
    /// Columns in the order of the row, then the segment's column if a field determines the segment. That column is not part of
    /// the row.
    pub columns: Vec<Column>,
    features: Vec<Feature>,
}

/// The fields that features need at one level of a record.
#[derive(Debug, Default)]
pub struct Node {
    pub keys: Vec<(String, Child)>,
    index: FxHashMap<String, usize>,
    /// Whether a feature is below this node, and not only the segment.
    pub has_features: bool,
}

#[derive(Debug)]
pub enum Child {
    Node(Node),
    /// The columns that the field fills. There are several if several parts of one timestamp are features.
    Leaf(Vec<usize>),
}

impl Paths {
    /// Builds the tree. The manifest's checks guarantee that no path in `features` is both a value and a parent. The
    /// calibration's checks guarantee the same for the path of `segment`.
    pub fn new(features: &[Feature], segment: Option<SegmentReader>) -> Paths {
        let mut root = Node::default();
        for (column, feature) in features.iter().enumerate() {
            root.insert(&path::keys_or_parts(&feature.path), column, true);
        }
        let mut columns: Vec<Column> = features.iter().map(Column::new).collect();
        if let Some(SegmentReader {
            by: SegmentBy::Field(path),
            names,
        }) = segment
        {
            root.insert(&path::keys_or_parts(&path), columns.len(), false);
            columns.push(Column::of_segment(path, names));
        }
        Paths {
            root,
            columns,
            features: features.to_vec(),
        }
    }

    /// Returns whether a column reads the segment, and no feature.
    pub fn is_segment(&self, column: usize) -> bool {
        column >= self.features.len()
    }

    /// Returns the names of the segments, if a field determines them.
    pub fn segments(&self) -> Option<Names> {
        self.columns.last()?.segments()
    }

    /// Appends a row that `fill` fills, applies the rules for missing values, and returns the record's segment. On an error,
    /// `rows` is unchanged.
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
        let (row, _) = row.split_at_mut(self.features.len());
        if !row.is_empty() && row.iter().all(|value| value.is_nan()) {
            self.refuse_nothing()?;
        }
        for (value, feature) in row.iter_mut().zip(&self.features) {
            if value.is_nan() {
                if feature.missing == Missing::Reject {
                    return Err(RowError {
                        reason: Reason::Missing,
                        detail: format!(
                            "field `{}` is absent or null, but feature `{}` requires it",
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

    /// Refuses a record without any feature, even if each may be missing: a model would find it normal.
    fn refuse_nothing(&self) -> Result<(), RowError> {
        if self.features.iter().any(|f| f.missing == Missing::Reject) {
            return Ok(());
        }
        let paths = self
            .features
            .iter()
            .take(5)
            .map(|f| format!("`{}`", f.path));
        let paths: Vec<String> = paths.collect();
        let more = if self.features.len() > paths.len() {
            ", …"
        } else {
            ""
        };
        Err(RowError {
            reason: Reason::Missing,
            detail: format!(
                "none of the fields that the schema reads is in the record: {}{more}",
                paths.join(", ")
            )
            .into(),
        })
    }

    /// Writes a value into columns of `row`, or NaN if it is absent. `scratch` is reused to avoid an allocation.
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
    fn insert(&mut self, keys: &[Cow<'_, str>], column: usize, is_feature: bool) {
        self.has_features |= is_feature;
        let Some((key, rest)) = keys.split_first() else {
            return;
        };
        let next = self.keys.len();
        let at = *self.index.entry(key.to_string()).or_insert(next);
        if at == next {
            let child = if rest.is_empty() {
                Child::Leaf(Vec::new())
            } else {
                Child::Node(Node::default())
            };
            self.keys.push((key.to_string(), child));
        }
        match (&mut self.keys[at].1, rest.is_empty()) {
            (Child::Node(node), false) => node.insert(rest, column, is_feature),
            (Child::Leaf(columns), true) => columns.push(column),
            _ => unreachable!("the manifest's checks refuse a path that is both value and parent"),
        }
    }

    /// Returns the child at `key` and the index of that key. It tries `expected` first, because producers keep their keys in
    /// order. A key with dots is read as nested objects: `{"a.b": 1}` as `{"a": {"b": 1}}`.
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

    /// Returns every key under which a map may hold something of this node. A key may contain the dots of a path itself.
    pub fn map_keys(&self) -> Vec<(String, &Child)> {
        let mut keys = Vec::new();
        for (key, child) in &self.keys {
            keys.push((key.clone(), child));
            if let Child::Node(node) = child {
                let below = node.map_keys().into_iter();
                keys.extend(below.map(|(rest, child)| (format!("{key}.{rest}"), child)));
            }
        }
        keys
    }

    pub fn child(&self, key: &str) -> Option<&Child> {
        Some(&self.keys[*self.index.get(key)?].1)
    }

    /// Returns the columns of this node and of all nodes below it.
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
