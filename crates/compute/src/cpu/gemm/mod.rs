//! Linear layers: `y = x W^T + b` over prepacked panels.
//!
//! The blocking is that of Goto and van de Geijn (2008, <https://doi.org/10.1145/1356052.1356053>): a block of rows of
//! `x` is copied to the second-level cache, and each panel of the weight passes through the first-level cache once a
//! block. The output is cut into tiles both by rows and by columns, so that one long text and many short ones keep
//! every thread busy alike.

pub(crate) mod int8;
pub(crate) mod kernel;
pub(crate) mod panels;

use super::buffer::{Workspace, with_scratch};
use super::pool::Pool;
use super::simd::{Kernel, Level, Simd};
use super::tile::TileMut;
use kernel::{BLOCK_DEPTH, Bf16Pairs, BytePairs, Element, Floats, PanelProduct, ROW_STRIDE, Scales, panel_columns};
use panels::{PanelDType, Panels};
use std::marker::PhantomData;

/// A prepared linear layer.
#[derive(Debug)]
pub struct Linear {
    pub(super) out_columns: usize,
    pub(super) in_columns: usize,
    pub(super) panels: Panels,
    /// Filled up with zeros to whole panels.
    pub(super) bias: Option<Vec<f32>>,
}

/// The most rows that a task copies at a time.
const BLOCK_ROWS: usize = 96;

/// Floats of `x` that a task copies at a time: a quarter of a megabyte, which second-level caches hold along with the
/// panels that pass.
const BLOCK_FLOATS: usize = 64 * 1024;

/// Multiply-adds that a thread does in a nanosecond, about: half of what AVX-512 does, twice what AVX2 does.
pub(crate) const MULTIPLY_ADDS_PER_NS: usize = 64;

/// Multiply-adds below which a task is not worth the copy of its rows.
const TASK_LEAST: usize = 128 * 1024;

/// `out = x W^T + b`, or `out += x W^T + b`, for `rows` rows.
pub(crate) fn linear(op: Product<'_>, weight: &Linear, out: &mut [f32]) {
    let Product { level, pool, workspace, x, rows, accumulate } = op;
    if rows == 0 {
        return;
    }
    match weight.panels.dtype() {
        PanelDType::F32 => tasks::<Floats>(level, pool, Left::floats(x, weight), weight, out, rows, accumulate),
        PanelDType::Bf16Pairs => {
            tasks::<Bf16Pairs>(level, pool, Left::floats(x, weight), weight, out, rows, accumulate)
        }
        PanelDType::Int8Pairs => {
            let depth = int8::row_words(weight.in_columns);
            let mut quantized = workspace.take(rows * depth + rows);
            let (words, scales) = quantized.as_mut_slice().split_at_mut(rows * depth);
            int8::quantize_rows(level, pool, x, weight.in_columns, words, scales);
            let left = Left { words, depth, scales: Some(scales) };
            tasks::<BytePairs>(level, pool, left, weight, out, rows, accumulate);
        }
    }
}

/// What a product is of, but for the weight.
pub(crate) struct Product<'a> {
    pub(crate) level: Level,
    pub(crate) pool: &'a Pool,
    pub(crate) workspace: &'a Workspace,
    /// `[rows, in]`.
    pub(crate) x: &'a [f32],
    pub(crate) rows: usize,
    /// Whether to add to what the output holds.
    pub(crate) accumulate: bool,
}

/// The left operand of a product.
#[derive(Clone, Copy)]
struct Left<'a> {
    /// Rows of `depth` words each: floats, or pairs of 16-bit integers.
    words: &'a [f32],
    depth: usize,
    /// The size of an integer's step, for each row.
    scales: Option<&'a [f32]>,
}

impl<'a> Left<'a> {
    fn floats(x: &'a [f32], weight: &Linear) -> Self {
        Self { words: x, depth: weight.in_columns, scales: None }
    }

    fn rows(self, rows: std::ops::Range<usize>) -> Self {
        let words = &self.words[rows.start * self.depth..rows.end * self.depth];
        Self { words, scales: self.scales.map(|scales| &scales[rows]), ..self }
    }
}

/// The product in tiles, each on whichever thread comes first for it.
fn tasks<E: Element>(
    level: Level,
    pool: &Pool,
    left: Left<'_>,
    weight: &Linear,
    out: &mut [f32],
    rows: usize,
    accumulate: bool,
) {
    let columns = panel_columns(level.lanes());
    let panels = weight.out_columns.div_ceil(columns);
    let blocks = rows.div_ceil(BLOCK_ROWS);
    let block_rows = rows.div_ceil(blocks);
    let panels_least = TASK_LEAST.div_ceil(block_rows * left.depth * columns);
    let panels_a_task = panels.div_ceil(pool.items_wanted().div_ceil(blocks)).max(panels_least);

    let tiles = TileMut::new(out, rows, weight.out_columns).into_tiles(block_rows, panels_a_task * columns);
    let total_ns = rows * weight.out_columns * left.depth / MULTIPLY_ADDS_PER_NS;
    pool.for_each(total_ns, tiles.enumerate(), |(i, tile)| {
        let first_row = i % blocks * block_rows;
        let first_panel = i / blocks * panels_a_task;
        let left = left.rows(first_row..first_row + tile.rows());
        level.run(Task::<E> { left, weight, first_panel, accumulate, out: tile, element: PhantomData });
    });
}

/// One tile of the output.
struct Task<'a, E> {
    left: Left<'a>,
    weight: &'a Linear,
    first_panel: usize,
    accumulate: bool,
    out: TileMut<'a>,
    element: PhantomData<E>,
}

impl<E: Element> Kernel for Task<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (rows, depth) = (self.out.rows(), self.left.depth);
        let columns = panel_columns(S::LANES);
        let words = E::words(S::LANES);
        let copied_depth = (BLOCK_FLOATS / rows / BLOCK_DEPTH).max(1) * BLOCK_DEPTH;
        let blocks = copied_depth.min(depth).div_ceil(BLOCK_DEPTH);
        with_scratch(blocks * rows * ROW_STRIDE, |scratch| {
            for start in (0..depth).step_by(copied_depth) {
                let end = depth.min(start + copied_depth);
                copy_blocks(self.left.words, depth, start..end, scratch, rows);
                for column in (0..self.out.columns()).step_by(columns) {
                    let index = self.first_panel + column / columns;
                    let of_panel = index * columns..(index + 1) * columns;
                    let panel = self.weight.panels.panel::<E::Word>(index);
                    let bias = self.weight.bias.as_ref().map(|bias| &bias[of_panel.clone()]);
                    let column_scales = self.weight.panels.scales();
                    let scales = self.left.scales.map(|rows| Scales { rows, columns: &column_scales[of_panel] });
                    let last_column = self.out.columns().min(column + columns);
                    for (i, a) in scratch.chunks_exact(rows * ROW_STRIDE).enumerate() {
                        let from = start + i * BLOCK_DEPTH;
                        if from >= end {
                            break;
                        }
                        let to = end.min(from + BLOCK_DEPTH);
                        s.vectorize(PanelProduct::<E> {
                            a,
                            depth: to - from,
                            panel: &panel[from * words..to * words],
                            scales,
                            bias: bias.filter(|_| from == 0),
                            accumulate: self.accumulate || from > 0,
                            out: self.out.columns_mut(column..last_column),
                        });
                    }
                }
            }
        });
    }
}

/// Copies columns `range` of the rows of `x`, each `depth` wide, to blocks of [`BLOCK_DEPTH`] columns.
#[inline(always)]
fn copy_blocks(x: &[f32], depth: usize, range: std::ops::Range<usize>, blocks: &mut [f32], rows: usize) {
    for (i, block) in blocks.chunks_exact_mut(rows * ROW_STRIDE).enumerate() {
        let from = range.start + i * BLOCK_DEPTH;
        if from >= range.end {
            break;
        }
        let to = range.end.min(from + BLOCK_DEPTH);
        for (x, row) in x.chunks_exact(depth).zip(block.chunks_exact_mut(ROW_STRIDE)) {
            row[..to - from].copy_from_slice(&x[from..to]);
        }
    }
}
