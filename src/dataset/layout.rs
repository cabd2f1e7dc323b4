//! Converts flat columns to one nested JSON object. A column `a.b` becomes the field `b` of the object `a`.

use std::borrow::Cow;
use std::collections::HashSet;

use super::ErrorKind;

/// Maximum nesting depth that a column name may imply.
const MAX_DEPTH: usize = 32;

/// The structure of a file's payloads, built once from its columns.
#[derive(Debug)]
pub struct Layout(Vec<(Vec<u8>, Node)>);

#[derive(Debug)]
enum Node {
    Column(usize),
    Object(Vec<(Vec<u8>, Node)>),
}

impl Layout {
    /// Builds the structure. Fails if two columns are the same field, or if one column is the parent of another.
    pub fn new<'a>(columns: impl IntoIterator<Item = &'a str>) -> Result<Self, ErrorKind> {
        let columns = columns.into_iter();
        Self::of_keys(columns.map(|column| column.split('.').map(Cow::Borrowed).collect()))
    }

    /// Like [`Layout::new`], with the keys of each column.
    pub fn of_keys<'a>(
        columns: impl IntoIterator<Item = Vec<Cow<'a, str>>>,
    ) -> Result<Self, ErrorKind> {
        let mut root = vec![];
        for (index, keys) in columns.into_iter().enumerate() {
            let parts: Vec<_> = keys
                .iter()
                .map(|part| key(part))
                .collect::<Result<_, _>>()?;
            if parts.len() > MAX_DEPTH || !insert(&mut root, &parts, index) {
                let reason = format!(
                    "column {} `{}` conflicts with another column, or has more than {MAX_DEPTH} levels",
                    index + 1,
                    keys.join(".")
                );
                return Err(ErrorKind::Columns(reason));
            }
        }
        Ok(Self(root))
    }

    /// Writes one object. `cell` writes the value of the column with the given index.
    pub fn write(
        &self,
        out: &mut Vec<u8>,
        cell: &mut impl FnMut(usize, &mut Vec<u8>) -> Result<(), ErrorKind>,
    ) -> Result<(), ErrorKind> {
        write(&self.0, out, cell)
    }
}

/// Returns the names, with new ones for columns that would be fields inside of another: `a.b` beside `a`. Notes say which.
pub fn apart<'a>(names: impl IntoIterator<Item = &'a str>, notes: &mut Vec<String>) -> Vec<String> {
    let names: Vec<&str> = names.into_iter().collect();
    let given: HashSet<&str> = names.iter().copied().collect();
    let mut taken: HashSet<String> = HashSet::new();
    let mut apart = Vec::with_capacity(names.len());
    for (column, name) in names.iter().enumerate() {
        let mut parents = name.match_indices('.').map(|(dot, _)| &name[..dot]);
        let Some(parent) = parents.find(|parent| given.contains(parent)) else {
            apart.push((*name).to_owned());
            continue;
        };
        let base = name.replace('.', "_");
        let mut unique = base.clone();
        let mut number = 1;
        while given.contains(unique.as_str()) || !taken.insert(unique.clone()) {
            number += 1;
            unique = format!("{base}_{number}");
        }
        notes.push(format!(
            "column {} `{name}` would be a field inside of column `{parent}`: it is called `{unique}`",
            column + 1
        ));
        apart.push(unique);
    }
    apart
}

/// Returns `"name":` with JSON escapes.
fn key(name: &str) -> Result<Vec<u8>, ErrorKind> {
    let mut key = serde_json::to_vec(name).map_err(std::io::Error::from)?;
    key.push(b':');
    Ok(key)
}

fn insert(object: &mut Vec<(Vec<u8>, Node)>, parts: &[Vec<u8>], column: usize) -> bool {
    let [first, rest @ ..] = parts else {
        return false;
    };
    let found = object.iter_mut().find(|(key, _)| key == first);
    match (found, rest.is_empty()) {
        (None, true) => object.push((first.clone(), Node::Column(column))),
        (None, false) => {
            let mut inner = vec![];
            insert(&mut inner, rest, column);
            object.push((first.clone(), Node::Object(inner)));
        }
        (Some((_, Node::Object(inner))), false) => return insert(inner, rest, column),
        (Some(_), _) => return false,
    }
    true
}

fn write(
    object: &[(Vec<u8>, Node)],
    out: &mut Vec<u8>,
    cell: &mut impl FnMut(usize, &mut Vec<u8>) -> Result<(), ErrorKind>,
) -> Result<(), ErrorKind> {
    out.push(b'{');
    for (index, (key, node)) in object.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(key);
        match node {
            Node::Column(column) => cell(*column, out)?,
            Node::Object(inner) => write(inner, out, cell)?,
        }
    }
    out.push(b'}');
    Ok(())
}
