//! Scaled dot-product attention within each sequence, over blocks of keys with a running softmax.
//!
//! Memory does not grow with the square of a text's length: a task holds the scores of one block of queries against
//! one block of keys, and corrects what it has summed whenever a later block has a larger maximum (Milakov and
//! Gimelshein 2018, <https://arxiv.org/abs/1805.02867>; Dao et al. 2022, <https://arxiv.org/abs/2205.14135>). Both
//! products go through the panels of [`super::gemm`], so keys and values are packed first, once a head and sequence.
//!
//! The query heads that share a key head form one block of rows.

use super::buffer::{Workspace, with_scratch};
use super::gemm::MULTIPLY_ADDS_PER_NS;
use super::gemm::kernel::{BLOCK_DEPTH, Floats, PanelProduct, ROW_STRIDE, panel_columns};
use super::pool::Pool;
use super::rows::{load, store};
use super::simd::{Kernel, Level, Simd, math};
use super::tile::TileMut;
use crate::{Heads, Mask, PackedBatch};
use bytemuck::{Pod, Zeroable};
use std::ops::Range;

/// The widest head: its row must fit a block of the product.
pub(crate) const HEAD_DIM_MAX: usize = BLOCK_DEPTH;

/// Rows of a block of queries: whole register tiles of every instruction set.
const BLOCK_ROWS: usize = 72;

/// Keys whose scores are computed at a time; a multiple of every panel's width, and no more than a block is deep.
const BLOCK_KEYS: usize = 256;

/// Attention over a fused projection.
pub(crate) struct Attention<'a> {
    pub(crate) level: Level,
    pub(crate) pool: &'a Pool,
    pub(crate) workspace: &'a Workspace,
    pub(crate) heads: Heads,
    pub(crate) mask: Mask,
    pub(crate) batch: &'a PackedBatch,
    /// `[rows, heads.fused_columns()]`.
    pub(crate) qkv: &'a [f32],
}

impl Attention<'_> {
    /// Fills `out` of `[rows, heads.output_columns()]`.
    pub(crate) fn run(&self, out: &mut [f32]) {
        let Heads { query, key_value, dim } = self.heads;
        let group = query / key_value;
        let packing = Packing { dim, columns: panel_columns(self.level.lanes()) };

        // Which parts and blocks there are is worked out as they are handed to the threads: a list of them would be
        // allocated anew in every layer.
        let words = |tokens: usize| packing.key_words(tokens) + packing.value_words(tokens);
        let mut packed = self.workspace.take(self.batch.ranges().map(|r| key_value * words(r.len())).sum());
        let mut rest = packed.as_mut_slice();
        let parts = self.batch.ranges().flat_map(|sequence| (0..key_value).map(move |head| (sequence.clone(), head)));
        let parts = parts.map(|(sequence, head)| {
            let (part, others) = std::mem::take(&mut rest).split_at_mut(words(sequence.len()));
            rest = others;
            (sequence, head, part)
        });
        let parts = Counted { items: parts, left: self.batch.sequences() * key_value };
        self.pool.for_each(self.qkv.len(), parts, |(sequence, head, part)| {
            let (keys, values) = part.split_at_mut(packing.key_words(sequence.len()));
            self.level.run(PackKeys { packing, rows: self.head_rows(&sequence, query + head), panels: keys });
            packing.pack_values(self.head_rows(&sequence, query + key_value + head).rows(), sequence.len(), values);
        });

        let block_queries = (BLOCK_ROWS / group).max(1);
        let count = |tokens: usize| tokens.div_ceil(block_queries);
        let queries_of = |block: usize, tokens: usize| {
            let count = count(tokens);
            block * tokens / count..(block + 1) * tokens / count
        };
        let (mut left, mut multiply_adds) = (0, 0);
        for tokens in self.batch.ranges().map(|sequence| sequence.len()) {
            left += count(tokens) * key_value;
            for queries in (0..count(tokens)).map(|block| queries_of(block, tokens)) {
                multiply_adds += 2 * queries.len() * visible(self.mask, &queries, tokens).len() * query * dim;
            }
        }
        // Under a causal mask the last blocks are the longest: they go first, so that none is left over at the end.
        let mut packed = packed.as_slice();
        let mut rows_left = TileMut::new(out, self.batch.rows(), self.heads.output_columns());
        let blocks = self.batch.ranges().rev().flat_map(|sequence| {
            let tokens = sequence.len();
            let (others, parts) = packed.split_at(packed.len() - key_value * words(tokens));
            packed = others;
            let above = rows_left.rows() - tokens;
            let (above, mut rows) = rows_left.take().split_rows(above);
            rows_left = above;
            (0..count(tokens)).rev().flat_map(move |block| {
                let queries = queries_of(block, tokens);
                let (above, mut right) = rows.take().split_rows(queries.start);
                rows = above;
                let sequence = sequence.clone();
                parts.chunks_exact(words(tokens)).enumerate().map(move |(head, part)| {
                    let (out, others) = right.take().split_columns(group * dim);
                    right = others;
                    let (keys, values) = part.split_at(packing.key_words(tokens));
                    let (sequence, queries) = (sequence.clone(), queries.clone());
                    Block { op: self, sequence, head, queries, keys, values, out }
                })
            })
        });
        let blocks = Counted { items: blocks, left };
        self.pool.for_each(multiply_adds / MULTIPLY_ADDS_PER_NS, blocks, |block| self.level.run(block));
    }

    /// The rows of head `index` (queries, then keys, then values) in `sequence`.
    fn head_rows(&self, sequence: &Range<usize>, index: usize) -> HeadRows<'_> {
        let Heads { dim, .. } = self.heads;
        let columns = self.heads.fused_columns();
        HeadRows { floats: &self.qkv[sequence.start * columns + index * dim..sequence.end * columns], columns, dim }
    }
}

/// Rows of one head within a fused projection.
#[derive(Clone, Copy)]
struct HeadRows<'a> {
    /// From the first row's first float.
    floats: &'a [f32],
    /// Floats from one row to the next.
    columns: usize,
    dim: usize,
}

impl<'a> HeadRows<'a> {
    fn rows(self) -> impl ExactSizeIterator<Item = &'a [f32]> {
        self.floats.chunks(self.columns).map(move |row| &row[..self.dim])
    }
}

/// Items of which it is known how many there are.
struct Counted<I> {
    items: I,
    left: usize,
}

impl<I: Iterator> Iterator for Counted<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        self.left = self.left.saturating_sub(1);
        self.items.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<I: Iterator> ExactSizeIterator for Counted<I> {}

/// Which keys at least one of `queries` sees, in a sequence of `tokens`.
fn visible(mask: Mask, queries: &Range<usize>, tokens: usize) -> Range<usize> {
    match mask {
        Mask::Causal => 0..queries.end,
        Mask::Full => 0..tokens,
        Mask::Window(n) => queries.start.saturating_sub(n)..queries.end.saturating_add(n).min(tokens),
    }
}

/// How keys and values lie in memory: as right operands of the two products.
#[derive(Clone, Copy)]
struct Packing {
    dim: usize,
    /// Columns of a panel.
    columns: usize,
}

impl Packing {
    fn key_words(self, tokens: usize) -> usize {
        tokens.div_ceil(self.columns) * self.dim * self.columns
    }

    fn value_words(self, tokens: usize) -> usize {
        self.dim.div_ceil(self.columns) * tokens * self.columns
    }

    /// Values stay rows, cut into panels: `[dim / columns][tokens][columns]`.
    fn pack_values<'a>(self, rows: impl Iterator<Item = &'a [f32]>, tokens: usize, panels: &mut [f32]) {
        for (token, row) in rows.enumerate() {
            for (i, part) in row.chunks(self.columns).enumerate() {
                panels[(i * tokens + token) * self.columns..][..part.len()].copy_from_slice(part);
            }
        }
    }
}

/// Keys become columns: `[tokens / columns][dim][columns]`. What is left of the last panel is not written: its scores
/// are computed, but never read.
struct PackKeys<'a> {
    packing: Packing,
    rows: HeadRows<'a>,
    panels: &'a mut [f32],
}

impl Kernel for PackKeys<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Packing { dim, columns } = self.packing;
        let HeadRows { floats, columns: stride, .. } = self.rows;
        let tokens = floats.len().div_ceil(stride);
        for first in (0..tokens).step_by(S::LANES) {
            let panel = &mut self.panels[first / columns * dim * columns + first % columns..];
            let rows = &floats[first * stride..];
            let whole = if first + S::LANES <= tokens { dim / S::LANES * S::LANES } else { 0 };
            for at in (0..whole).step_by(S::LANES) {
                s.transpose(&rows[at..], stride, &mut panel[at * columns..], columns);
            }
            for (token, row) in rows.chunks(stride).take(S::LANES).enumerate() {
                for at in whole..dim {
                    panel[at * columns + token] = row[at];
                }
            }
        }
    }
}

/// One block of queries of the heads that share a key head.
struct Block<'a> {
    op: &'a Attention<'a>,
    sequence: Range<usize>,
    /// The key head.
    head: usize,
    /// Positions within the sequence.
    queries: Range<usize>,
    keys: &'a [f32],
    values: &'a [f32],
    /// `[queries, group * dim]`.
    out: TileMut<'a>,
}

/// The running softmax of one row.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Softmax {
    max: f32,
    sum: f32,
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let Heads { query, key_value, dim } = self.op.heads;
        let group = query / key_value;
        let count = self.queries.len();
        let rows = group * count;
        with_scratch(3 * rows * ROW_STRIDE + 2 * rows, |scratch| {
            let (left, others) = scratch.split_at_mut(rows * ROW_STRIDE);
            let (scores, others) = others.split_at_mut(rows * ROW_STRIDE);
            let (sums, state) = others.split_at_mut(rows * ROW_STRIDE);
            let state: &mut [Softmax] = bytemuck::cast_slice_mut(state);
            // Finite, so that a row which sees no key of the first block does not subtract infinities.
            state.fill(Softmax { max: f32::MIN, sum: 0.0 });
            s.vectorize(Gather { block: &self, left });

            let keys = visible(self.op.mask, &self.queries, self.sequence.len());
            let columns = panel_columns(S::LANES);
            let first = keys.start / columns * columns;
            for start in (first..keys.end).step_by(BLOCK_KEYS) {
                let range = start..keys.end.min(start + BLOCK_KEYS);
                let mut scores_tile = TileMut::new(scores, rows, ROW_STRIDE);
                for column in range.clone().step_by(columns) {
                    s.vectorize(PanelProduct::<Floats> {
                        a: left,
                        depth: dim,
                        panel: &self.keys[column * dim..(column + columns) * dim],
                        scales: None,
                        bias: None,
                        accumulate: false,
                        out: scores_tile.columns_mut(column - start..column - start + columns),
                    });
                }
                s.vectorize(Weigh { block: &self, keys: range.clone(), scores, state, sums });
                let mut sums_tile = TileMut::new(sums, rows, ROW_STRIDE);
                for (i, column) in (0..dim).step_by(columns).enumerate() {
                    let row = i * self.sequence.len() + start;
                    s.vectorize(PanelProduct::<Floats> {
                        a: scores,
                        depth: range.len(),
                        panel: &self.values[row * columns..(row + range.len()) * columns],
                        scales: None,
                        bias: None,
                        accumulate: start > first,
                        out: sums_tile.columns_mut(column..dim.min(column + columns)),
                    });
                }
            }
            s.vectorize(Scatter { sums, state, dim, out: self.out.reborrow() });
        });
    }
}

/// Copies the queries, scaled, to the left operand: all queries of the first head, then those of the next.
struct Gather<'a, 'b> {
    block: &'a Block<'b>,
    left: &'a mut [f32],
}

impl Kernel for Gather<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Block { op, sequence, head, queries, .. } = self.block;
        let Heads { query, key_value, dim } = op.heads;
        let (group, count) = (query / key_value, queries.len());
        let scale = s.splat(1.0 / (dim as f32).sqrt());
        let columns = op.heads.fused_columns();
        for (row, to) in self.left.chunks_exact_mut(ROW_STRIDE).enumerate() {
            let token = sequence.start + queries.start + row % count;
            let from = &op.qkv[token * columns + (head * group + row / count) * dim..][..dim];
            for (from, to) in from.chunks(S::LANES).zip(to[..dim].chunks_mut(S::LANES)) {
                store(s, s.mul(load(s, from), scale), to);
            }
        }
    }
}

/// Divides the sums by those of the weights and puts each where it belongs.
struct Scatter<'a> {
    sums: &'a [f32],
    state: &'a [Softmax],
    dim: usize,
    out: TileMut<'a>,
}

impl Kernel for Scatter<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let count = self.out.rows();
        for (row, (sums, state)) in self.sums.chunks_exact(ROW_STRIDE).zip(self.state).enumerate() {
            let (head, query) = (row / count, row % count);
            let out = &mut self.out.row_mut(query)[head * self.dim..(head + 1) * self.dim];
            let scale = s.splat(1.0 / state.sum);
            for (sums, out) in sums[..self.dim].chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
                store(s, s.mul(load(s, sums), scale), out);
            }
        }
    }
}

/// Turns the scores of a block of keys into weights `e^(score - max)`, zero where the mask hides the key, and corrects
/// what was summed under a smaller maximum.
struct Weigh<'a, 'b> {
    block: &'a Block<'b>,
    /// Positions of the keys within the sequence.
    keys: Range<usize>,
    scores: &'a mut [f32],
    state: &'a mut [Softmax],
    sums: &'a mut [f32],
}

impl Kernel for Weigh<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Block { op, sequence, queries, .. } = self.block;
        let rows = self.scores.chunks_exact_mut(ROW_STRIDE).zip(self.sums.chunks_exact_mut(ROW_STRIDE));
        for (row, ((scores, sums), state)) in rows.zip(self.state).enumerate() {
            let query = queries.start + row % queries.len();
            let seen = visible(op.mask, &(query..query + 1), sequence.len());
            let scores = &mut scores[..self.keys.len()];
            let first = seen.start.max(self.keys.start);
            let last = seen.end.min(self.keys.end);
            if first >= last {
                scores.fill(0.0);
                continue;
            }
            let (first, last) = (first - self.keys.start, last - self.keys.start);
            scores[..first].fill(0.0);
            scores[last..].fill(0.0);
            let seen = &mut scores[first..last];

            let max = largest(s, seen, state.max);
            if max > state.max {
                let correction = (state.max - max).exp();
                state.max = max;
                // The sum is zero before the first block, and what is to be corrected is not yet written.
                if state.sum > 0.0 {
                    state.sum *= correction;
                    let correction = s.splat(correction);
                    for part in sums[..op.heads.dim].chunks_mut(S::LANES) {
                        store(s, s.mul(load(s, part), correction), part);
                    }
                }
            }
            state.sum += exponentials(s, seen, state.max);
        }
    }
}

/// The largest of `x` and `least`.
#[inline(always)]
fn largest<S: Simd>(s: S, x: &[f32], least: f32) -> f32 {
    let mut max = s.splat(least);
    let vectors = x.chunks_exact(S::LANES);
    let tail = vectors.remainder();
    for part in vectors {
        max = s.max(max, s.load(part));
    }
    s.max_lane(s.max(max, s.load_part(tail, f32::NEG_INFINITY)))
}

/// Replaces `x` by `e^(x - max)` and returns their sum.
#[inline(always)]
fn exponentials<S: Simd>(s: S, x: &mut [f32], max: f32) -> f32 {
    let max = s.splat(max);
    let mut sum = s.splat(0.0);
    let mut vectors = x.chunks_exact_mut(S::LANES);
    for part in &mut vectors {
        let weights = math::exp(s, s.sub(s.load(part), max));
        s.store(weights, part);
        sum = s.add(sum, weights);
    }
    let tail = vectors.into_remainder();
    // The lanes beyond the tail become 0 and do not count.
    let weights = math::exp(s, s.sub(s.load_part(tail, f32::NEG_INFINITY), max));
    s.store_part(weights, tail);
    s.sum(s.add(sum, weights))
}
