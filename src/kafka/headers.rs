//! The headers of a consumed message. rdkafka's own reader panics at a name that is not UTF-8, which whoever may produce to the
//! topic can send.

use std::ffi::CStr;
use std::ptr;

use rdkafka::bindings::{rd_kafka_header_cnt, rd_kafka_header_get_all, rd_kafka_headers_t};
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Message as _};
use rdkafka::types::RDKafkaRespErr;

use crate::record::Header;

/// Stands for a name that is not UTF-8.
pub const NOT_TEXT: &str = "(header name is not UTF-8)";

/// In their order; nothing is copied.
pub fn headers<'m>(message: &'m BorrowedMessage<'_>) -> Vec<Header<'m>> {
    let Some(headers) = message.headers() else {
        return Vec::new();
    };
    // A `BorrowedHeaders` is what librdkafka's pointer points to, and no more.
    let native = ptr::from_ref::<BorrowedHeaders>(headers).cast::<rd_kafka_headers_t>();
    // SAFETY: the pointer is valid as long as the message is borrowed.
    let count = unsafe { rd_kafka_header_cnt(native) };
    (0..count).map_while(|at| header(native, at)).collect()
}

fn header<'m>(native: *const rd_kafka_headers_t, at: usize) -> Option<Header<'m>> {
    let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
    // SAFETY: librdkafka fills in pointers into the message, which `'m` borrows: a name that ends with a zero, and `size` bytes
    // of a value or a null pointer.
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
