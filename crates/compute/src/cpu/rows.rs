//! What is done to each row by itself: norms, rotary position embedding, activations, pooling.

use super::pool::Pool;
use super::simd::{Kernel, Level, Simd, math};
use crate::rope::RopeTable;
use crate::{Activation, HeadNorms, Heads, Norm, NormKind, Pooling};
use std::ops::Range;

/// Floats that a thread passes over in a nanosecond, about, when little is done to each.
const FLOATS_PER_NS: usize = 8;

/// Floats whose activation a thread computes in a nanosecond, about.
const ACTIVATIONS_PER_NS: usize = 2;

/// Normalizes the rows of `x` into `out`.
pub(crate) fn norm(level: Level, pool: &Pool, x: &[f32], out: &mut [f32], norm: &Norm<Vec<f32>>) {
    let columns = norm.weight.len();
    let total_ns = x.len() / FLOATS_PER_NS;
    let rows = pool.rows_per_item(x.len() / columns, columns / FLOATS_PER_NS);
    let items = x.chunks(rows * columns).zip(out.chunks_mut(rows * columns));
    pool.for_each(total_ns, items, |(x, out)| level.run(NormRows { x, out, norm }));
}

struct NormRows<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
    norm: &'a Norm<Vec<f32>>,
}

impl Kernel for NormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let columns = self.norm.weight.len();
        for (x, out) in self.x.chunks_exact(columns).zip(self.out.chunks_exact_mut(columns)) {
            // A row stays in the first-level cache meanwhile: memory is passed over once.
            out.copy_from_slice(x);
            normalize(s, out, self.norm);
        }
    }
}

/// The rotation of queries and keys, with the norms before it.
pub(crate) struct QkNormRope<'a> {
    pub(crate) heads: Heads,
    pub(crate) norms: Option<HeadNorms<'a, Vec<f32>>>,
    pub(crate) rope: &'a RopeTable,
    /// Position of every row within its sequence.
    pub(crate) positions: &'a [usize],
}

impl QkNormRope<'_> {
    /// Works on `qkv` in place, one row a position.
    pub(crate) fn apply(&self, level: Level, pool: &Pool, qkv: &mut [f32]) {
        let columns = self.heads.fused_columns();
        let total_ns = qkv.len() / FLOATS_PER_NS;
        let rows = pool.rows_per_item(self.positions.len(), columns / FLOATS_PER_NS);
        let items = qkv.chunks_mut(rows * columns).zip(self.positions.chunks(rows));
        pool.for_each(total_ns, items, |(rows, positions)| level.run(QkNormRopeRows { rows, positions, op: self }));
    }
}

struct QkNormRopeRows<'a> {
    rows: &'a mut [f32],
    positions: &'a [usize],
    op: &'a QkNormRope<'a>,
}

impl Kernel for QkNormRopeRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let heads = self.op.heads;
        for (row, &position) in self.rows.chunks_exact_mut(heads.fused_columns()).zip(self.positions) {
            let (cos, sin) = self.op.rope.at(position);
            let (queries, others) = row.split_at_mut(heads.query * heads.dim);
            let (keys, _values) = others.split_at_mut(heads.key_value * heads.dim);
            for head in queries.chunks_exact_mut(heads.dim) {
                if let Some((norm, _)) = self.op.norms {
                    normalize(s, head, norm);
                }
                rotate(s, head, cos, sin);
            }
            for head in keys.chunks_exact_mut(heads.dim) {
                if let Some((_, norm)) = self.op.norms {
                    normalize(s, head, norm);
                }
                rotate(s, head, cos, sin);
            }
        }
    }
}

#[inline(always)]
fn normalize<S: Simd>(s: S, row: &mut [f32], norm: &Norm<Vec<f32>>) {
    let columns = row.len() as f32;
    let mean = match norm.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => sum(s, row) / columns,
    };
    let variance = sum_of_squares(s, row, mean) / columns;
    let (mean, scale) = (s.splat(mean), s.splat(1.0 / (variance + norm.eps).sqrt()));
    let (row, weight) = (row.chunks_mut(S::LANES), norm.weight.chunks(S::LANES));
    match &norm.bias {
        None => {
            for (x, weight) in row.zip(weight) {
                let y = s.mul(s.sub(load(s, x), mean), scale);
                store(s, s.mul(y, load(s, weight)), x);
            }
        }
        Some(bias) => {
            for ((x, weight), bias) in row.zip(weight).zip(bias.chunks(S::LANES)) {
                let y = s.mul(s.sub(load(s, x), mean), scale);
                store(s, s.mul_add(y, load(s, weight), load(s, bias)), x);
            }
        }
    }
}

#[inline(always)]
fn rotate<S: Simd>(s: S, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(head.len() / 2);
    let halves = first.chunks_mut(S::LANES).zip(second.chunks_mut(S::LANES));
    for ((first, second), (cos, sin)) in halves.zip(cos.chunks(S::LANES).zip(sin.chunks(S::LANES))) {
        let (a, b, cos, sin) = (load(s, first), load(s, second), load(s, cos), load(s, sin));
        store(s, s.sub(s.mul(a, cos), s.mul(b, sin)), first);
        store(s, s.mul_add(b, cos, s.mul(a, sin)), second);
    }
}

/// Applies `activation` to every float of `data`.
pub(crate) fn activate(level: Level, pool: &Pool, data: &mut [f32], activation: Activation) {
    let total_ns = data.len() / ACTIVATIONS_PER_NS;
    let floats = pool.rows_per_item(data.len().div_ceil(64), 64 / ACTIVATIONS_PER_NS) * 64;
    pool.for_each(total_ns, data.chunks_mut(floats), |values| level.run(Activate { values, activation }));
}

struct Activate<'a> {
    values: &'a mut [f32],
    activation: Activation,
}

impl Kernel for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for values in self.values.chunks_mut(S::LANES) {
            let x = load(s, values);
            let y = match self.activation {
                Activation::Silu => math::silu(s, x),
                Activation::Gelu => math::gelu(s, x),
            };
            store(s, y, values);
        }
    }
}

/// `out = activation(first half) * second half` of each row of `x`, which has twice the `columns` of `out`.
pub(crate) fn gated(level: Level, pool: &Pool, x: &[f32], out: &mut [f32], columns: usize, activation: Activation) {
    let total_ns = out.len() / ACTIVATIONS_PER_NS;
    let rows = pool.rows_per_item(out.len() / columns, columns / ACTIVATIONS_PER_NS);
    let items = x.chunks(rows * 2 * columns).zip(out.chunks_mut(rows * columns));
    pool.for_each(total_ns, items, |(x, out)| level.run(GatedRows { x, out, columns, activation }));
}

struct GatedRows<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
    columns: usize,
    activation: Activation,
}

impl Kernel for GatedRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, out) in self.x.chunks_exact(2 * self.columns).zip(self.out.chunks_exact_mut(self.columns)) {
            let (gate, up) = x.split_at(self.columns);
            let parts = gate.chunks(S::LANES).zip(up.chunks(S::LANES));
            for ((gate, up), out) in parts.zip(out.chunks_mut(S::LANES)) {
                let gate = load(s, gate);
                let gate = match self.activation {
                    Activation::Silu => math::silu(s, gate),
                    Activation::Gelu => math::gelu(s, gate),
                };
                store(s, s.mul(gate, load(s, up)), out);
            }
        }
    }
}

/// One row of `out` for each of `sequences`, ranges of the rows of `x`.
pub(crate) fn pool(
    pool: &Pool,
    x: &[f32],
    columns: usize,
    pooling: Pooling,
    sequences: impl ExactSizeIterator<Item = Range<usize>> + Send,
    out: &mut [f32],
) {
    let row = |row: usize| &x[row * columns..(row + 1) * columns];
    let total_ns = if pooling == Pooling::Mean { x.len() / FLOATS_PER_NS } else { 0 };
    pool.for_each(total_ns, sequences.zip(out.chunks_exact_mut(columns)), |(range, out)| match pooling {
        Pooling::First => out.copy_from_slice(row(range.start)),
        Pooling::Last => out.copy_from_slice(row(range.end - 1)),
        Pooling::Mean => {
            // Thousands of rows add up here, and it happens once a text: f64 costs nothing that shows.
            let mut sums = vec![0.0f64; columns];
            let count = range.len() as f64;
            for index in range {
                sums.iter_mut().zip(row(index)).for_each(|(sum, &x)| *sum += f64::from(x));
            }
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out = (sum / count) as f32);
        }
    });
}

/// Loads a chunk that may be shorter than a vector.
#[inline(always)]
pub(crate) fn load<S: Simd>(s: S, chunk: &[f32]) -> S::Vector {
    if chunk.len() >= S::LANES { s.load(chunk) } else { s.load_part(chunk, 0.0) }
}

/// Stores a chunk that may be shorter than a vector.
#[inline(always)]
pub(crate) fn store<S: Simd>(s: S, x: S::Vector, chunk: &mut [f32]) {
    if chunk.len() >= S::LANES { s.store(x, chunk) } else { s.store_part(x, chunk) }
}

/// Sums kept apart, so that one does not wait for another, and fewer roundings fall on each.
const SUMS: usize = 4;

#[inline(always)]
fn sum<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut sums = [s.splat(0.0); SUMS];
    for group in x.chunks(SUMS * S::LANES) {
        for (chunk, sum) in group.chunks(S::LANES).zip(&mut sums) {
            *sum = s.add(*sum, load(s, chunk));
        }
    }
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}

/// Sum of `(x - center)^2`.
#[inline(always)]
fn sum_of_squares<S: Simd>(s: S, x: &[f32], center: f32) -> f32 {
    let mut sums = [s.splat(0.0); SUMS];
    let center_lanes = s.splat(center);
    let groups = x.chunks_exact(SUMS * S::LANES);
    let rest = groups.remainder();
    for group in groups {
        for (i, sum) in sums.iter_mut().enumerate() {
            let d = s.sub(s.load(&group[i * S::LANES..]), center_lanes);
            *sum = s.mul_add(d, d, *sum);
        }
    }
    let vectors = rest.chunks_exact(S::LANES);
    let tail = vectors.remainder();
    for (chunk, sum) in vectors.zip(&mut sums) {
        let d = s.sub(s.load(chunk), center_lanes);
        *sum = s.mul_add(d, d, *sum);
    }
    let mut total = s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])));
    for x in tail {
        total += (x - center) * (x - center);
    }
    total
}
