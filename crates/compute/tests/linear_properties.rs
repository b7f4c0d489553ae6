//! Products of random shapes: whatever the tiling, the result is that of the reference.

#![forbid(unsafe_code)]

use nexus_compute::cpu::{Cpu, CpuOptions, Isa};
use nexus_compute::reference::Reference;
use nexus_compute::{Backend, DType, PackedBatch, TensorView};
use proptest::prelude::*;
use std::sync::LazyLock;

static CPUS: LazyLock<Vec<Cpu>> = LazyLock::new(|| {
    let isas = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    isas.flat_map(|isa| {
        [1, 3].map(|threads| CpuOptions { isa: Some(isa), threads: Some(threads), ..CpuOptions::default() })
    })
    .map(|options| Cpu::new(options).unwrap())
    .collect()
});

/// Small integers: their products and sums are exact in f32, so that results must be equal to the last bit.
fn integers(count: usize, seed: usize) -> Vec<u8> {
    (0..count).flat_map(|i| (((i * 7 + i / 11 + seed) % 9) as f32 - 4.0).to_le_bytes()).collect()
}

fn product<B: Backend>(backend: &B, rows: usize, depth: usize, columns: usize) -> Vec<f32> {
    let (x, w, b) = (integers(rows * depth, 1), integers(columns * depth, 2), integers(columns, 3));
    let (x_shape, w_shape, b_shape) = ([rows, depth], [columns, depth], [columns]);
    let view = |shape, bytes| TensorView::new(DType::F32, shape, bytes).unwrap();
    let weight = backend.prepare_linear(&[view(&w_shape, &w)], &[view(&b_shape, &b)]).unwrap();
    let batch = PackedBatch::new(&[(0u32..).take(rows).collect::<Vec<_>>()]).unwrap();
    let x = backend.embed(&backend.prepare_table(&view(&x_shape, &x)).unwrap(), None, &backend.upload(&batch).unwrap());
    backend.download(&backend.linear(&x.unwrap(), &weight).unwrap()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_reference(rows in 1usize..220, depth in 1usize..600, columns in 1usize..150) {
        let want = product(&Reference, rows, depth, columns);
        for cpu in CPUS.iter() {
            prop_assert!(product(cpu, rows, depth, columns) == want, "{}", cpu.name());
        }
    }
}
