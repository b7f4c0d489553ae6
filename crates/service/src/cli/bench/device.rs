//! The device that a benchmark runs on.

use super::Failure;
use crate::wiring::gpu::{self, GpuOptions};
use nexus_compute::Backend;
use nexus_compute::conformance::Precision;
use nexus_compute::cpu::{Cpu, CpuOptions, CpuWeights, Isa};
use nexus_compute::cuda::{Cuda, Device};
use std::sync::Arc;

/// What `--device` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chosen {
    Cpu(CpuOptions),
    /// A CUDA device, by the number that the driver gives it.
    Cuda(usize),
}

/// Parses `cpu` or `cuda:N`. The CPU may be told how to compute: a number of threads, the name of an instruction set, and
/// `int8` for the weights, in any order.
pub(super) fn parse(value: &str) -> Result<Chosen, String> {
    let expected = || "cpu, cpu:1,avx2,int8 and the like, or cuda:N for a CUDA device".to_owned();
    if let Some(ordinal) = value.strip_prefix("cuda:") {
        return ordinal.parse().map(Chosen::Cuda).map_err(|_| expected());
    }
    let words = match value.split_once(':') {
        None if value == "cpu" => "",
        Some(("cpu", words)) if !words.is_empty() => words,
        _ => return Err(expected()),
    };
    let mut options = CpuOptions::default();
    for word in words.split(',').filter(|_| !words.is_empty()) {
        if word == "int8" {
            options.weights = CpuWeights::Int8;
        } else if let Some(isa) = Isa::ALL.into_iter().find(|isa| isa.name() == word) {
            options.isa = Some(isa);
        } else {
            options.threads = Some(word.parse().ok().filter(|&threads| threads > 0).ok_or_else(expected)?);
        }
    }
    Ok(Chosen::Cpu(options))
}

/// Work for a backend that is known only when the program runs.
pub(super) trait Job {
    fn run<B: Backend>(self, backend: Arc<B>) -> Result<(), Failure>;
}

/// Work for two backends of one device.
pub(super) trait PairJob {
    fn run<B: Backend>(self, backends: [Arc<B>; 2]) -> Result<(), Failure>;
}

/// Opens the device and does `job` on it.
pub(super) fn with_backend(chosen: Chosen, job: impl Job) -> Result<(), Failure> {
    match chosen {
        Chosen::Cpu(options) => job.run(open_cpu(options)?),
        Chosen::Cuda(ordinal) => job.run(open_cuda(ordinal)?),
    }
}

/// Opens the device twice and does `job` on both.
pub(super) fn with_two(chosen: Chosen, job: impl PairJob) -> Result<(), Failure> {
    match chosen {
        Chosen::Cpu(options) => job.run([open_cpu(options)?, open_cpu(options)?]),
        Chosen::Cuda(ordinal) => job.run([open_cuda(ordinal)?, open_cuda(ordinal)?]),
    }
}

fn open_cpu(options: CpuOptions) -> Result<Arc<Cpu>, Failure> {
    Cpu::new(options).map(Arc::new).map_err(|error| Failure::Run(format!("cpu: {error}")))
}

/// A CUDA device as it serves by default. Kernels are compiled anew: how long that takes is part of what is looked at.
pub(super) fn open_cuda(ordinal: usize) -> Result<Arc<Cuda<Device>>, Failure> {
    let options = GpuOptions { kernel_cache: None, graph_tokens_max: 256 };
    gpu::open(ordinal, &options).map(Arc::new).map_err(|error| Failure::Run(error.to_string()))
}

/// How exactly a backend stores activations, by its numeric format.
pub(super) fn precision(backend: &impl Backend) -> Result<Precision, Failure> {
    match backend.numeric_format() {
        "f32" => Ok(Precision::F32),
        "bf16" => Ok(Precision::BF16),
        other => Err(Failure::Run(format!("{}: no tolerance is known for the format {other}", backend.name()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_by_name() {
        assert_eq!(parse("cpu"), Ok(Chosen::Cpu(CpuOptions::default())));
        let told = CpuOptions { isa: Some(Isa::Portable), threads: Some(3), weights: CpuWeights::Int8 };
        assert_eq!(parse("cpu:int8,3,portable"), Ok(Chosen::Cpu(told)));
        assert_eq!(parse("cuda:3"), Ok(Chosen::Cuda(3)));
        for wrong in ["", "cuda", "cuda:", "cuda:-1", "cuda:0,1", "gpu", "cpu:", "cpu:0", "cpu:int4", "cpu:1,,int8"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
