//! Catalogs: what is understood can be mapped, is the same when it is written and read again in either form, and what is
//! wrong is told in one line of bounded length.

#![forbid(unsafe_code)]
#![no_main]

use libfuzzer_sys::fuzz_target;
use nexus::cli::fuzz::{Fields, catalog};
use serde_json::json;
use std::collections::HashSet;

/// What is told of a wrong catalog: 200 characters of an id or of the columns may be quoted.
const ERROR_BYTES_MAX: usize = 1000;

fuzz_target!(|data: &[u8]| {
    let controls = match catalog(data) {
        Ok(controls) => controls,
        Err(error) => {
            assert!(!error.is_empty() && !error.contains(char::is_control), "{error:?}");
            assert!(error.len() <= ERROR_BYTES_MAX, "{} bytes: {error:?}", error.len());
            return;
        }
    };
    assert!(!controls.is_empty());
    let mut ids = HashSet::new();
    for (id, title, text) in &controls {
        assert!(!id.is_empty() && !text.is_empty() && ids.insert(id));
        assert!([id, title, text].into_iter().all(|field| field.trim() == field));
    }
    let control = |(id, title, text): &Fields| json!({ "control_id": id, "title": title, "text": text });
    let written = json!({ "controls": controls.iter().map(control).collect::<Vec<_>>() }).to_string();
    assert_eq!(catalog(written.as_bytes()).as_ref(), Ok(&controls), "as JSON");
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["control_id", "title", "text"]).expect("memory");
    for (id, title, text) in &controls {
        writer.write_record([id, title, text]).expect("memory");
    }
    let written = writer.into_inner().expect("memory");
    assert_eq!(catalog(&written).as_ref(), Ok(&controls), "as CSV");
});
