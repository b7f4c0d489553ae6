//! A backend that computes as another does, until it is told to fail.
//!
//! Deliberately absent: a failure of the hardware. What follows here is what follows when a device reports one.

use nexus_compute::{
    Activation, Backend, ComputeError, HeadNorms, Heads, Mask, Norm, Packed, PackedBatch, Pooling, Result, TensorView,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// When a device fails, and when it did.
#[derive(Debug, Default)]
pub(super) struct Fault(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Forward passes that still succeed; `None` is any number.
    passes_left: Option<usize>,
    failed_at: Option<Instant>,
}

impl Fault {
    /// After so many more forward passes, all fail.
    pub(super) fn arm(&self, passes: usize) {
        self.state().passes_left = Some(passes);
    }

    /// When the first forward pass failed.
    pub(super) fn failed_at(&self) -> Option<Instant> {
        self.state().failed_at
    }

    fn pass(&self) -> Result<()> {
        let mut state = self.state();
        match &mut state.passes_left {
            None => Ok(()),
            Some(0) => {
                state.failed_at.get_or_insert_with(Instant::now);
                Err(ComputeError::Device("made to fail, to see what follows".to_owned()))
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `inner`, with a fault if there is one.
pub(super) struct Faulty<B> {
    pub(super) inner: Arc<B>,
    pub(super) fault: Option<Arc<Fault>>,
}

impl<B: Backend> Backend for Faulty<B> {
    type Linear = B::Linear;
    type Table = B::Table;
    type Vector = B::Vector;
    type Rope = B::Rope;
    type Batch = B::Batch;
    type Tensor = B::Tensor;
    type Recording = B::Recording;

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

    fn prepare_linear(&self, parts: &[TensorView<'_>], bias: &[TensorView<'_>]) -> Result<B::Linear> {
        self.inner.prepare_linear(parts, bias)
    }

    fn prepare_table(&self, table: &TensorView<'_>) -> Result<B::Table> {
        self.inner.prepare_table(table)
    }

    fn packed_layout(&self) -> Option<String> {
        self.inner.packed_layout()
    }

    fn packed_linear(&self, weight: &B::Linear) -> Option<Packed> {
        self.inner.packed_linear(weight)
    }

    fn packed_table(&self, table: &B::Table) -> Option<Packed> {
        self.inner.packed_table(table)
    }

    fn linear_from(&self, packed: &Packed, bias: &[TensorView<'_>]) -> Result<B::Linear> {
        self.inner.linear_from(packed, bias)
    }

    fn table_from(&self, packed: &Packed) -> Result<B::Table> {
        self.inner.table_from(packed)
    }

    fn prepare_vector(&self, vector: &TensorView<'_>) -> Result<B::Vector> {
        self.inner.prepare_vector(vector)
    }

    fn prepare_rope(&self, theta: f32, dim: usize, positions: usize) -> Result<B::Rope> {
        self.inner.prepare_rope(theta, dim, positions)
    }

    fn upload(&self, batch: &PackedBatch) -> Result<B::Batch> {
        self.inner.upload(batch)
    }

    fn run(
        &self,
        recording: &B::Recording,
        batch: &PackedBatch,
        forward: &(dyn Fn(&B::Batch) -> Result<B::Tensor> + Sync),
    ) -> Result<Vec<f32>> {
        self.fault.as_deref().map_or(Ok(()), Fault::pass)?;
        self.inner.run(recording, batch, forward)
    }

    fn embed(&self, table: &B::Table, norm: Option<&Norm<B::Vector>>, batch: &B::Batch) -> Result<B::Tensor> {
        self.inner.embed(table, norm, batch)
    }

    fn linear(&self, x: &B::Tensor, weight: &B::Linear) -> Result<B::Tensor> {
        self.inner.linear(x, weight)
    }

    fn linear_add(&self, x: &B::Tensor, weight: &B::Linear, residual: &mut B::Tensor) -> Result<()> {
        self.inner.linear_add(x, weight, residual)
    }

    fn norm(&self, x: &B::Tensor, norm: &Norm<B::Vector>) -> Result<B::Tensor> {
        self.inner.norm(x, norm)
    }

    fn qk_norm_rope(
        &self,
        qkv: &mut B::Tensor,
        heads: Heads,
        norms: Option<HeadNorms<'_, B::Vector>>,
        rope: &B::Rope,
        batch: &B::Batch,
    ) -> Result<()> {
        self.inner.qk_norm_rope(qkv, heads, norms, rope, batch)
    }

    fn attention(&self, qkv: &B::Tensor, heads: Heads, mask: Mask, batch: &B::Batch) -> Result<B::Tensor> {
        self.inner.attention(qkv, heads, mask, batch)
    }

    fn gated_act(&self, x: &B::Tensor, activation: Activation) -> Result<B::Tensor> {
        self.inner.gated_act(x, activation)
    }

    fn activation(&self, x: &mut B::Tensor, activation: Activation) -> Result<()> {
        self.inner.activation(x, activation)
    }

    fn pool(&self, x: &B::Tensor, pooling: Pooling, batch: &B::Batch) -> Result<B::Tensor> {
        self.inner.pool(x, pooling, batch)
    }

    fn download(&self, x: &B::Tensor) -> Result<Vec<f32>> {
        self.inner.download(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fails_after_so_many_passes_and_for_good() {
        let fault = Fault::default();
        for _ in 0..10 {
            fault.pass().unwrap();
        }
        fault.arm(2);
        assert!(fault.pass().is_ok() && fault.pass().is_ok() && fault.failed_at().is_none());
        assert!(fault.pass().unwrap_err().is_device_failure());
        let at = fault.failed_at().unwrap();
        assert!(fault.pass().is_err());
        assert_eq!(fault.failed_at(), Some(at));
    }
}
