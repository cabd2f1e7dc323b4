//! The features by their paths: a tree that a format walks along a record, and the row that it fills on the way.

use std::collections::HashMap;

use super::value::{Column, Value};
use super::{Reason, RowError};
use crate::bundle::{Feature, Missing};

/// Marks a column that nothing has filled yet; a NaN that a null does not produce.
pub const UNSET: u32 = 0x7fc0_dead;

/// The features of a bundle, ready to be found in records.
#[derive(Debug)]
pub struct Paths {
    pub root: Node,
    /// In the order of the row.
    pub columns: Vec<Column>,
    features: Vec<Feature>,
}

/// The names that the features want of one record.
#[derive(Debug, Default)]
pub struct Node {
    pub keys: Vec<(String, Child)>,
    index: HashMap<String, usize>,
}

#[derive(Debug)]
pub enum Child {
    Node(Node),
    /// Columns; several when parts of one timestamp are features.
    Leaf(Vec<usize>),
}

impl Paths {
    /// `features` as in the manifest, whose checks guarantee that no path is both a value and a parent.
    pub fn new(features: &[Feature]) -> Paths {
        let mut root = Node::default();
        for (column, feature) in features.iter().enumerate() {
            root.insert(&feature.path, column);
        }
        Paths {
            root,
            columns: features.iter().map(Column::new).collect(),
            features: features.to_vec(),
        }
    }

    /// Appends a row to `rows` that `fill` fills, and applies the rule for missing values; leaves `rows` as it was on an error.
    pub fn append(
        &self,
        rows: &mut Vec<f32>,
        fill: impl FnOnce(&mut [f32]) -> Result<(), RowError>,
    ) -> Result<(), RowError> {
        let start = rows.len();
        rows.resize(start + self.features.len(), f32::from_bits(UNSET));
        let row = &mut rows[start..];
        let result = fill(row).and_then(|()| self.settle_missing(row));
        if result.is_err() {
            rows.truncate(start);
        }
        result
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
                        ),
                    });
                }
                *value = f32::NAN;
            }
        }
        Ok(())
    }

    /// Puts a value, or its absence, into columns of `row`, over what is there. `scratch` saves an allocation.
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
    fn insert(&mut self, path: &str, column: usize) {
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
            (Child::Node(node), Some(rest)) => node.insert(rest, column),
            (Child::Leaf(columns), None) => columns.push(column),
            _ => unreachable!("the manifest's checks refuse a path that is both value and parent"),
        }
    }

    /// The place of `key`, trying `expected` first: producers keep their keys in order.
    pub fn find(&self, key: &str, expected: usize) -> Option<usize> {
        match self.keys.get(expected) {
            Some((next, _)) if next == key => Some(expected),
            _ => self.index.get(key).copied(),
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
