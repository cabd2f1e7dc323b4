//! CloudEvents in structured mode: the record is in `data`, or in `data_base64`. In binary mode the message is the record, so it
//! needs no envelope.

use base64::prelude::{BASE64_STANDARD, Engine as _};

use super::super::{Reason, RowError, malformed};
use super::raw::{object, string};
use super::{Content, unexpected};

const EXPECTED: &str = "a CloudEvent in structured mode, with `specversion` and `data`";

pub fn open(json: &str) -> Result<Content<'static>, RowError> {
    let shape = || unexpected(EXPECTED, "cloudevents", json);
    let event = object(json)?.ok_or_else(shape)?;
    event.get("specversion")?.ok_or_else(shape)?;
    match (event.get("data")?, event.get("data_base64")?) {
        (Some(_), Some(_)) => Err(malformed(
            "a CloudEvent has `data` or `data_base64`, but this one has both",
        )),
        (Some(data), None) => Ok(Content::record(data.get().to_owned())),
        (None, Some(data)) => {
            let base64 = string(data.get())
                .ok_or_else(|| malformed("the CloudEvent's `data_base64` is not a string"))?;
            let bytes = BASE64_STANDARD.decode(base64.as_bytes()).map_err(|e| {
                malformed(format!("the CloudEvent's `data_base64` is not base64: {e}"))
            })?;
            let text = String::from_utf8(bytes).map_err(|_| {
                malformed("the CloudEvent's `data_base64` is not JSON: it is not UTF-8")
            })?;
            Ok(Content::record(text))
        }
        (None, None) => Err(RowError {
            reason: Reason::Missing,
            detail:
                "the CloudEvent has neither `data` nor `data_base64`, so there is nothing to judge"
                    .into(),
        }),
    }
}
