//! Debezium's change events: `before`, `after` and `op`. The state after a change is judged. Deletions have nothing to judge.

use super::super::{Reason, RowError, malformed};
use super::raw::{object, string};
use super::{Content, Skip, connect, is_null, mongo, unexpected};

const EXPECTED: &str =
    "a change event with `op` and `after`, bare or as the `payload` beside Connect's `schema`";
/// Debezium writes this for a large value that the change did not touch, because the database's log does not contain it.
const UNAVAILABLE: &str = "\"__debezium_unavailable_value\"";

pub fn open(json: &str) -> Result<Content<'static>, RowError> {
    let shape = || unexpected(EXPECTED, "debezium", json);
    let outer = object(json)?.ok_or_else(shape)?;
    let (schema, event) = match connect::parts(&outer)? {
        Some((schema, payload)) => (schema, payload),
        None => (None, json),
    };
    if event.trim() == "null" {
        return Ok(Content::Nothing(Skip::Tombstone));
    }
    let event = object(event)?.ok_or_else(shape)?;
    let (before, after) = (event.get("before")?, event.get("after")?);
    let op = event.get("op")?;
    if op.is_none() && (before.is_none() || after.is_none()) {
        return Err(shape());
    }
    let op = op.map(|op| string(op.get()).unwrap_or(op.get().into()));
    match op.as_deref() {
        Some("d") => return Ok(Content::Nothing(Skip::Delete)),
        Some("t") => return Ok(Content::Nothing(Skip::Truncate)),
        Some("m") => return Ok(Content::Nothing(Skip::LogMessage)),
        None | Some("c" | "u" | "r") => {}
        Some(other) => {
            return Err(malformed(format!(
                "Debezium's `op` is `{other}`: expected c, u, r, d, t or m"
            )));
        }
    }
    let after = match after.filter(|after| !is_null(after)) {
        Some(after) => after,
        // Inside of a CloudEvent there is no `op`.
        None if op.is_none() && before.is_some_and(|before| !is_null(before)) => {
            return Ok(Content::Nothing(Skip::Delete));
        }
        None => {
            return Err(RowError {
                reason: Reason::Missing,
                detail: "Debezium's `after` is absent or null, although the change is not a deletion. For MongoDB, set the connector's capture.mode to change_streams_update_full"
                    .into(),
            });
        }
    };
    // The connector for MongoDB writes the document as a string of extended JSON.
    if let Some(document) = string(after.get()) {
        return mongo::document(&document).map(Content::record);
    }
    if !after.get().starts_with('{') {
        return Err(malformed(
            "Debezium's `after` is neither an object nor a string of JSON",
        ));
    }
    let schema = schema.as_ref().and_then(|schema| schema.below("after"));
    let mut row = connect::convert(schema, after.get())?;
    if row.contains(UNAVAILABLE) {
        row = row.replace(UNAVAILABLE, "null");
    }
    Ok(Content::record(row))
}
