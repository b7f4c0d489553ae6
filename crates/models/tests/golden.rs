//! Both families against `transformers`, on the small random models of `golden/` (see its README).

#![forbid(unsafe_code)]

use nexus_compute::{Backend, PackedBatch, Pooling, cpu, reference::Reference};
use nexus_models::{
    ModelFiles, PackedModel, Weights,
    config::Config,
    modernbert::{ModernBert, ModernBertConfig},
    qwen3::{Qwen3, Qwen3Config},
};
use serde::Deserialize;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

#[derive(Deserialize)]
struct Golden {
    sequences: Vec<Vec<u32>>,
    #[serde(default)]
    vectors: Vec<Vec<f32>>,
    #[serde(default)]
    logits: Vec<f32>,
    batches: Vec<Vec<usize>>,
}

/// Per component of a unit vector.
const VECTOR_TOLERANCE: f32 = 1e-4;
/// Per logit.
const LOGIT_TOLERANCE: f32 = 1e-3;

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

fn load<B: Backend>(backend: &Arc<B>, case: &str, positions: usize) -> Box<dyn PackedModel> {
    load_pooled(backend, case, positions, Pooling::Last)
}

/// `pooling` is the embedder's; a reranker's is in its configuration.
fn load_pooled<B: Backend>(backend: &Arc<B>, case: &str, positions: usize, pooling: Pooling) -> Box<dyn PackedModel> {
    let files = ModelFiles::open(&folder(case)).unwrap();
    let config = Config::read(&files, "config.json").unwrap();
    let weights = Weights::open(&files, &|_, _| ()).unwrap();
    if case.starts_with("qwen3") {
        let config = Qwen3Config::new(&config).unwrap();
        Box::new(Qwen3::load(backend.clone(), config, pooling, positions, weights).unwrap())
    } else {
        let config = ModernBertConfig::new(&config).unwrap();
        Box::new(ModernBert::load(backend.clone(), config, positions, weights).unwrap())
    }
}

fn check<B: Backend>(backend: B, case: &str) {
    let backend = Arc::new(backend);
    let golden: Golden = serde_json::from_slice(&std::fs::read(folder(case).join("golden.json")).unwrap()).unwrap();
    let longest = golden.sequences.iter().map(Vec::len).max().unwrap();
    let model = load(&backend, case, longest);
    let (tolerance, expected): (f32, Vec<&[f32]>) = match golden.vectors.is_empty() {
        true => (LOGIT_TOLERANCE, golden.logits.chunks(1).collect()),
        false => (VECTOR_TOLERANCE, golden.vectors.iter().map(Vec::as_slice).collect()),
    };
    assert_eq!(expected.len(), golden.sequences.len());
    assert!(golden.batches.len() > golden.sequences.len(), "sequences alone, and batches");

    for batch in &golden.batches {
        let sequences: Vec<&Vec<u32>> = batch.iter().map(|&i| &golden.sequences[i]).collect();
        let output = model.forward(&PackedBatch::new(&sequences).unwrap()).unwrap();
        let rows: Vec<&[f32]> = output.chunks_exact(model.output_columns()).collect();
        assert_eq!(rows.len(), batch.len());
        for (row, &i) in rows.into_iter().zip(batch) {
            // Logits are compared as they are; hidden states become unit vectors first.
            let norm = if row.len() == 1 { 1.0 } else { row.iter().map(|x| x * x).sum::<f32>().sqrt() };
            assert_eq!(row.len(), expected[i].len());
            for (found, expected) in row.iter().map(|x| x / norm).zip(expected[i]) {
                assert!(
                    (found - expected).abs() <= tolerance,
                    "{case} on {}: sequence {i} of {} tokens in a batch of {}: {found} instead of {expected}",
                    backend.name(),
                    golden.sequences[i].len(),
                    batch.len(),
                );
            }
        }
    }
}

/// 8-bit weights: vectors keep their direction, logits are off by little beside the largest.
fn check_int8(case: &str) {
    let golden: Golden = serde_json::from_slice(&std::fs::read(folder(case).join("golden.json")).unwrap()).unwrap();
    let longest = golden.sequences.iter().map(Vec::len).max().unwrap();
    for isa in cpu::Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let options = cpu::CpuOptions { isa: Some(isa), threads: Some(2), weights: cpu::CpuWeights::Int8 };
        let model = load(&Arc::new(cpu::Cpu::new(options).unwrap()), case, longest);
        let output = model.forward(&PackedBatch::new(&golden.sequences).unwrap()).unwrap();
        let largest = golden.logits.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        for (i, row) in output.chunks_exact(model.output_columns()).enumerate() {
            if row.len() == 1 {
                let error = (row[0] - golden.logits[i]).abs() / largest;
                assert!(error > 0.0 && error < 0.05, "{case}, {isa:?}: a logit is off by {error} of the largest");
            } else {
                let length = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
                let dot: f32 = row.iter().zip(&golden.vectors[i]).map(|(a, b)| a * b).sum();
                let cosine = dot / length(row) / length(&golden.vectors[i]);
                assert!((0.995..1.0 - 1e-6).contains(&cosine), "{case}, {isa:?}: cosine {cosine}");
            }
        }
    }
}

#[test]
fn int8_weights_keep_directions_and_logits() {
    for case in ["qwen3-gqa-f32", "qwen3-mha-bf16", "qwen3-sharded-f16", "qwen3-bias-f32"] {
        check_int8(case);
    }
    for case in ["modernbert-cls-w16-f32", "modernbert-mean-bf16", "modernbert-biases-f32"] {
        check_int8(case);
    }
}

fn check_all_backends(case: &str) {
    check(Reference, case);
    for isa in cpu::Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let options = cpu::CpuOptions { isa: Some(isa), threads: Some(2), ..cpu::CpuOptions::default() };
        check(cpu::Cpu::new(options).unwrap(), case);
    }
}

#[test]
fn qwen3_grouped_queries_f32() {
    check_all_backends("qwen3-gqa-f32");
}

#[test]
fn qwen3_without_groups_bf16() {
    check_all_backends("qwen3-mha-bf16");
}

#[test]
fn qwen3_sharded_f16() {
    check_all_backends("qwen3-sharded-f16");
}

#[test]
fn qwen3_with_biases() {
    check_all_backends("qwen3-bias-f32");
}

#[test]
fn modernbert_first_token_narrow_window() {
    check_all_backends("modernbert-cls-w16-f32");
}

#[test]
fn modernbert_first_token_wide_window() {
    check_all_backends("modernbert-cls-w128-f32");
}

#[test]
fn modernbert_mean_bf16() {
    check_all_backends("modernbert-mean-bf16");
}

#[test]
fn modernbert_with_biases() {
    check_all_backends("modernbert-biases-f32");
}

/// A causal model's hidden state at a token does not depend on what follows: the first row of a text is the last row of
/// its first token, and the mean of its rows is the mean of the last rows of its beginnings. So the golden vectors of the
/// one pooling hold the other two as well.
#[test]
fn qwen3_poolings_agree_with_each_other() {
    let backend = Arc::new(cpu::Cpu::new(cpu::CpuOptions::default()).unwrap());
    let [first, last, mean] = [Pooling::First, Pooling::Last, Pooling::Mean]
        .map(|pooling| load_pooled(&backend, "qwen3-gqa-f32", 64, pooling));
    let texts: [&[u32]; 3] = [&[5, 9, 77, 31, 2], &[8, 2], &[100, 3, 50]];
    let run = |model: &dyn PackedModel, sequences: &[&[u32]]| {
        let columns = model.output_columns();
        let output = model.forward(&PackedBatch::new(sequences).unwrap()).unwrap();
        output.chunks_exact(columns).map(<[f32]>::to_vec).collect::<Vec<_>>()
    };
    let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
    let (firsts, means) = (run(&*first, &texts), run(&*mean, &texts));
    for (text, (first, mean)) in texts.iter().zip(firsts.iter().zip(&means)) {
        let beginnings: Vec<&[u32]> = (1..=text.len()).map(|n| &text[..n]).collect();
        let lasts = run(&*last, &beginnings);
        assert!(close(first, &lasts[0]));
        let average: Vec<f32> =
            (0..mean.len()).map(|i| lasts.iter().map(|row| row[i]).sum::<f32>() / text.len() as f32).collect();
        assert!(close(mean, &average));
        assert!(!close(mean, &lasts[text.len() - 1]), "the poolings differ");
    }
}

#[test]
fn a_sequence_beyond_the_prepared_positions_is_refused() {
    let model = load(&Arc::new(Reference), "qwen3-gqa-f32", 8);
    let error = model.forward(&PackedBatch::new(&[vec![1; 9]]).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "a sequence of 9 tokens is longer than the 8 positions prepared");
    let error = model.forward(&PackedBatch::new(&[vec![5_000_000]]).unwrap()).unwrap_err();
    assert!(error.to_string().contains("token id 5000000 is outside the embedding table"), "{error}");
}
