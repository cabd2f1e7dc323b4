//! A record as Kafka delivered it, borrowed from the client's buffer.

use std::fmt;

/// One header: its name and, if it has one, its value.
pub type Header<'m> = (&'m str, Option<&'m [u8]>);

/// A header that outlives its record.
pub type OwnedHeader = (String, Option<Vec<u8>>);

/// A header with a text as its value.
pub fn header(name: &str, value: &str) -> OwnedHeader {
    (name.to_owned(), Some(value.as_bytes().to_vec()))
}

/// A Kafka record. Nothing is copied until a stage keeps it.
#[derive(Debug, Clone)]
pub struct Record<'m> {
    pub topic: &'m str,
    pub partition: i32,
    pub offset: i64,
    /// The place of the record in its message, if the message may have several.
    pub index: Option<u32>,
    /// In milliseconds since the Unix epoch, if the broker or the producer has set a timestamp.
    pub timestamp_ms: Option<i64>,
    pub key: Option<&'m [u8]>,
    pub headers: Vec<Header<'m>>,
    /// `None` means that the record is a tombstone: a deletion in a compacted topic, not data.
    pub payload: Option<&'m [u8]>,
}

/// The origin of a record. Together with the model's fingerprint, it makes the id of a verdict.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Origin {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// The place of the record in its message, if the message may have several. It starts at 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
}

/// The place of a record in its topic: partition, offset and, if its message may have several records, the index in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Place {
    pub partition: i32,
    pub offset: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
}

impl fmt::Display for Place {
    /// Writes `3-120934` or, with an index, `3-120934#2`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.partition, self.offset)?;
        self.index.map_or(Ok(()), |index| write!(f, "#{index}"))
    }
}

impl Origin {
    pub fn place(&self) -> Place {
        Place {
            partition: self.partition,
            offset: self.offset,
            index: self.index,
        }
    }
}

impl Record<'_> {
    pub fn place(&self) -> Place {
        Place {
            partition: self.partition,
            offset: self.offset,
            index: self.index,
        }
    }

    pub fn source(&self) -> Origin {
        Origin {
            topic: self.topic.to_owned(),
            partition: self.partition,
            offset: self.offset,
            index: self.index,
        }
    }
}
