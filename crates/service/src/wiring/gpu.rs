//! One GPU, opened, and proven to compute what it should.

use nexus_compute::conformance::{Precision, run, start_up_cases};
use nexus_compute::cuda::{Cuda, CudaOptions, Device, DeviceOptions};
use nexus_compute::{Backend, ComputeError};
use std::path::PathBuf;

/// How GPUs are used.
#[derive(Clone, Debug, Default)]
pub(crate) struct GpuOptions {
    /// Where compiled kernels are kept.
    pub(crate) kernel_cache: Option<PathBuf>,
    /// Tokens up to which batches are recorded and replayed.
    pub(crate) graph_tokens_max: usize,
}

/// Opens the GPU with this number. Takes seconds where its kernels have not been compiled before.
pub(crate) fn open(ordinal: usize, options: &GpuOptions) -> Result<Cuda<Device>, ComputeError> {
    let GpuOptions { kernel_cache, graph_tokens_max } = options.clone();
    let device = Device::open(ordinal, &DeviceOptions { kernel_cache })?;
    for note in device.notes() {
        tracing::info!(device = nexus_compute::cuda::Gpu::name(&device), "{note}");
    }
    Ok(Cuda::new(device, CudaOptions { graph_tokens_max }))
}

/// Computes a few small cases of every operation and compares them with the reference: a device that gets one wrong would give
/// wrong vectors, and nobody would see it.
pub(crate) fn prove(backend: &impl Backend) -> Result<(), String> {
    for case in start_up_cases() {
        run(backend, &case, Precision::BF16).map_err(|failure| {
            format!("it computes wrong and is not used: {}: {failure} ({})", case.name(), backend.name())
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nexus_compute::cpu::{Cpu, CpuOptions};

    #[test]
    fn a_device_that_computes_right_is_taken() {
        prove(&Cpu::new(CpuOptions::default()).unwrap()).unwrap();
    }
}
