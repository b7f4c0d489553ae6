//! Every backend against the scalar reference, on every instruction set of this machine.

#![forbid(unsafe_code)]

use nexus_compute::Backend;
use nexus_compute::conformance::{Precision, cases, run};
use nexus_compute::cpu::{Cpu, CpuOptions, Isa};
use nexus_compute::reference::Reference;

fn passes(backend: &impl Backend) {
    let failures: Vec<String> = cases()
        .iter()
        .filter_map(|case| run(backend, case, Precision::F32).err().map(|e| format!("{}: {e}", case.name())))
        .collect();
    assert!(failures.is_empty(), "{}: {} failures\n{}", backend.name(), failures.len(), failures.join("\n"));
}

fn cpu_passes(isa: Isa) {
    if !isa.is_available() {
        return;
    }
    for threads in [1, 2] {
        passes(&Cpu::new(CpuOptions { isa: Some(isa), threads: Some(threads), ..CpuOptions::default() }).unwrap());
    }
}

#[test]
fn reference() {
    passes(&Reference);
}

#[test]
fn cpu_portable() {
    cpu_passes(Isa::Portable);
}

#[test]
fn cpu_avx2() {
    cpu_passes(Isa::Avx2);
}

#[test]
fn cpu_avx512() {
    cpu_passes(Isa::Avx512);
}
