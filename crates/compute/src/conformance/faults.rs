//! Backends with one mistake each: the cases must find every one of them.

use super::{Precision, cases, run};
use crate::reference::{Linear, Matrix, Reference, Rope};
use crate::{
    Activation, Backend, HeadNorms, Heads, Mask, Norm, NormKind, Packed, PackedBatch, Pooling, Result, TensorView,
};
use half::bf16;

/// A mistake that some server has made, or well could.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// GELU by its tanh approximation.
    TanhGelu,
    /// A window that excludes its last key.
    NarrowWindow,
    /// A causal mask that is not applied.
    CausalSkipped,
    /// Sequences of equal length taken for one.
    OffsetsLost,
    /// A softmax that does not subtract the maximum.
    NoMaximum,
    /// Query heads that are dealt to the key heads in turn.
    HeadsInterleaved,
    BiasForgotten,
    ResidualOverwritten,
    HeadNormsForgotten,
    PositionsNotReset,
    LayerNormAsRms,
    EpsilonForgotten,
    LastRowIsFirst,
    /// Products stored in bf16.
    Bf16Products,
    /// Token ids that wrap around.
    TokensWrap,
}

struct Faulty(Fault);

impl Faulty {
    fn merged(batch: &PackedBatch) -> PackedBatch {
        PackedBatch::new(&[batch.tokens()]).expect("a batch has tokens")
    }

    fn naive_attention(qkv: &Matrix, heads: Heads, batch: &PackedBatch, key_head: impl Fn(usize) -> usize) -> Vec<f32> {
        let data = Reference.download(qkv).expect("the reference downloads");
        let at = |row: usize, head: usize| &data[row * heads.fused_columns() + head * heads.dim..][..heads.dim];
        let mut out = Vec::new();
        for range in batch.ranges() {
            for row in range.clone() {
                for head in 0..heads.query {
                    let key = heads.query + key_head(head);
                    let weight = |other: usize| {
                        let dot: f32 = at(row, head).iter().zip(at(other, key)).map(|(a, b)| a * b).sum();
                        (dot / (heads.dim as f32).sqrt()).exp()
                    };
                    let weights: Vec<f32> = range.clone().map(weight).collect();
                    let total: f32 = weights.iter().sum();
                    out.extend((0..heads.dim).map(|i| {
                        let values = range.clone().map(|other| at(other, key + heads.key_value)[i]);
                        values.zip(&weights).map(|(value, weight)| value * weight).sum::<f32>() / total
                    }));
                }
            }
        }
        out
    }
}

impl Backend for Faulty {
    type Linear = Linear;
    type Table = Matrix;
    type Vector = Vec<f32>;
    type Rope = Rope;
    type Batch = PackedBatch;
    type Tensor = Matrix;
    type Recording = ();

    fn name(&self) -> String {
        format!("{:?}", self.0)
    }

    fn numeric_format(&self) -> &'static str {
        "f32"
    }

    fn warm_up_tokens(&self, _: usize) -> Vec<usize> {
        Vec::new()
    }

    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    fn memory_bytes_free(&self) -> Option<u64> {
        None
    }

    fn prepare_linear(&self, parts: &[TensorView<'_>], bias: &[TensorView<'_>]) -> Result<Linear> {
        let linear = Reference.prepare_linear(parts, bias)?;
        if self.0 == Fault::BiasForgotten { Reference.prepare_linear(parts, &[]) } else { Ok(linear) }
    }

    fn prepare_table(&self, table: &TensorView<'_>) -> Result<Matrix> {
        Reference.prepare_table(table)
    }

    fn packed_layout(&self) -> Option<String> {
        None
    }

    fn packed_linear(&self, _: &Linear) -> Option<Packed> {
        None
    }

    fn packed_table(&self, _: &Matrix) -> Option<Packed> {
        None
    }

    fn linear_from(&self, packed: &Packed, _: &[TensorView<'_>]) -> Result<Linear> {
        Err(packed.refused("linear_from"))
    }

    fn table_from(&self, packed: &Packed) -> Result<Matrix> {
        Err(packed.refused("table_from"))
    }

    fn prepare_vector(&self, vector: &TensorView<'_>) -> Result<Vec<f32>> {
        Reference.prepare_vector(vector)
    }

    fn prepare_rope(&self, theta: f32, dim: usize, positions: usize) -> Result<Rope> {
        let positions = if self.0 == Fault::PositionsNotReset { 10_000 } else { positions };
        Reference.prepare_rope(theta, dim, positions)
    }

    fn upload(&self, batch: &PackedBatch) -> Result<PackedBatch> {
        Ok(batch.clone())
    }

    fn run(
        &self,
        _: &(),
        batch: &PackedBatch,
        forward: &(dyn Fn(&Self::Batch) -> Result<Self::Tensor> + Sync),
    ) -> Result<Vec<f32>> {
        self.download(&forward(&self.upload(batch)?)?)
    }

    fn embed(&self, table: &Matrix, norm: Option<&Norm<Vec<f32>>>, batch: &PackedBatch) -> Result<Matrix> {
        match Reference.embed(table, norm, batch) {
            Err(_) if self.0 == Fault::TokensWrap => {
                let tokens: Vec<u32> = batch.tokens().iter().map(|_| 0).collect();
                Reference.embed(table, norm, &PackedBatch::new(&[tokens]).expect("a batch has tokens"))
            }
            other => other,
        }
    }

    fn linear(&self, x: &Matrix, weight: &Linear) -> Result<Matrix> {
        let y = Reference.linear(x, weight)?;
        if self.0 != Fault::Bf16Products {
            return Ok(y);
        }
        let data = Reference.download(&y)?;
        let columns = data.len() / y.rows();
        Ok(Matrix::new(y.rows(), columns, data.iter().map(|x| bf16::from_f32(*x).to_f32()).collect()))
    }

    fn linear_add(&self, x: &Matrix, weight: &Linear, residual: &mut Matrix) -> Result<()> {
        if self.0 == Fault::ResidualOverwritten {
            *residual = Reference.linear(x, weight)?;
            return Ok(());
        }
        Reference.linear_add(x, weight, residual)
    }

    fn norm(&self, x: &Matrix, norm: &Norm<Vec<f32>>) -> Result<Matrix> {
        let mut norm = norm.clone();
        match self.0 {
            Fault::LayerNormAsRms => norm.kind = NormKind::Rms,
            Fault::EpsilonForgotten => norm.eps = 0.0,
            _ => {}
        }
        Reference.norm(x, &norm)
    }

    fn qk_norm_rope(
        &self,
        qkv: &mut Matrix,
        heads: Heads,
        norms: Option<HeadNorms<'_, Vec<f32>>>,
        rope: &Rope,
        batch: &PackedBatch,
    ) -> Result<()> {
        let norms = norms.filter(|_| self.0 != Fault::HeadNormsForgotten);
        if self.0 == Fault::PositionsNotReset {
            return Reference.qk_norm_rope(qkv, heads, norms, rope, &Self::merged(batch));
        }
        Reference.qk_norm_rope(qkv, heads, norms, rope, batch)
    }

    fn attention(&self, qkv: &Matrix, heads: Heads, mask: Mask, batch: &PackedBatch) -> Result<Matrix> {
        let exact = Reference.attention(qkv, heads, mask, batch)?;
        let all_equal = batch.ranges().all(|range| range.len() == batch.longest());
        let group = heads.query / heads.key_value;
        match (self.0, mask) {
            (Fault::NarrowWindow, Mask::Window(n)) => {
                Reference.attention(qkv, heads, Mask::Window(n.saturating_sub(1)), batch)
            }
            (Fault::CausalSkipped, Mask::Causal) => Reference.attention(qkv, heads, Mask::Full, batch),
            (Fault::OffsetsLost, _) if all_equal => Reference.attention(qkv, heads, mask, &Self::merged(batch)),
            (Fault::NoMaximum, Mask::Full) => {
                let data = Self::naive_attention(qkv, heads, batch, |head| head / group);
                Ok(Matrix::new(batch.rows(), heads.output_columns(), data))
            }
            (Fault::HeadsInterleaved, Mask::Full) => {
                let data = Self::naive_attention(qkv, heads, batch, |head| head % heads.key_value);
                Ok(Matrix::new(batch.rows(), heads.output_columns(), data))
            }
            _ => Ok(exact),
        }
    }

    fn gated_act(&self, x: &Matrix, activation: Activation) -> Result<Matrix> {
        Reference.gated_act(x, activation)
    }

    fn activation(&self, x: &mut Matrix, activation: Activation) -> Result<()> {
        if (self.0, activation) != (Fault::TanhGelu, Activation::Gelu) {
            return Reference.activation(x, activation);
        }
        let slope = (2.0 / std::f32::consts::PI).sqrt();
        let gelu = |x: f32| 0.5 * x * (1.0 + (slope * (x + 0.044_715 * x * x * x)).tanh());
        let data: Vec<f32> = Reference.download(x)?.into_iter().map(gelu).collect();
        *x = Matrix::new(x.rows(), data.len() / x.rows(), data);
        Ok(())
    }

    fn pool(&self, x: &Matrix, pooling: Pooling, batch: &PackedBatch) -> Result<Matrix> {
        let wrong = self.0 == Fault::LastRowIsFirst && pooling == Pooling::Last;
        Reference.pool(x, if wrong { Pooling::First } else { pooling }, batch)
    }

    fn download(&self, x: &Matrix) -> Result<Vec<f32>> {
        Reference.download(x)
    }
}

/// Whether a case whose name contains `name` finds the fault.
fn is_found(fault: Fault, name: &str, precision: Precision) -> bool {
    let mut cases = cases().into_iter().filter(|case| case.name().contains(name)).peekable();
    assert!(cases.peek().is_some(), "no case is called {name}");
    cases.any(|case| run(&Faulty(fault), &case, precision).is_err())
}

#[test]
fn every_fault_is_found() {
    for (fault, name) in [
        (Fault::TanhGelu, "Gelu 384"),
        (Fault::NarrowWindow, "Window(5)"),
        (Fault::CausalSkipped, "[33, 33, 33] Causal"),
        (Fault::OffsetsLost, "independence Attention"),
        (Fault::NoMaximum, "Full magnitude 12"),
        (Fault::HeadsInterleaved, "attention 6/2x128"),
        (Fault::BiasForgotten, "F32] bias"),
        (Fault::ResidualOverwritten, "F32] add"),
        (Fault::HeadNormsForgotten, "4/4x16 [1, 7, 33] norms"),
        (Fault::PositionsNotReset, "independence QkNormRope"),
        (Fault::LayerNormAsRms, "norm Layer"),
        (Fault::EpsilonForgotten, "norm Rms"),
        (Fault::LastRowIsFirst, "pool Last"),
        (Fault::Bf16Products, "linear 1x17"),
        (Fault::TokensWrap, "misuse TokenOutOfRange"),
    ] {
        assert!(!is_found(Fault::None, name, Precision::F32), "{name} fails without a fault");
        assert!(is_found(fault, name, Precision::F32), "{name} does not find {fault:?}");
    }
}

#[test]
fn a_device_may_store_less_than_f32_if_it_says_so() {
    assert!(!is_found(Fault::Bf16Products, "linear", Precision::BF16));
    assert!(
        is_found(Fault::CausalSkipped, "[33, 33, 33] Causal", Precision::BF16),
        "the allowance hides a missing mask"
    );
}
