//! Every case of the conformance suite through the CUDA backend, its kernels executed on the CPU.

#![forbid(unsafe_code)]

use nexus_compute::conformance::{Precision, cases, run};
use nexus_compute::cuda::{Cuda, CudaOptions};
use nexus_emulator::Emulated;

#[test]
fn every_case_passes() {
    let backend = Cuda::new(Emulated::new(), CudaOptions::default());
    let mut failures = Vec::new();
    for case in cases() {
        if let Err(failure) = run(&backend, &case, Precision::BF16) {
            failures.push(format!("{}: {failure}", case.name()));
        }
    }
    assert!(failures.is_empty(), "{} cases fail:\n{}", failures.len(), failures.join("\n"));
}
