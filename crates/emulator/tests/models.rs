//! Both model families through the CUDA backend on the emulator: the golden vectors of `transformers`, recordings, memory.

#![forbid(unsafe_code)]

use nexus_compute::cpu::{Cpu, CpuOptions};
use nexus_compute::cuda::{Cuda, CudaOptions};
use nexus_compute::{Backend, ComputeError, PackedBatch, Pooling};
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

/// As texts come: of a few tokens each, in batches of any mix.
fn batches(tokens_max: usize, count: usize) -> Vec<Vec<Vec<u32>>> {
    let mut state = 7u32;
    let mut next = move |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % below
    };
    (0..count)
        .map(|_| {
            let mut left = 1 + next(tokens_max as u32) as usize;
            let mut batch = Vec::new();
            while left > 0 {
                let length = (1 + next(40) as usize).min(left);
                batch.push((0..length).map(|_| next(90)).collect());
                left -= length;
            }
            batch
        })
        .collect()
}

#[test]
fn a_device_that_is_warm_allocates_nothing() {
    for case in ["qwen3-mha-bf16", "modernbert-mean-bf16"] {
        let gpu = gpu(0);
        let model = load(&gpu, case, 128);
        let run = |sequences: &[Vec<u32>]| model.forward(&PackedBatch::new(sequences).unwrap()).unwrap();
        let warm_up = gpu.warm_up_tokens(160);
        assert_eq!(warm_up[0], 160, "the largest first");
        for tokens in warm_up {
            run(&vec![vec![1; 40]; tokens / 40]);
        }
        let before = gpu.gpu().counts();
        batches(160, 12).iter().for_each(|batch| drop(run(batch)));
        let after = gpu.gpu().counts();
        assert_eq!((after.allocations, after.bytes), (before.allocations, before.bytes), "{case}");
        drop(model);
        drop(gpu);
    }
}

#[test]
fn what_is_replayed_gives_the_same_bits() {
    for case in ["qwen3-mha-bf16", "modernbert-cls-w16-f32"] {
        let (plain, recorded) = (gpu(0), gpu(96));
        let (without, with) = (load(&plain, case, 128), load(&recorded, case, 128));
        // The second and third time, what else is in the batch is other text.
        for batch in batches(90, 10) {
            for shift in 0..3u32 {
                let batch: Vec<Vec<u32>> =
                    batch.iter().map(|tokens| tokens.iter().map(|id| (id + shift) % 90).collect()).collect();
                let batch = PackedBatch::new(&batch).unwrap();
                assert_eq!(with.forward(&batch).unwrap(), without.forward(&batch).unwrap(), "{case}");
            }
        }
        let counts = recorded.gpu().counts();
        assert!(counts.recorded > 0 && counts.replayed >= 2 * counts.recorded, "{counts:?}");
        assert_eq!(plain.gpu().counts().recorded, 0);
    }
}

#[test]
fn a_batch_that_is_wrong_says_what_is_and_changes_nothing() {
    let gpu = gpu(96);
    let model = load(&gpu, "qwen3-mha-bf16", 24);
    let run = |sequences: &[Vec<u32>]| model.forward(&PackedBatch::new(sequences).unwrap());
    for _ in 0..3 {
        let error = run(&[vec![5_000_000]]).unwrap_err();
        assert!(matches!(error, ComputeError::TokenOutOfRange { id: 5_000_000, .. }), "{error}");
        let error = run(&[vec![1; 25]]).unwrap_err();
        assert!(matches!(error, ComputeError::SequenceTooLong { tokens: 25, positions: 24 }), "{error}");
    }
    let first = run(&[vec![3; 9]]).unwrap();
    assert_eq!((run(&[vec![3; 9]]).unwrap(), run(&[vec![3; 9]]).unwrap()), (first.clone(), first.clone()));
    let replayed = gpu.gpu().counts().replayed;
    assert!(replayed > 0, "a wrong batch keeps no other from being recorded");
    // Of the size that was recorded: what is replayed looks at nothing.
    let error = run(&[vec![5_000_000]]).unwrap_err();
    assert!(matches!(error, ComputeError::TokenOutOfRange { id: 5_000_000, .. }), "{error}");
    for _ in 0..3 {
        run(&[vec![3; 23], vec![3; 7]]).unwrap();
    }
    let error = run(&[vec![3; 26], vec![3; 5]]).unwrap_err();
    assert!(matches!(error, ComputeError::SequenceTooLong { tokens: 26, positions: 24 }), "{error}");
    assert_eq!(run(&[vec![3; 9]]).unwrap(), first);
    assert!(gpu.gpu().counts().replayed > replayed + 1, "and is replayed again");
}

#[test]
fn memory_that_is_missing_is_told_and_the_device_works_on() {
    let gpu = gpu(96);
    let model = load(&gpu, "modernbert-mean-bf16", 128);
    let run = |tokens: usize| model.forward(&PackedBatch::new(&vec![vec![1; 16]; tokens / 16]).unwrap());
    let small = run(32).unwrap();
    gpu.gpu().set_memory_bytes(gpu.gpu().counts().bytes + 64 * 1024);
    let error = run(4096).unwrap_err();
    assert!(matches!(error, ComputeError::OutOfMemory(_)) && !error.is_device_failure(), "{error}");
    // What was recorded may name memory that was given back: it is recorded anew.
    for _ in 0..3 {
        assert_eq!(run(32).unwrap(), small);
    }
    gpu.gpu().set_memory_bytes(usize::MAX);
    gpu.gpu().fail_after(5, ComputeError::Device("gone".into()));
    assert!(run(112).unwrap_err().is_device_failure());
}

/// The models that the binary carries, whose heads go through the matrix instructions.
#[test]
fn the_built_in_models_agree_with_the_cpu() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    let texts: Vec<Vec<u32>> = [5usize, 63, 1, 90, 17]
        .iter()
        .map(|&length| (0..length as u32).map(|i| 10 + (i * 7919 + length as u32 * 31) % 9000).collect())
        .collect();
    let batch = PackedBatch::new(&texts).unwrap();
    fn run<B: Backend>(backend: B, folder: &Path, batch: &PackedBatch) -> Vec<f32> {
        let backend = Arc::new(backend);
        let files = ModelFiles::open(folder).unwrap();
        let config = Config::read(&files, "config.json").unwrap();
        let weights = Weights::open(&files, &|_, _| ()).unwrap();
        let model: Box<dyn PackedModel> = match folder.ends_with("embedder") {
            true => {
                let config = Qwen3Config::new(&config).unwrap();
                Box::new(Qwen3::load(backend, config, Pooling::Last, 128, weights).unwrap())
            }
            false => {
                let config = ModernBertConfig::new(&config).unwrap();
                Box::new(ModernBert::load(backend, config, 128, weights).unwrap())
            }
        };
        model.forward(batch).unwrap()
    }
    for (name, columns) in [("embedder", 384), ("reranker", 1)] {
        let folder = models.join(name);
        let expected = run(Cpu::new(CpuOptions::default()).unwrap(), &folder, &batch);
        let found = run(Cuda::new(Emulated::new(), CudaOptions::default()), &folder, &batch);
        assert_eq!((found.len(), expected.len()), (columns * texts.len(), columns * texts.len()));
        if columns == 1 {
            let largest = expected.iter().fold(1.0f32, |largest, logit| largest.max(logit.abs()));
            let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 0.02 * largest, "{found:?} {expected:?}");
            continue;
        }
        for (found, expected) in found.chunks(columns).zip(expected.chunks(columns)) {
            assert!(cosine(found, expected) > 0.999, "{name}: {}", cosine(found, expected));
        }
    }
}

#[test]
fn a_recording_in_which_memory_was_missing_is_not_replayed() {
    let size = || PackedBatch::new(&[[1; 16], [2; 16]]).unwrap();
    for held in 0..8 {
        let gpu = gpu(96);
        let model = load(&gpu, "modernbert-mean-bf16", 128);
        let expected = model.forward(&size()).unwrap();
        // Others hold buffers that it would take, and no more are to be had than it gives back itself.
        let held: Vec<_> = (0..held).map(|_| gpu.upload(&size()).unwrap()).collect();
        gpu.gpu().set_memory_bytes(gpu.gpu().counts().bytes);
        for _ in 0..4 {
            match model.forward(&size()) {
                Ok(rows) => assert_eq!(rows, expected, "{} held", held.len()),
                Err(error) => assert!(matches!(error, ComputeError::OutOfMemory(_)), "{error}"),
            }
        }
    }
}
