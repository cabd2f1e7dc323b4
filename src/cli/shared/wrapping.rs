//! The arguments that say how the JSON records of a file are wrapped. A topic's records are described by the settings.

use crate::decode::{Envelope, Unwrap, Wrapping};

#[derive(clap::Args)]
pub struct WrappingArguments {
    /// What surrounds each JSON record, the outermost first, as input.envelope: connect, debezium, cloudevents, mongo, json-string,
    /// avro-json
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    envelope: Vec<Envelope>,
    /// Where the records of a line or element are, as input.unwrap: list, or the path of a list
    #[arg(long, value_name = "PLACE")]
    unwrap: Option<Unwrap>,
    /// Read NaN, Infinity and -Infinity as missing
    #[arg(long)]
    allow_nan: bool,
}

impl WrappingArguments {
    /// Returns how the records are wrapped. `None` if each is one plain record.
    pub fn wrapping(&self) -> Option<Wrapping> {
        let wrapping = Wrapping {
            envelopes: self.envelope.clone(),
            unwrap: self.unwrap.clone().unwrap_or(Unwrap::No),
            allow_nan: self.allow_nan,
            ..Wrapping::default()
        };
        (!wrapping.is_plain()).then_some(wrapping)
    }
}
