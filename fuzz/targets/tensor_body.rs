//! Safetensors bodies: nothing panics, pieces make no difference, and what is accepted the reference library accepts.

#![forbid(unsafe_code)]
#![no_main]

mod feed;

use libfuzzer_sys::fuzz_target;
use nexus_vectors::Form;

fuzz_target!(|data: &[u8]| {
    if let Some((body, true)) = feed::check(Form::Safetensors, data) {
        safetensors::SafeTensors::deserialize(body).expect("the reference accepts it");
    }
});
