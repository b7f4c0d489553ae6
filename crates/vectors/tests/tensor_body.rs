//! Bodies that are safetensors files: what is taken, what is refused, and that nothing makes the parser fall over.

#![forbid(unsafe_code)]

mod support;

use nexus_vectors::{BodyError, Dtype, ErrorKind, Form, Limits, Purpose, Rows, Threads, top_k};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::{Parsed, parse_as};

#[track_caller]
fn parse(body: &[u8]) -> Result<Parsed, BodyError> {
    parse_as(Form::Safetensors, Purpose::Retrieve, &Limits::default(), body)
}

#[track_caller]
fn refuses(body: &[u8], expected: &str) {
    let error = parse(body).expect_err("refused");
    assert_eq!((error.to_string().as_str(), error.kind), (expected, ErrorKind::ValueError));
}

struct Tensor {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn tensor(name: &'static str, dtype: Dtype, shape: &[usize], values: &[f32]) -> Tensor {
    let bytes = match dtype {
        Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
    };
    Tensor { name, dtype, shape: shape.to_vec(), bytes }
}

/// A file with the tensors one after the other.
fn file(tensors: &[Tensor], metadata: Value) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for Tensor { name, dtype, shape, bytes } in tensors {
        let offsets = [at, at + bytes.len()];
        header.insert((*name).to_owned(), json!({ "dtype": dtype.name(), "shape": shape, "data_offsets": offsets }));
        at += bytes.len();
    }
    if !metadata.is_null() {
        header.insert("__metadata__".to_owned(), metadata);
    }
    with_header(&Value::Object(header).to_string(), &tensors.iter().flat_map(|t| t.bytes.clone()).collect::<Vec<_>>())
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn values(count: usize) -> Vec<f32> {
    // Exact in every format.
    (0..count).map(|i| ((i * 37 + 11) % 127) as f32 - 63.0).collect()
}

#[test]
fn all_formats_in_any_order() {
    let (rows, dim) = (300, 700);
    let targets = values(rows * dim);
    let source = &targets[dim..2 * dim];
    let expected = top_k(source, Rows::new(&targets, dim).unwrap(), 5, Threads::Caller).unwrap();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for source_dtype in [Dtype::F32, Dtype::Bf16] {
            let source = || tensor("source_embedding", source_dtype, &[dim], source);
            let targets = || tensor("target_embeddings", dtype, &[rows, dim], &targets);
            let unknown = || tensor("something", Dtype::F32, &[1, 3], &[1.0, f32::NAN, 0.0]);
            for tensors in [
                vec![source(), targets()],
                vec![targets(), source()],
                vec![unknown(), targets(), unknown_empty(), source()],
            ] {
                let parsed = parse(&file(&tensors, json!({ "top_k": "5", "else": "x" }))).unwrap();
                let found: Vec<usize> = parsed.ranked[0].iter().map(|scored| scored.index).collect();
                let wanted: Vec<usize> = expected.iter().map(|scored| scored.index).collect();
                assert_eq!(found, wanted, "{dtype:?} {source_dtype:?}");
            }
        }
        let file = file(&[tensor("target_embeddings", dtype, &[rows, dim], &targets)], json!({ "target_ids": "null" }));
        let kept = parse_as(Form::Safetensors, Purpose::Keep, &Limits::default(), &file).unwrap_err();
        assert!(kept.to_string().starts_with("body.target_ids: Value error, not a JSON array of strings"), "{kept}");
    }
}

fn unknown_empty() -> Tensor {
    tensor("nothing", Dtype::F32, &[0, 3], &[])
}

#[test]
fn kept_as_they_came() {
    let targets = values(12);
    let file = file(
        &[tensor("target_embeddings", Dtype::Bf16, &[3, 4], &targets)],
        json!({ "target_ids": r#"["a","é",""]"# }),
    );
    let parsed = parse_as(Form::Safetensors, Purpose::Keep, &Limits::default(), &file).unwrap();
    assert_eq!((parsed.floats(), parsed.head.dim), (targets, Some(4)));
    assert_eq!(parsed.ids().unwrap(), ["a", "é", ""]);
    assert_eq!(parsed.kept[0].data.dtype(), Dtype::Bf16);
}

#[test]
fn many_sources_and_resident_targets() {
    let sources = || tensor("source_embeddings", Dtype::F32, &[2, 2], &[1.0, 0.0, 0.0, 1.0]);
    let targets = || tensor("target_embeddings", Dtype::F32, &[2, 2], &[0.1, 1.0, 1.0, 0.1]);
    let parsed = parse(&file(&[targets(), sources()], Value::Null)).unwrap();
    assert!(parsed.head.many);
    assert_eq!(parsed.ranked.iter().map(|ranked| ranked[0].index).collect::<Vec<_>>(), [1, 0]);
    let parsed = parse(&file(&[sources()], json!({ "targets": "set" }))).unwrap();
    assert_eq!((parsed.head.targets.as_deref(), parsed.head.sources.unwrap().len()), (Some("set"), 2));
    refuses(
        &file(&[targets(), sources()], json!({ "targets": "set" })),
        "body.targets: Value error, target_embeddings is given, too: only one of the two can be",
    );
    refuses(
        &file(&[sources()], json!({ "targets": "set", "target_ids": "[]" })),
        "body.target_ids: Value error, the targets of a resident set have names of their own",
    );
}

#[test]
fn what_is_wrong_is_named() {
    let source = || tensor("source_embedding", Dtype::F32, &[2], &[1.0, 2.0]);
    let targets = |values: &[f32]| tensor("target_embeddings", Dtype::F32, &[values.len() / 2, 2], values);
    let check = |tensors: &[Tensor], expected: &str| refuses(&file(tensors, Value::Null), expected);
    check(&[source(), targets(&[1.0, 1.0, 0.0, -0.0])], "body.target_embeddings[1]: Value error, the vector is zero");
    let zero = tensor("source_embedding", Dtype::F32, &[2], &[0.0, 0.0]);
    check(&[zero, targets(&[])], "body.source_embedding: Value error, the vector is zero");
    let scalar = tensor("source_embedding", Dtype::F32, &[], &[1.0]);
    check(&[scalar, targets(&[])], "body.source_embedding: Value error, the tensor has no dimensions, expected 1");
    let flat = tensor("target_embeddings", Dtype::F32, &[4], &[1.0; 4]);
    check(&[source(), flat], "body.target_embeddings: Value error, the tensor has 1 dimensions, expected 2");
    for order in [false, true] {
        let wide = tensor("target_embeddings", Dtype::F32, &[1, 3], &[1.0; 3]);
        let mut tensors = [source(), wide];
        if order {
            tensors.reverse();
        }
        check(&tensors, "body.target_embeddings[0]: Value error, the vector has 3 components, source_embedding has 2");
    }
    for (error, expected) in [
        (
            parse(&file(&[source(), targets(&[1.0, f32::NAN])], Value::Null)),
            "body.target_embeddings[0][1]: Input should be a finite number",
        ),
        (parse(&file(&[targets(&[1.0, 1.0])], Value::Null)), "body.source_embedding: Field required"),
        (parse(&file(&[source()], Value::Null)), "body.target_embeddings: Field required"),
        (
            parse(&file(&[source(), targets(&[])], json!({ "top_k": "0" }))),
            "body.top_k: Input should be greater than or equal to 1",
        ),
        (parse(b""), "body: Field required"),
    ] {
        assert_eq!(error.unwrap_err().to_string(), expected);
    }
    let ids = file(&[source(), targets(&[1.0, 1.0])], json!({ "target_ids": "[]" }));
    refuses(&ids, "body.target_ids: Value error, there are 0 target_ids for 1 target_embeddings");
    let no = |problem: &str| format!("body: Value error, not a safetensors file: {problem}");
    let whole = file(&[source(), targets(&[1.0, 1.0])], Value::Null);
    refuses(&whole[..whole.len() - 1], &no("1 bytes are missing at its end"));
    refuses(&whole[..40], &no("it ends within its header"));
    refuses(&[&whole[..], b"x"].concat(), &no("there are bytes after its tensors"));
    refuses(&[&u64::MAX.to_le_bytes()[..], b"{}"].concat(), &no("its header is too long"));
    let many = format!(r#"{{"a":{}0{}}}"#, "{\"b\":".repeat(70_000), "}".repeat(70_000));
    refuses(&with_header(&many, &[]), &no("it has too many tensors"));
    let overlapping = r#"{"source_embedding":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"target_embeddings":{"dtype":"F32","shape":[1,2],"data_offsets":[4,12]}}"#;
    refuses(&with_header(overlapping, &[0; 12]), &no("invalid offset for tensor `target_embeddings`"));
    let int = r#"{"source_embedding":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}, "target_embeddings":{"dtype":"F32","shape":[0,2],"data_offsets":[8,8]}}"#;
    refuses(
        &with_header(int, &[0; 8]),
        "body.source_embedding: Value error, the tensor is of I32, not of F32, F16 or BF16",
    );
}

proptest! {
    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(parse(&bytes).is_err());
    }

    #[test]
    fn any_edit_is_answered(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let source = tensor("source_embedding", Dtype::F32, &[2], &[1.0, 2.0]);
        let targets = tensor("target_embeddings", Dtype::F16, &[3, 2], &values(6));
        let mut body = file(&[source, targets], json!({ "top_k": "2", "target_ids": r#"["a","b","c"]"# }));
        let at = at.index(body.len());
        body[at] = byte;
        let cut = cut.index(4 * body.len());
        body.truncate(cut);
        // Whatever comes of it, it comes of it however the bytes are cut.
        let _ = parse(&body);
    }
}
