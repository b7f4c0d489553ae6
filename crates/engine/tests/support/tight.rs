//! The reference backend on a device with as much memory as a test says, which counts the models that are on it, and fails
//! when it is told.

use nexus_compute::reference::{Linear, Matrix, Reference, Rope};
use nexus_compute::{
    Activation, Backend, ComputeError, HeadNorms, Heads, Mask, Norm, Packed, PackedBatch, Pooling, Result, TensorView,
};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(crate) struct Tight {
    /// `u64::MAX` stands for a device that does not tell.
    pub(crate) bytes_free: AtomicU64,
    /// Models that it has room for.
    pub(crate) models_max: AtomicUsize,
    /// What the next forward passes, or the preparing of weights, end with.
    pub(crate) run_fault: Mutex<Option<ComputeError>>,
    pub(crate) load_fault: Mutex<Option<ComputeError>>,
    /// Whether it is to be warmed up.
    pub(crate) warms_up: AtomicBool,
    /// How long a model takes to give its memory back.
    pub(crate) freeing_ms: AtomicU64,
    /// Sizes of the batches that were run, in tokens.
    pub(crate) ran: Mutex<Vec<usize>>,
    held: Arc<()>,
}

impl Tight {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            bytes_free: AtomicU64::new(u64::MAX),
            models_max: AtomicUsize::new(usize::MAX),
            run_fault: Mutex::default(),
            load_fault: Mutex::default(),
            warms_up: AtomicBool::new(true),
            freeing_ms: AtomicU64::new(0),
            ran: Mutex::default(),
            held: Arc::default(),
        })
    }

    /// Models whose weights are on the device: each has one embedding table.
    pub(crate) fn models(&self) -> usize {
        Arc::strong_count(&self.held) - 1
    }
}

/// An embedding table, counted while it is there.
pub(crate) struct Table(Matrix, #[expect(dead_code, reason = "held, not read")] Arc<()>, Duration);

impl Drop for Table {
    fn drop(&mut self) {
        std::thread::sleep(self.2);
    }
}

impl Backend for Tight {
    type Linear = Linear;
    type Table = Table;
    type Vector = Vec<f32>;
    type Rope = Rope;
    type Batch = PackedBatch;
    type Tensor = Matrix;
    type Recording = ();

    fn name(&self) -> String {
        "a small device".to_owned()
    }

    fn numeric_format(&self) -> &'static str {
        "f32"
    }

    fn warm_up_tokens(&self, tokens_max: usize) -> Vec<usize> {
        if self.warms_up.load(Ordering::SeqCst) { vec![7, tokens_max] } else { Vec::new() }
    }

    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    fn memory_bytes_free(&self) -> Option<u64> {
        let full = self.models() >= self.models_max.load(Ordering::SeqCst);
        let bytes = if full { 0 } else { self.bytes_free.load(Ordering::SeqCst) };
        Some(bytes).filter(|&bytes| bytes < u64::MAX)
    }

    fn prepare_linear(&self, parts: &[TensorView<'_>], bias: &[TensorView<'_>]) -> Result<Linear> {
        Reference.prepare_linear(parts, bias)
    }

    fn prepare_table(&self, table: &TensorView<'_>) -> Result<Table> {
        if let Some(fault) = self.load_fault.lock().unwrap().clone() {
            return Err(fault);
        }
        if self.models() >= self.models_max.load(Ordering::SeqCst) {
            return Err(ComputeError::OutOfMemory(format!("{} models are there", self.models())));
        }
        let freeing = Duration::from_millis(self.freeing_ms.load(Ordering::SeqCst));
        Ok(Table(Reference.prepare_table(table)?, self.held.clone(), freeing))
    }

    fn packed_layout(&self) -> Option<String> {
        None
    }

    fn packed_linear(&self, _: &Linear) -> Option<Packed> {
        None
    }

    fn packed_table(&self, _: &Table) -> Option<Packed> {
        None
    }

    fn linear_from(&self, packed: &Packed, _: &[TensorView<'_>]) -> Result<Linear> {
        Err(packed.refused("linear_from"))
    }

    fn table_from(&self, packed: &Packed) -> Result<Table> {
        Err(packed.refused("table_from"))
    }

    fn prepare_vector(&self, vector: &TensorView<'_>) -> Result<Vec<f32>> {
        Reference.prepare_vector(vector)
    }

    fn prepare_rope(&self, theta: f32, dim: usize, positions: usize) -> Result<Rope> {
        Reference.prepare_rope(theta, dim, positions)
    }

    fn upload(&self, batch: &PackedBatch) -> Result<PackedBatch> {
        Reference.upload(batch)
    }

    fn run(
        &self,
        _: &(),
        batch: &PackedBatch,
        forward: &(dyn Fn(&Self::Batch) -> Result<Self::Tensor> + Sync),
    ) -> Result<Vec<f32>> {
        if let Some(fault) = self.run_fault.lock().unwrap().clone() {
            return Err(fault);
        }
        self.ran.lock().unwrap().push(batch.tokens().len());
        self.download(&forward(&self.upload(batch)?)?)
    }

    fn embed(&self, table: &Table, norm: Option<&Norm<Vec<f32>>>, batch: &PackedBatch) -> Result<Matrix> {
        Reference.embed(&table.0, norm, batch)
    }

    fn linear(&self, x: &Matrix, weight: &Linear) -> Result<Matrix> {
        Reference.linear(x, weight)
    }

    fn linear_add(&self, x: &Matrix, weight: &Linear, residual: &mut Matrix) -> Result<()> {
        Reference.linear_add(x, weight, residual)
    }

    fn norm(&self, x: &Matrix, norm: &Norm<Vec<f32>>) -> Result<Matrix> {
        Reference.norm(x, norm)
    }

    fn qk_norm_rope(
        &self,
        qkv: &mut Matrix,
        heads: Heads,
        norms: Option<HeadNorms<'_, Vec<f32>>>,
        rope: &Rope,
        batch: &PackedBatch,
    ) -> Result<()> {
        Reference.qk_norm_rope(qkv, heads, norms, rope, batch)
    }

    fn attention(&self, qkv: &Matrix, heads: Heads, mask: Mask, batch: &PackedBatch) -> Result<Matrix> {
        Reference.attention(qkv, heads, mask, batch)
    }

    fn gated_act(&self, x: &Matrix, activation: Activation) -> Result<Matrix> {
        Reference.gated_act(x, activation)
    }

    fn activation(&self, x: &mut Matrix, activation: Activation) -> Result<()> {
        Reference.activation(x, activation)
    }

    fn pool(&self, x: &Matrix, pooling: Pooling, batch: &PackedBatch) -> Result<Matrix> {
        Reference.pool(x, pooling, batch)
    }

    fn download(&self, x: &Matrix) -> Result<Vec<f32>> {
        Reference.download(x)
    }
}
