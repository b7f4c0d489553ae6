//! Weights, single or in shards: a tensor is the bytes that the reference library finds, or is refused; nothing is read
//! from outside its file, and what is counted is what there is.

#![forbid(unsafe_code)]
#![no_main]

mod folder;

use libfuzzer_sys::fuzz_target;
use nexus_models::{LoadError, ModelFiles, Weights};
use safetensors::{Dtype, SafeTensors};
use std::cell::Cell;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 2] = ["a.safetensors", "b.safetensors"];

fuzz_target!(|data: &[u8]| {
    let Some((&form, data)) = data.split_first() else { return };
    let files: Vec<(&str, &[u8])> = if form % 2 == 0 {
        vec![(SINGLE, data)]
    } else {
        let Some([index, a, b]) = folder::parts(data) else { return };
        vec![(INDEX, index), (SHARDS[0], a), (SHARDS[1], b)]
    };
    for name in [SINGLE, INDEX, SHARDS[0], SHARDS[1]] {
        let path = folder::folder().join(name);
        match files.iter().find(|(other, _)| *other == name) {
            Some((_, bytes)) => drop(folder::write(name, bytes)),
            None => drop(std::fs::remove_file(path)),
        }
    }
    let model = ModelFiles::open(folder::folder()).expect("the files are there");
    let (done, total) = (Cell::new(0), Cell::new(0));
    let progress = |d, t| {
        assert!(d <= t && d >= done.get());
        (done.set(d), total.set(t));
    };
    let opened = Weights::open(&model, &progress);
    if let [(SINGLE, bytes)] = files[..] {
        assert_eq!(opened.is_ok(), SafeTensors::deserialize(bytes).is_ok());
    }
    if let Ok(weights) = opened {
        check(weights, &files);
    }
});

fn check(weights: Weights<'_>, files: &[(&str, &[u8])]) {
    let device_bytes = weights.device_bytes().expect("all headers were read");
    assert_eq!(weights.bytes_expected(), Some(device_bytes));
    let (mut bytes, mut untaken, mut largest) = (0, 0, 0);
    for (file, content) in files {
        // A shard that the index does not name is not looked at, and need not be one.
        let Ok(reference) = SafeTensors::deserialize(content) else { continue };
        for (name, expected) in reference.tensors() {
            let found = weights.take_exact(&name, expected.shape());
            match (&found, expected.dtype()) {
                (Ok(view), Dtype::F32 | Dtype::F16 | Dtype::BF16) => {
                    // Two shards of which one is not the index's may have the same name.
                    if files.len() == 1 {
                        assert_eq!(view.bytes(), expected.data(), "{file} {name}");
                    }
                    assert_eq!(view.shape(), expected.shape());
                    assert_eq!(view.bytes().len() * 8, view.len() * expected.dtype().bitsize());
                }
                (Err(LoadError::DType { .. }), _) => untaken += 1,
                // A shard that the index does not name.
                (Err(_), _) if files.len() > 1 => {}
                other => panic!("{name}: {other:?}"),
            }
            if found.is_ok() {
                bytes += expected.data().len() as u64;
                largest = largest.max(expected.data().len());
                let mut other = expected.shape().to_vec();
                other.push(2);
                assert!(weights.take_exact(&name, &other).is_err(), "another shape");
            }
        }
    }
    assert!(largest as u64 <= device_bytes);
    assert!(weights.take_exact("no such tensor", &[1]).is_err());
    if files.len() == 1 {
        assert!(bytes <= device_bytes);
        assert_eq!(weights.finish(|_| false).is_ok(), untaken == 0);
    }
}
