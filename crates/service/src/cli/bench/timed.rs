//! A backend that computes as another does, and keeps time of each kind of operation.
//!
//! Only for devices that are done with an operation when it returns.

use nexus_compute::{
    Activation, Backend, HeadNorms, Heads, Mask, Norm, Packed, PackedBatch, Pooling, Result, TensorView,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// A kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Embed,
    Norm,
    Linear,
    Rope,
    Attention,
    Activation,
    Pool,
}

impl Stage {
    pub(super) const ALL: [Self; 7] =
        [Self::Embed, Self::Norm, Self::Linear, Self::Rope, Self::Attention, Self::Activation, Self::Pool];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Norm => "norm",
            Self::Linear => "linear",
            Self::Rope => "rope",
            Self::Attention => "attention",
            Self::Activation => "activation",
            Self::Pool => "pool",
        }
    }
}

#[derive(Default)]
struct Account {
    ns: AtomicU64,
    flops: AtomicU64,
}

/// `inner`, on the clock.
pub(super) struct Timed<B> {
    inner: Arc<B>,
    accounts: [Account; Stage::ALL.len()],
}

/// A prepared layer with its shape.
pub(super) struct Linear<L> {
    inner: L,
    elements: u64,
}

/// Activations with their number of rows.
pub(super) struct Tensor<T> {
    inner: T,
    rows: u64,
}

/// A batch, on the device and as it came.
pub(super) struct Batch<B> {
    inner: B,
    packed: PackedBatch,
}

impl<B: Backend> Timed<B> {
    pub(super) fn new(inner: Arc<B>) -> Self {
        Self { inner, accounts: Default::default() }
    }

    /// Forgets what was counted.
    pub(super) fn reset(&self) {
        for account in &self.accounts {
            account.ns.store(0, Relaxed);
            account.flops.store(0, Relaxed);
        }
    }

    pub(super) fn seconds(&self, stage: Stage) -> f64 {
        self.accounts[stage as usize].ns.load(Relaxed) as f64 / 1e9
    }

    /// Floating-point operations: two for each product that counts, which under a mask are those that are seen.
    pub(super) fn flops(&self, stage: Stage) -> f64 {
        self.accounts[stage as usize].flops.load(Relaxed) as f64
    }

    fn on_clock<R>(&self, stage: Stage, flops: u64, f: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = f();
        let account = &self.accounts[stage as usize];
        account.ns.fetch_add(start.elapsed().as_nanos() as u64, Relaxed);
        account.flops.fetch_add(flops, Relaxed);
        result
    }
}

/// Pairs of a query and a key that it sees.
fn pairs_seen(mask: Mask, batch: &PackedBatch) -> u64 {
    let of_query = |i: usize, tokens: usize| match mask {
        Mask::Causal => i + 1,
        Mask::Full => tokens,
        Mask::Window(n) => (i + n).min(tokens - 1) + 1 - i.saturating_sub(n),
    };
    batch.ranges().map(|range| (0..range.len()).map(|i| of_query(i, range.len()) as u64).sum::<u64>()).sum()
}

impl<B: Backend> Backend for Timed<B> {
    type Linear = Linear<B::Linear>;
    type Table = B::Table;
    type Vector = B::Vector;
    type Rope = B::Rope;
    type Batch = Batch<B::Batch>;
    type Tensor = Tensor<B::Tensor>;
    type Recording = ();

    fn name(&self) -> String {
        self.inner.name()
    }

    fn numeric_format(&self) -> &'static str {
        self.inner.numeric_format()
    }

    fn warm_up_tokens(&self, tokens_max: usize) -> Vec<usize> {
        self.inner.warm_up_tokens(tokens_max)
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.inner.memory_bytes()
    }

    fn memory_bytes_free(&self) -> Option<u64> {
        self.inner.memory_bytes_free()
    }

    fn prepare_linear(&self, parts: &[TensorView<'_>], bias: &[TensorView<'_>]) -> Result<Self::Linear> {
        let elements = parts.iter().map(|part| part.len() as u64).sum();
        Ok(Linear { inner: self.inner.prepare_linear(parts, bias)?, elements })
    }

    fn prepare_table(&self, table: &TensorView<'_>) -> Result<B::Table> {
        self.inner.prepare_table(table)
    }

    fn packed_layout(&self) -> Option<String> {
        None
    }

    fn packed_linear(&self, _: &Self::Linear) -> Option<Packed> {
        None
    }

    fn packed_table(&self, _: &B::Table) -> Option<Packed> {
        None
    }

    fn linear_from(&self, packed: &Packed, _: &[TensorView<'_>]) -> Result<Self::Linear> {
        Err(packed.refused("linear_from"))
    }

    fn table_from(&self, packed: &Packed) -> Result<B::Table> {
        Err(packed.refused("table_from"))
    }

    fn prepare_vector(&self, vector: &TensorView<'_>) -> Result<B::Vector> {
        self.inner.prepare_vector(vector)
    }

    fn prepare_rope(&self, theta: f32, dim: usize, positions: usize) -> Result<B::Rope> {
        self.inner.prepare_rope(theta, dim, positions)
    }

    fn upload(&self, batch: &PackedBatch) -> Result<Self::Batch> {
        Ok(Batch { inner: self.inner.upload(batch)?, packed: batch.clone() })
    }

    fn run(
        &self,
        (): &(),
        batch: &PackedBatch,
        forward: &(dyn Fn(&Self::Batch) -> Result<Self::Tensor> + Sync),
    ) -> Result<Vec<f32>> {
        let recording = B::Recording::default();
        // The device lends its batch, and this backend's own is with one: so it is uploaded again.
        self.inner.run(&recording, batch, &|_| Ok(forward(&self.upload(batch)?)?.inner))
    }

    fn embed(&self, table: &B::Table, norm: Option<&Norm<B::Vector>>, batch: &Self::Batch) -> Result<Self::Tensor> {
        let inner = self.on_clock(Stage::Embed, 0, || self.inner.embed(table, norm, &batch.inner))?;
        Ok(Tensor { inner, rows: batch.packed.rows() as u64 })
    }

    fn linear(&self, x: &Self::Tensor, weight: &Self::Linear) -> Result<Self::Tensor> {
        let flops = 2 * x.rows * weight.elements;
        let inner = self.on_clock(Stage::Linear, flops, || self.inner.linear(&x.inner, &weight.inner))?;
        Ok(Tensor { inner, rows: x.rows })
    }

    fn linear_add(&self, x: &Self::Tensor, weight: &Self::Linear, residual: &mut Self::Tensor) -> Result<()> {
        let flops = 2 * x.rows * weight.elements;
        let residual = &mut residual.inner;
        self.on_clock(Stage::Linear, flops, || self.inner.linear_add(&x.inner, &weight.inner, residual))
    }

    fn norm(&self, x: &Self::Tensor, norm: &Norm<B::Vector>) -> Result<Self::Tensor> {
        let inner = self.on_clock(Stage::Norm, 0, || self.inner.norm(&x.inner, norm))?;
        Ok(Tensor { inner, rows: x.rows })
    }

    fn qk_norm_rope(
        &self,
        qkv: &mut Self::Tensor,
        heads: Heads,
        norms: Option<HeadNorms<'_, B::Vector>>,
        rope: &B::Rope,
        batch: &Self::Batch,
    ) -> Result<()> {
        let qkv = &mut qkv.inner;
        self.on_clock(Stage::Rope, 0, || self.inner.qk_norm_rope(qkv, heads, norms, rope, &batch.inner))
    }

    fn attention(&self, qkv: &Self::Tensor, heads: Heads, mask: Mask, batch: &Self::Batch) -> Result<Self::Tensor> {
        let flops = 4 * pairs_seen(mask, &batch.packed) * (heads.query * heads.dim) as u64;
        let attend = || self.inner.attention(&qkv.inner, heads, mask, &batch.inner);
        let inner = self.on_clock(Stage::Attention, flops, attend)?;
        Ok(Tensor { inner, rows: qkv.rows })
    }

    fn gated_act(&self, x: &Self::Tensor, activation: Activation) -> Result<Self::Tensor> {
        let inner = self.on_clock(Stage::Activation, 0, || self.inner.gated_act(&x.inner, activation))?;
        Ok(Tensor { inner, rows: x.rows })
    }

    fn activation(&self, x: &mut Self::Tensor, activation: Activation) -> Result<()> {
        self.on_clock(Stage::Activation, 0, || self.inner.activation(&mut x.inner, activation))
    }

    fn pool(&self, x: &Self::Tensor, pooling: Pooling, batch: &Self::Batch) -> Result<Self::Tensor> {
        let inner = self.on_clock(Stage::Pool, 0, || self.inner.pool(&x.inner, pooling, &batch.inner))?;
        Ok(Tensor { inner, rows: batch.packed.sequences() as u64 })
    }

    fn download(&self, x: &Self::Tensor) -> Result<Vec<f32>> {
        self.inner.download(&x.inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nexus_compute::DType;
    use nexus_compute::reference::Reference;

    #[test]
    fn counts_what_is_computed() {
        let timed = Timed::new(Arc::new(Reference));
        let values: Vec<u8> = (0..12).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let view = TensorView::new(DType::F32, &[3, 4], &values).unwrap();
        let weight = timed.prepare_linear(&[view], &[]).unwrap();
        let table = timed.prepare_table(&view).unwrap();
        let batch = PackedBatch::new(&[vec![0, 1], vec![2]]).unwrap();
        let rows = timed.run(&(), &batch, &|batch| timed.linear(&timed.embed(&table, None, batch)?, &weight)).unwrap();
        assert_eq!(rows.len(), 9);
        assert_eq!(timed.flops(Stage::Linear), (2 * 3 * 12) as f64);
        assert!(timed.seconds(Stage::Linear) > 0.0 && timed.seconds(Stage::Norm) == 0.0);
        timed.reset();
        assert_eq!(timed.flops(Stage::Linear), 0.0);
    }

    #[test]
    fn pairs_are_those_that_the_mask_shows() {
        let batch = PackedBatch::new(&[vec![0; 4], vec![0; 2]]).unwrap();
        assert_eq!(pairs_seen(Mask::Full, &batch), 16 + 4);
        assert_eq!(pairs_seen(Mask::Causal, &batch), 10 + 3);
        assert_eq!(pairs_seen(Mask::Window(1), &batch), 10 + 4);
    }
}
