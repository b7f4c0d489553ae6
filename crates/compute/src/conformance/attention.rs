//! Rotary embedding and attention, and that a sequence's neighbours do not matter.

use super::data::{Random, Stored, batch, place};
use super::rows::norm_of;
use super::{Failure, Report, compare, row_magnitudes};
use crate::reference::Reference;
use crate::{Backend, DType, Heads, Mask, NormKind, Pooling};

#[derive(Clone, Debug)]
pub(super) struct RopeCase {
    pub(super) heads: Heads,
    pub(super) lengths: Vec<usize>,
    pub(super) norms: bool,
    pub(super) theta: f32,
}

impl RopeCase {
    pub(super) fn run<B: Backend>(&self, backend: &B, relative: f64) -> Result<Report, Failure> {
        let batch = batch(&self.lengths);
        let columns = self.heads.fused_columns();
        let values = Random::new(6).floats(batch.rows() * columns, 2.0);
        let (mut x, mut exact_x) = place(backend, columns, &values)?;
        rotate(backend, self, &mut x, &batch)?;
        rotate(&Reference, self, &mut exact_x, &batch)?;
        let want = Reference.download(&exact_x)?;
        compare(&backend.download(&x)?, &want, relative, row_magnitudes(&want, columns, 1.0))
    }
}

fn rotate<B: Backend>(
    backend: &B,
    case: &RopeCase,
    x: &mut B::Tensor,
    batch: &crate::PackedBatch,
) -> crate::Result<()> {
    let mut random = Random::new(7);
    let dim = case.heads.dim;
    let rope = backend.prepare_rope(case.theta, dim, batch.longest())?;
    let query = norm_of(backend, NormKind::Rms, &Stored::random(&mut random, DType::F32, &[dim]), None)?;
    let key = norm_of(backend, NormKind::Rms, &Stored::random(&mut random, DType::F32, &[dim]), None)?;
    let norms = case.norms.then_some((&query, &key));
    backend.qk_norm_rope(x, case.heads, norms, &rope, &backend.upload(batch)?)
}

#[derive(Clone, Debug)]
pub(super) struct AttentionCase {
    pub(super) heads: Heads,
    pub(super) lengths: Vec<usize>,
    pub(super) mask: Mask,
    /// Magnitude of queries and keys; values are within 1.
    pub(super) magnitude: f32,
}

impl AttentionCase {
    pub(super) fn run<B: Backend>(&self, backend: &B, relative: f64) -> Result<Report, Failure> {
        let batch = batch(&self.lengths);
        let values = projection(&mut Random::new(8), self.heads, batch.rows(), self.magnitude);
        let (qkv, exact_qkv) = place(backend, self.heads.fused_columns(), &values)?;
        let got = backend.attention(&qkv, self.heads, self.mask, &backend.upload(&batch)?)?;
        let want = Reference.download(&Reference.attention(&exact_qkv, self.heads, self.mask, &batch)?)?;
        // A result is a mean of values within 1.
        compare(&backend.download(&got)?, &want, relative, |_| 1.0)
    }
}

/// Rows of a fused projection.
fn projection(random: &mut Random, heads: Heads, rows: usize, magnitude: f32) -> Vec<f32> {
    let rotated = (heads.query + heads.key_value) * heads.dim;
    let columns = heads.fused_columns();
    (0..rows * columns).map(|i| random.float(if i % columns < rotated { magnitude } else { 1.0 })).collect()
}

/// What an independence case runs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Attention(Mask),
    QkNormRope,
    Pool(Pooling),
}

/// A sequence gives the same rows alone, among sequences of other lengths, and among sequences of its own length.
#[derive(Clone, Debug)]
pub(super) struct IndependenceCase {
    pub(super) op: Op,
}

impl IndependenceCase {
    const HEADS: Heads = Heads { query: 4, key_value: 2, dim: 32 };
    const TOKENS: usize = 37;

    pub(super) fn run<B: Backend>(&self, backend: &B, relative: f64) -> Result<Report, Failure> {
        let alone = self.among(backend, &[], &[])?;
        let mut report = Report::default();
        for (before, after) in [([5, 80].as_slice(), [1, 50].as_slice()), (&[Self::TOKENS; 2], &[Self::TOKENS; 3])] {
            let among = self.among(backend, before, after)?;
            report.worst = report.worst.max(compare(&among, &alone, relative, |_| 1.0)?.worst);
        }
        Ok(report)
    }

    /// The rows of the sequence when sequences of these lengths lie `before` and `after` it.
    fn among<B: Backend>(&self, backend: &B, before: &[usize], after: &[usize]) -> Result<Vec<f32>, Failure> {
        let mut neighbours = Random::new(9 + before.len() as u64);
        let rows = |random: &mut Random, lengths: &[usize]| projection(random, Self::HEADS, lengths.iter().sum(), 1.0);
        let mut values = rows(&mut neighbours, before);
        values.extend(rows(&mut Random::new(10), &[Self::TOKENS]));
        values.extend(rows(&mut neighbours, after));
        let batch = batch(&[before, &[Self::TOKENS], after].concat());

        let columns = Self::HEADS.fused_columns();
        let (mut x, _) = place(backend, columns, &values)?;
        let uploaded = backend.upload(&batch)?;
        let (out, out_columns) = match self.op {
            Op::Attention(mask) => (backend.attention(&x, Self::HEADS, mask, &uploaded)?, Self::HEADS.output_columns()),
            Op::QkNormRope => {
                let case = RopeCase { heads: Self::HEADS, lengths: Vec::new(), norms: true, theta: 10_000.0 };
                rotate(backend, &case, &mut x, &batch)?;
                (x, columns)
            }
            Op::Pool(pooling) => {
                let out = backend.download(&backend.pool(&x, pooling, &uploaded)?)?;
                return Ok(out[before.len() * columns..(before.len() + 1) * columns].to_vec());
            }
        };
        let first = before.iter().sum::<usize>() * out_columns;
        Ok(backend.download(&out)?[first..first + Self::TOKENS * out_columns].to_vec())
    }
}
