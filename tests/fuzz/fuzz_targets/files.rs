//! Files of records: every format, and bytes whose format is to be recognised. Reading ends, and what is not passed on as it is
//! becomes a JSON object.
#![no_main]

#[path = "../common.rs"]
mod common;

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use residuald::dataset::format::Format;
use residuald::dataset::inference::{Wishes, infer_columns};
use residuald::dataset::table::Table;
use residuald::dataset::{Options, open};

thread_local! {
    static FILE: RefCell<(File, PathBuf)> = {
        common::allow_panics_of_crates();
        RefCell::new(in_memory())
    };
}

/// A file that exists only in memory, and a path to it.
fn in_memory() -> (File, PathBuf) {
    // SAFETY: the name is a C string, and the descriptor is new and owned by nothing else.
    let file = unsafe {
        let descriptor = libc::memfd_create(c"input".as_ptr(), 0);
        assert!(descriptor >= 0, "{}", std::io::Error::last_os_error());
        File::from_raw_fd(descriptor)
    };
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    (file, path.into())
}

fuzz_target!(|input: &[u8]| {
    let Some((first, content)) = input.split_first() else {
        return;
    };
    let formats = Format::ALL;
    let format = formats.get(usize::from(*first) % (formats.len() + 1));
    let format = format.map(|(_, format)| *format);
    FILE.with_borrow(|(file, path)| {
        file.set_len(0).expect("a file in memory");
        file.write_all_at(content, 0).expect("a file in memory");
        let label = content.first().is_some_and(|byte| byte % 4 == 0);
        let options = Options {
            format,
            label: label.then(|| "a".to_owned()),
            ..Options::default()
        };
        let Ok(mut data) = open(path, &options) else {
            return;
        };
        let is_passed_on = matches!(format, None | Some(Format::Ndjson | Format::Json));
        let mut payloads = Vec::new();
        // A compressed file may be a thousand times as long.
        for example in data.by_ref().take(100_000) {
            let Ok(example) = example else { continue };
            if !is_passed_on {
                let is_object =
                    serde_json::from_slice::<serde_json::Map<_, _>>(&example.payload).is_ok();
                assert!(is_object, "{:?}", String::from_utf8_lossy(&example.payload));
            }
            if payloads.len() < 100 {
                payloads.push(example.payload);
            }
        }
        assert!(data.notes().iter().all(|note| !note.is_empty()));
        let _ = data.check_labels();
        let objects = payloads
            .into_iter()
            .filter(|p| serde_json::from_slice::<serde_json::Map<_, _>>(p).is_ok());
        let table = Table::from_payloads(objects);
        if let Ok(inferred) = infer_columns(&table, &Wishes::default()) {
            let encoded = table.encode(&inferred.features);
            assert_eq!(encoded.x.len(), table.len() * inferred.features.len());
            assert!(encoded.x.iter().all(|number| !number.is_infinite()));
        }
    });
});
