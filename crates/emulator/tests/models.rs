//! Both model families through the CUDA backend on the emulator: the golden vectors of `transformers`, recordings, memory.

use nexus_compute::cuda::{Cuda, CudaOptions};
use nexus_compute::{PackedBatch, Pooling};
use nexus_emulator::Emulated;
use nexus_models::{
    ModelFiles, PackedModel, Weights,
    config::Config,
    modernbert::{ModernBert, ModernBertConfig},
    qwen3::{Qwen3, Qwen3Config},
};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Deserialize)]
struct Golden {
    sequences: Vec<Vec<u32>>,
    #[serde(default)]
    vectors: Vec<Vec<f32>>,
    #[serde(default)]
    logits: Vec<f32>,
    batches: Vec<Vec<usize>>,
}

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/golden").join(case)
}

fn golden(case: &str) -> Golden {
    serde_json::from_slice(&std::fs::read(folder(case).join("golden.json")).unwrap()).unwrap()
}

type Gpu = Arc<Cuda<Emulated>>;

fn gpu(graph_tokens_max: usize) -> Gpu {
    Arc::new(Cuda::new(Emulated::new(), CudaOptions { graph_tokens_max }))
}

fn load(gpu: &Gpu, case: &str, positions: usize) -> Box<dyn PackedModel> {
    let files = ModelFiles::open(&folder(case)).unwrap();
    let config = Config::read(&files, "config.json").unwrap();
    let weights = Weights::open(&files, &|_, _| ()).unwrap();
    if case.starts_with("qwen3") {
        let config = Qwen3Config::new(&config).unwrap();
        Box::new(Qwen3::load(gpu.clone(), config, Pooling::Last, positions, weights).unwrap())
    } else {
        let config = ModernBertConfig::new(&config).unwrap();
        Box::new(ModernBert::load(gpu.clone(), config, positions, weights).unwrap())
    }
}

fn forward(model: &dyn PackedModel, sequences: &[&Vec<u32>]) -> Vec<Vec<f32>> {
    let output = model.forward(&PackedBatch::new(sequences).unwrap()).unwrap();
    output.chunks_exact(model.output_columns()).map(<[f32]>::to_vec).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// `logit_error_max` is relative to the largest logit of the case: up to 50, where bf16 has steps of a quarter.
fn check(case: &str, cosine_min: f64, logit_error_max: f32) {
    let golden = golden(case);
    let longest = golden.sequences.iter().map(Vec::len).max().unwrap();
    let largest = golden.logits.iter().fold(0.0f32, |largest, logit| largest.max(logit.abs()));
    let model = load(&gpu(256), case, longest);
    let (mut worst_cosine, mut worst_logit) = (1.0f64, 0.0f32);
    for batch in &golden.batches {
        let sequences: Vec<&Vec<u32>> = batch.iter().map(|&i| &golden.sequences[i]).collect();
        let tokens: usize = sequences.iter().map(|sequence| sequence.len()).sum();
        if tokens > 330 {
            // Minutes, on the emulator; longer sequences and larger batches are among the conformance cases.
            continue;
        }
        // Recorded the second time, and replayed the third.
        for _ in 0..if tokens <= 128 { 3 } else { 1 } {
            let rows = forward(&*model, &sequences);
            assert_eq!(rows.len(), batch.len());
            for (row, &i) in rows.iter().zip(batch) {
                match golden.vectors.get(i) {
                    Some(vector) => worst_cosine = worst_cosine.min(cosine(row, vector)),
                    None => worst_logit = worst_logit.max((row[0] - golden.logits[i]).abs() / largest),
                }
            }
        }
    }
    println!("{case}: cosine {worst_cosine}, logit error {worst_logit} of {largest}");
    assert!(worst_cosine >= cosine_min, "{case}: cosine {worst_cosine}");
    assert!(worst_logit <= logit_error_max, "{case}: {worst_logit} of the largest logit");
}

#[test]
fn embedders_agree_with_transformers() {
    for case in ["qwen3-gqa-f32", "qwen3-mha-bf16", "qwen3-sharded-f16", "qwen3-bias-f32"] {
        check(case, 0.999, 0.0);
    }
}

#[test]
fn rerankers_agree_with_transformers() {
    for case in ["modernbert-cls-w16-f32", "modernbert-cls-w128-f32", "modernbert-mean-bf16", "modernbert-biases-f32"] {
        check(case, 1.0, 0.02);
    }
}
