//! Whole payloads of a registry: header, id, place of the message, known and unknown schemas, in both formats.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use residuald::decode::{Ask, Decoder, Format, RecordFormat, Wanted};

#[path = "../common.rs"]
mod common;

struct One {
    decoder: Decoder,
    input: RecordFormat,
    wanted: Wanted,
}

impl One {
    fn new(format: Format, text: &str) -> One {
        let (input, wanted) = common::registry(format, text);
        One {
            decoder: common::decoder(input.clone()),
            input,
            wanted,
        }
    }

    fn check(&mut self, payload: &[u8]) {
        common::check(&mut self.decoder, &self.input, payload);
        // What is asked for is answered with no and forgotten, as the fetcher does; else ids would fill the memory.
        for Ask { id, .. } in self.wanted.asks.try_iter() {
            self.wanted.answer(id, Err("unknown".to_owned()));
            self.wanted.forget(id);
        }
    }
}

thread_local! {
    static STATE: RefCell<[One; 2]> = RefCell::new([
        One::new(Format::Avro, common::AVRO),
        One::new(Format::Protobuf, common::PROTOBUF),
    ]);
}

fuzz_target!(|payload: &[u8]| {
    STATE.with_borrow_mut(|formats| formats.iter_mut().for_each(|one| one.check(payload)));
});
