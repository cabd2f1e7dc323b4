//! Messages in envelopes and with several records: the first byte chooses the settings. Every record that comes out is a JSON object
//! or an error, and a message of one record is divided into itself.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use residuald::decode::{
    Decoder, Envelope, RecordFormat, Split, Unwrap, Wrapping, envelope_likeness,
};

#[path = "../common.rs"]
mod common;

/// Maximum number of records in a message. It is low, because each of them is checked.
const MOST_RECORDS: usize = 100;

fn places() -> [Unwrap; 6] {
    let at = |path: &str| Unwrap::At(path.to_owned());
    [
        Unwrap::No,
        Unwrap::List,
        Unwrap::Lines,
        at("records"),
        at("payload"),
        at("data.records"),
    ]
}

fn envelopes() -> [Vec<Envelope>; 8] {
    let [connect, debezium, cloud_events, mongo, string, avro] = Envelope::NAMES.map(|(_, e)| e);
    [
        vec![],
        vec![connect],
        vec![debezium],
        vec![cloud_events],
        vec![mongo],
        vec![string],
        vec![avro],
        vec![cloud_events, debezium],
    ]
}

thread_local! {
    /// For each choice of the settings.
    static DECODERS: RefCell<Vec<(Wrapping, RecordFormat, Decoder)>> = RefCell::new(all());
}

fn all() -> Vec<(Wrapping, RecordFormat, Decoder)> {
    let mut all = Vec::new();
    for allow_nan in [false, true] {
        for envelopes in envelopes() {
            for unwrap in places() {
                let wrapping = Wrapping {
                    unwrap,
                    envelopes: envelopes.clone(),
                    allow_nan,
                    most_records: MOST_RECORDS,
                };
                let format = RecordFormat::Wrapped(wrapping.clone());
                all.push((wrapping, format.clone(), common::decoder(format)));
            }
        }
    }
    all
}

fuzz_target!(|input: &[u8]| {
    let Some((first, message)) = input.split_first() else {
        return;
    };
    assert!(envelope_likeness(message).is_none_or(|said| said.contains("input.envelope")));
    DECODERS.with_borrow_mut(|decoders| {
        let choice = usize::from(*first) % decoders.len();
        let (wrapping, format, decoder) = &mut decoders[choice];
        match wrapping.split(message) {
            Err(error) => assert!(!error.detail.is_empty()),
            Ok(Split::Empty) => {}
            Ok(Split::One) => check(wrapping, format, decoder, message),
            Ok(Split::Many(alone)) => {
                assert!((1..=MOST_RECORDS).contains(&alone.len()));
                for one in alone {
                    let again = wrapping.split(&one).expect("a message of the same shape");
                    match again {
                        // A line that begins with a zero byte loses it, because it looks like a registry's header.
                        Split::Many(again) => {
                            assert_eq!(again.len(), 1);
                            assert!(one.ends_with(&again[0]));
                        }
                        Split::One | Split::Empty => panic!("it was divided before"),
                    }
                    check(wrapping, format, decoder, &one);
                }
            }
        }
    });
});

fn check(wrapping: &Wrapping, format: &RecordFormat, decoder: &mut Decoder, message: &[u8]) {
    common::check(decoder, format, message);
    let mut row = Vec::new();
    if decoder.decode(message, None, &mut row).is_err() {
        return;
    }
    let plain = wrapping.plain(message).expect("it was decoded");
    let plain = plain.expect("a record has something to score");
    assert!(plain.trim_ascii().starts_with(b"{") && plain.trim_ascii().ends_with(b"}"));
    // What a file's reader passes on means the same as the message.
    let mut again = Vec::new();
    let bare = common::decoder(RecordFormat::Json).decode(&plain, None, &mut again);
    assert!(bare.is_ok(), "{bare:?}");
    let bits = |row: &[f32]| row.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&row), bits(&again));
}
