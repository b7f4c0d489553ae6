//! Top-k over rows in memory: `cargo bench -p nexus-vectors --bench topk`.
//!
//! Deliberately absent: other libraries and the machine's bandwidth, see `bench/topk.py`.

#![forbid(unsafe_code)]

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use nexus_vectors::{Dtype, Rows, Sources, Threads, norms, top_k_many};

const ROWS: usize = 2000;
const K: usize = 50;
const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

fn main() {
    divan::main();
}

/// Numbers from -1 to 1.
fn random(len: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn stored(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

fn scan(bencher: Bencher<'_, '_>, count: usize, dim: usize, dtype: Dtype, with_norms: bool) {
    let bytes = stored(&random(ROWS * dim), dtype);
    let rows = Rows::from_bytes(&bytes, dtype, dim).unwrap();
    let sources = Sources::new(&random((count + 1) * dim)[dim..], dim).unwrap();
    let mut found = Vec::new();
    norms(rows, 0, &mut found).unwrap();
    let norms = with_norms.then_some(&found[..]);
    bencher
        .counter(BytesCount::new(bytes.len()))
        .bench(|| top_k_many(&sources, black_box(rows), norms, K, Threads::Pool).unwrap());
}

#[divan::bench(args = DTYPES, consts = [384, 1024, 4096])]
fn one_source<const DIM: usize>(bencher: Bencher<'_, '_>, dtype: &Dtype) {
    scan(bencher, 1, DIM, *dtype, false);
}

#[divan::bench(args = DTYPES, consts = [384, 1024, 4096])]
fn one_source_with_norms<const DIM: usize>(bencher: Bencher<'_, '_>, dtype: &Dtype) {
    scan(bencher, 1, DIM, *dtype, true);
}

#[divan::bench(args = DTYPES, consts = [384, 1024, 4096])]
fn sixteen_sources<const DIM: usize>(bencher: Bencher<'_, '_>, dtype: &Dtype) {
    scan(bencher, 16, DIM, *dtype, false);
}

#[divan::bench(args = DTYPES)]
fn norms_of_rows(bencher: Bencher<'_, '_>, dtype: &Dtype) {
    let bytes = stored(&random(ROWS * 1024), *dtype);
    let rows = Rows::from_bytes(&bytes, *dtype, 1024).unwrap();
    bencher.counter(BytesCount::new(bytes.len())).bench(|| {
        let mut out = Vec::new();
        norms(black_box(rows), 0, &mut out).unwrap();
        out
    });
}
