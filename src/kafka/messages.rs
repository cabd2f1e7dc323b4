//! Converts Kafka messages to records, and headers in both directions.

use std::ffi::CStr;
use std::ptr;

use rdkafka::bindings::{rd_kafka_header_cnt, rd_kafka_header_get_all, rd_kafka_headers_t};
use rdkafka::message::{
    BorrowedHeaders, BorrowedMessage, Header as OwnedHeader, Message as _, OwnedHeaders,
};
use rdkafka::types::RDKafkaRespErr;

use crate::record::{Header, Record};

/// Replaces a header name that is not UTF-8.
const NOT_TEXT: &str = "(header name is not UTF-8)";

/// Returns a message as a record. Nothing is copied.
pub(super) fn record<'m>(message: &'m BorrowedMessage<'_>) -> Record<'m> {
    Record {
        topic: message.topic(),
        partition: message.partition(),
        offset: message.offset(),
        index: None,
        timestamp_ms: message.timestamp().to_millis(),
        key: message.key(),
        headers: headers(message),
        payload: message.payload(),
    }
}

/// Builds the headers of a message to send.
pub(super) fn owned_headers(headers: &[(String, Option<Vec<u8>>)]) -> OwnedHeaders {
    let mut owned = OwnedHeaders::new_with_capacity(headers.len());
    for (key, value) in headers {
        let value = value.as_deref();
        owned = owned.insert(OwnedHeader { key, value });
    }
    owned
}

/// Returns the headers in their order. Nothing is copied. This does not use rdkafka's reader of headers, which panics
/// at a name that is not UTF-8. Any producer could end the process with such a name.
fn headers<'m>(message: &'m BorrowedMessage<'_>) -> Vec<Header<'m>> {
    let Some(headers) = message.headers() else {
        return Vec::new();
    };
    // rdkafka casts librdkafka's pointer to `BorrowedHeaders`; this casts it back.
    let native = ptr::from_ref::<BorrowedHeaders>(headers).cast::<rd_kafka_headers_t>();
    // SAFETY: the pointer is valid as long as the message is borrowed.
    let count = unsafe { rd_kafka_header_cnt(native) };
    (0..count).map_while(|at| header(native, at)).collect()
}

fn header<'m>(native: *const rd_kafka_headers_t, at: usize) -> Option<Header<'m>> {
    let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
    // SAFETY: librdkafka sets pointers into the message, which `'m` borrows: a zero-terminated name, and a null pointer or
    // `size` bytes of value.
    unsafe {
        let error = rd_kafka_header_get_all(native, at, &mut name, &mut value, &mut size);
        if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        let name = CStr::from_ptr(name).to_str().unwrap_or(NOT_TEXT);
        let value =
            (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), size));
        Some((name, value))
    }
}
