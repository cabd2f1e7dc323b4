//! JSON payloads: every payload becomes a row of numbers or an error.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use residuald::decode::{Decoder, RecordFormat};

#[path = "../common.rs"]
mod common;

thread_local! {
    static DECODER: RefCell<Decoder> = RefCell::new(common::decoder(RecordFormat::Json));
}

fuzz_target!(|payload: &[u8]| {
    DECODER.with_borrow_mut(|decoder| common::check(decoder, &RecordFormat::Json, payload));
});
