//! Payloads in the schema registry's wire format: header, schema id and message indexes, with known and unknown schemas, in both formats.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use residuald::decode::{Ask, Decoder, Format, RecordFormat, Wanted};

#[path = "../common.rs"]
mod common;

struct Target {
    decoder: Decoder,
    input: RecordFormat,
    wanted: Wanted,
}

impl Target {
    fn new(format: Format, text: &str) -> Target {
        let (input, wanted) = common::registry(format, text);
        Target {
            decoder: common::decoder(input.clone()),
            input,
            wanted,
        }
    }

    fn check(&mut self, payload: &[u8]) {
        common::check(&mut self.decoder, &self.input, payload);
        // As the fetcher does, refuse and forget every requested id. Otherwise the ids would accumulate in memory.
        for Ask { id, .. } in self.wanted.asks.try_iter() {
            self.wanted.answer(id, Err("unknown".to_owned()));
            self.wanted.forget(id);
        }
    }
}

thread_local! {
    static STATE: RefCell<[Target; 2]> = RefCell::new([
        Target::new(Format::Avro, common::AVRO),
        Target::new(Format::Protobuf, common::PROTOBUF),
    ]);
}

fuzz_target!(|payload: &[u8]| {
    STATE.with_borrow_mut(|formats| formats.iter_mut().for_each(|target| target.check(payload)));
});
