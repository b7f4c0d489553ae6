//! Vectors on the wire, one thread: `cargo bench -p nexus-vectors --bench bodies`.
//!
//! Parsing is timed with the scoring of the rows, as a request has it. Deliberately absent: sockets, see
//! `bench/retrieve.py`.

#![forbid(unsafe_code)]

use bytes::Bytes;
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use nexus_vectors::{BodyParser, Form, Gathered, Limits, Purpose, Threads, encode_base64, write_f32_json};

const ROWS: usize = 200;
const DIM: usize = 4096;

/// Bytes that a socket gives at once.
const CHUNK_BYTES: usize = 400 << 10;

fn main() {
    divan::main();
}

/// Unit vectors, about.
fn random(len: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) / 32.0
    };
    (0..len).map(|_| next()).collect()
}

/// A body with the vectors as `write` writes one.
fn body(write: impl Fn(&[f32]) -> String) -> Bytes {
    let vectors = random((ROWS + 1) * DIM);
    let rows: Vec<String> = vectors[DIM..].chunks(DIM).map(&write).collect();
    let text =
        format!(r#"{{"source_embedding": {}, "target_embeddings": [{}]}}"#, write(&vectors[..DIM]), rows.join(", "));
    text.into()
}

fn parse(bencher: Bencher<'_, '_>, body: &Bytes) {
    bencher.counter(BytesCount::new(body.len())).bench(|| {
        let mut parser = BodyParser::new(Form::Json, Purpose::Retrieve, Limits::default());
        let (mut gathered, mut blocks) = (Gathered::default(), Vec::new());
        let mut rest = black_box(body.clone());
        while !rest.is_empty() {
            parser.feed(rest.split_to(rest.len().min(CHUNK_BYTES)), &mut blocks).unwrap();
            blocks.drain(..).for_each(|block| gathered.take(block.run().unwrap()));
        }
        let head = parser.finish(&mut blocks).unwrap();
        blocks.drain(..).for_each(|block| gathered.take(block.run().unwrap()));
        gathered.rank(&head, 50, &Limits::default(), Threads::Caller).unwrap()
    });
}

/// As Python writes the floats of an f32 array: 17 digits.
#[divan::bench]
fn parse_f64_text(bencher: Bencher<'_, '_>) {
    let write = |vector: &[f32]| {
        let numbers: Vec<String> = vector.iter().map(|&x| f64::from(x).to_string()).collect();
        format!("[{}]", numbers.join(", "))
    };
    parse(bencher, &body(write));
}

/// As this project writes them: the shortest that is the same f32.
#[divan::bench]
fn parse_f32_text(bencher: Bencher<'_, '_>) {
    let write = |vector: &[f32]| {
        let mut text = Vec::new();
        write_f32_json(vector, &mut text);
        String::from_utf8(text).unwrap()
    };
    parse(bencher, &body(write));
}

#[divan::bench]
fn parse_base64(bencher: Bencher<'_, '_>) {
    parse(bencher, &body(|vector| format!("\"{}\"", encode_base64(vector))));
}

#[divan::bench]
fn write_json(bencher: Bencher<'_, '_>) {
    let vector = random(DIM);
    let mut out = Vec::new();
    write_f32_json(&vector, &mut out);
    let length = out.len();
    bencher.counter(BytesCount::new(length)).bench_local(|| {
        out.clear();
        write_f32_json(black_box(&vector), &mut out);
    });
}

#[divan::bench]
fn write_base64(bencher: Bencher<'_, '_>) {
    let vector = random(DIM);
    bencher.counter(BytesCount::new(DIM * 4)).bench(|| encode_base64(black_box(&vector)));
}
