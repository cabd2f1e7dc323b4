//! Protobuf records of one schema, preceded by the schema registry header.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use residuald::decode::{Decoder, Format, RecordFormat};

#[path = "../common.rs"]
mod common;

thread_local! {
    static STATE: RefCell<(Decoder, RecordFormat)> = {
        let (input, _) = common::registry(Format::Protobuf, common::PROTOBUF);
        RefCell::new((common::decoder(input.clone()), input))
    };
}

fuzz_target!(|record: &[u8]| {
    let payload = [HEADER, record].concat();
    STATE.with_borrow_mut(|(decoder, input)| common::check(decoder, input, &payload));
});

const HEADER: &[u8] = &[0, 0, 0, 0, 1, 0];
