//! JSON bodies: nothing panics, pieces make no difference, and what is accepted is JSON.

#![forbid(unsafe_code)]
#![no_main]

mod feed;

use libfuzzer_sys::fuzz_target;
use nexus_vectors::Form;

fuzz_target!(|data: &[u8]| {
    if let Some((body, true)) = feed::check(Form::Json, data)
        && let Err(error) = serde_json::from_slice::<serde_json::Value>(body)
    {
        // Fields that are skipped may hold what the document parser has no room for.
        let error = error.to_string();
        assert!(error.contains("out of range") || error.contains("recursion limit"), "{error}");
    }
});
