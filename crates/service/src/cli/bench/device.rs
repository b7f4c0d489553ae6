//! The device that a benchmark runs on.

use super::Failure;
use crate::wiring::gpu::{self, GpuOptions};
use nexus_compute::Backend;
use nexus_compute::conformance::Precision;
use nexus_compute::cpu::{Cpu, CpuOptions};
use nexus_compute::cuda::{Cuda, Device};
use std::sync::Arc;

/// What `--device` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chosen {
    Cpu,
    /// A CUDA device, by the number that the driver gives it.
    Cuda(usize),
}

/// Parses `cpu` or `cuda:N`.
pub(super) fn parse(value: &str) -> Result<Chosen, String> {
    match (value, value.strip_prefix("cuda:").map(str::parse)) {
        ("cpu", _) => Ok(Chosen::Cpu),
        (_, Some(Ok(ordinal))) => Ok(Chosen::Cuda(ordinal)),
        _ => Err("expected cpu, or cuda:N for a CUDA device".to_owned()),
    }
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
        Chosen::Cpu => job.run(open_cpu()?),
        Chosen::Cuda(ordinal) => job.run(open_cuda(ordinal)?),
    }
}

/// Opens the device twice and does `job` on both.
pub(super) fn with_two(chosen: Chosen, job: impl PairJob) -> Result<(), Failure> {
    match chosen {
        Chosen::Cpu => job.run([open_cpu()?, open_cpu()?]),
        Chosen::Cuda(ordinal) => job.run([open_cuda(ordinal)?, open_cuda(ordinal)?]),
    }
}

fn open_cpu() -> Result<Arc<Cpu>, Failure> {
    Cpu::new(CpuOptions::default()).map(Arc::new).map_err(|error| Failure::Run(format!("cpu: {error}")))
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
        assert_eq!(parse("cpu"), Ok(Chosen::Cpu));
        assert_eq!(parse("cuda:3"), Ok(Chosen::Cuda(3)));
        for wrong in ["", "cuda", "cuda:", "cuda:-1", "cuda:0,1", "gpu"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
