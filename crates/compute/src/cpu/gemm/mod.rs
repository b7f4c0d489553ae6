//! Linear layers: `y = x W^T + b` over prepacked panels.
//!
//! The blocking is that of Goto and van de Geijn (2008, <https://doi.org/10.1145/1356052.1356053>): a block of rows of
//! `x` is copied to the second-level cache, and each panel of the weight passes through the first-level cache once a
//! block. The output is cut into tiles both by rows and by columns, so that one long text and many short ones keep
//! every thread busy alike.

pub(crate) mod kernel;
pub(crate) mod panels;

use super::buffer::with_scratch;
use super::pool::Pool;
use super::simd::{Kernel, Level, Simd};
use super::tile::TileMut;
use kernel::{BLOCK_DEPTH, Element, PanelProduct, ROW_STRIDE, panel_columns};
use panels::{PanelDType, Panels};

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
pub(crate) fn linear(
    level: Level,
    pool: &Pool,
    x: &[f32],
    weight: &Linear,
    out: &mut [f32],
    rows: usize,
    accumulate: bool,
) {
    if rows == 0 {
        return;
    }
    let columns = panel_columns(level.lanes());
    let panels = weight.out_columns.div_ceil(columns);
    let blocks = rows.div_ceil(BLOCK_ROWS);
    let block_rows = rows.div_ceil(blocks);
    let panels_least = TASK_LEAST.div_ceil(block_rows * weight.in_columns * columns);
    let panels_a_task = panels.div_ceil(pool.items_wanted().div_ceil(blocks)).max(panels_least);

    let tiles = TileMut::new(out, rows, weight.out_columns).into_tiles(block_rows, panels_a_task * columns);
    let total_ns = rows * weight.out_columns * weight.in_columns / MULTIPLY_ADDS_PER_NS;
    pool.for_each(total_ns, tiles.enumerate(), |(i, tile)| {
        let first_row = i % blocks * block_rows;
        let first_panel = i / blocks * panels_a_task;
        let x = &x[first_row * weight.in_columns..(first_row + tile.rows()) * weight.in_columns];
        match weight.panels.dtype() {
            PanelDType::F32 => level.run(Task::<f32>::new(x, weight, first_panel, accumulate, tile)),
            PanelDType::Bf16Pairs => level.run(Task::<u32>::new(x, weight, first_panel, accumulate, tile)),
        }
    });
}

/// One tile of the output.
struct Task<'a, E> {
    x: &'a [f32],
    weight: &'a Linear,
    first_panel: usize,
    accumulate: bool,
    out: TileMut<'a>,
    element: std::marker::PhantomData<E>,
}

impl<'a, E> Task<'a, E> {
    fn new(x: &'a [f32], weight: &'a Linear, first_panel: usize, accumulate: bool, out: TileMut<'a>) -> Self {
        Self { x, weight, first_panel, accumulate, out, element: std::marker::PhantomData }
    }
}

impl<E: Element> Kernel for Task<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (rows, depth) = (self.out.rows(), self.weight.in_columns);
        let columns = panel_columns(S::LANES);
        let words = E::words(S::LANES);
        let copied_depth = (BLOCK_FLOATS / rows / BLOCK_DEPTH).max(1) * BLOCK_DEPTH;
        let blocks = copied_depth.min(depth).div_ceil(BLOCK_DEPTH);
        with_scratch(blocks * rows * ROW_STRIDE, |scratch| {
            for start in (0..depth).step_by(copied_depth) {
                let end = depth.min(start + copied_depth);
                copy_blocks(self.x, depth, start..end, scratch, rows);
                for column in (0..self.out.columns()).step_by(columns) {
                    let index = self.first_panel + column / columns;
                    let panel = self.weight.panels.panel::<E>(index);
                    let bias = self.weight.bias.as_ref().map(|b| &b[index * columns..(index + 1) * columns]);
                    let last_column = self.out.columns().min(column + columns);
                    for (i, a) in scratch.chunks_exact(rows * ROW_STRIDE).enumerate() {
                        let from = start + i * BLOCK_DEPTH;
                        if from >= end {
                            break;
                        }
                        let to = end.min(from + BLOCK_DEPTH);
                        s.vectorize(PanelProduct {
                            a,
                            depth: to - from,
                            panel: &panel[from * words..to * words],
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
