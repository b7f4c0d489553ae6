//! In the steady state an operation of the CPU backend takes no memory from the system: what a pass over a model allocates
//! does not depend on how many operations it has.
//!
//! One test in a file of its own, since the counter sees every thread of the process.

#![deny(unsafe_code)]

use nexus_compute::cpu::{Cpu, CpuOptions, Isa};
use nexus_compute::{
    Activation, Backend, DType, Heads, Mask, Norm, NormKind, PackedBatch, Pooling, Result, TensorView,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is left to the system's allocator, whose promises these are; counting allocates nothing.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const HEADS: Heads = Heads { query: 8, key_value: 4, dim: 32 };

/// Every operation of a layer, a number of times.
struct Model {
    cpu: Cpu,
    table: <Cpu as Backend>::Table,
    qkv: <Cpu as Backend>::Linear,
    output: <Cpu as Backend>::Linear,
    gate_up: <Cpu as Backend>::Linear,
    down: <Cpu as Backend>::Linear,
    rope: <Cpu as Backend>::Rope,
    norm: Norm<Vec<f32>>,
}

impl Model {
    fn new(threads: usize, isa: Isa) -> Self {
        let cpu = Cpu::new(CpuOptions { isa: Some(isa), threads: Some(threads), ..CpuOptions::default() }).unwrap();
        let matrix = |rows: usize, columns: usize| {
            let values: Vec<u8> = (0..rows * columns).flat_map(|i| ((i % 7) as f32 / 70.0).to_le_bytes()).collect();
            (vec![rows, columns], values)
        };
        let view = |(shape, values): &(Vec<usize>, Vec<u8>)| {
            cpu.prepare_linear(&[TensorView::new(DType::F32, shape, values).unwrap()], &[]).unwrap()
        };
        let (shape, values) = matrix(50, 256);
        let table = cpu.prepare_table(&TensorView::new(DType::F32, &shape, &values).unwrap()).unwrap();
        let norm = Norm { kind: NormKind::Layer, weight: vec![1.0; 256], bias: None, eps: 1e-5 };
        Self {
            table,
            qkv: view(&matrix(HEADS.fused_columns(), 256)),
            output: view(&matrix(256, 256)),
            gate_up: view(&matrix(1024, 256)),
            down: view(&matrix(256, 512)),
            rope: cpu.prepare_rope(10_000.0, HEADS.dim, 400).unwrap(),
            norm,
            cpu,
        }
    }

    fn forward(&self, layers: usize, batch: &<Cpu as Backend>::Batch) -> Result<<Cpu as Backend>::Tensor> {
        let b = &self.cpu;
        let mut x = b.embed(&self.table, Some(&self.norm), batch)?;
        for layer in 0..layers {
            let mut qkv = b.linear(&b.norm(&x, &self.norm)?, &self.qkv)?;
            b.qk_norm_rope(&mut qkv, HEADS, None, &self.rope, batch)?;
            let mask = [Mask::Causal, Mask::Full, Mask::Window(16)][layer % 3];
            b.linear_add(&b.attention(&qkv, HEADS, mask, batch)?, &self.output, &mut x)?;
            let mut gated = b.gated_act(&b.linear(&b.norm(&x, &self.norm)?, &self.gate_up)?, Activation::Gelu)?;
            b.activation(&mut gated, Activation::Silu)?;
            b.linear_add(&gated, &self.down, &mut x)?;
            drop(b.pool(&x, Pooling::Last, batch)?);
        }
        b.pool(&x, Pooling::Last, batch)
    }

    /// Allocations of a pass, the least of several: threads of the test's harness allocate, too.
    fn allocations(&self, layers: usize, batch: &PackedBatch) -> usize {
        let pass = || {
            let before = ALLOCATIONS.load(Relaxed);
            let rows = self.cpu.run(&(), batch, &|batch| self.forward(layers, batch)).unwrap();
            assert!(rows.iter().all(|x| x.is_finite()));
            ALLOCATIONS.load(Relaxed) - before
        };
        (0..6).map(|_| pass()).min().unwrap_or(usize::MAX)
    }
}

#[test]
fn more_operations_allocate_no_more() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        for threads in [1, 2] {
            let model = Model::new(threads, isa);
            let sequences: Vec<Vec<u32>> = [3usize, 90, 31].map(|n| (0..n as u32).map(|i| i % 50).collect()).into();
            let batch = PackedBatch::new(&sequences).unwrap();
            let (few, many) = (model.allocations(2, &batch), model.allocations(9, &batch));
            assert!(few > 0, "the counter does not count");
            assert!(many <= few, "{isa:?}, {threads} threads: {few} allocations in 2 layers, {many} in 9");
        }
    }
}
