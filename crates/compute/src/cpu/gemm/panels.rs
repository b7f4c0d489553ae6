//! Weights laid out once, when they are prepared, in the order in which the product reads them.
//!
//! A panel is 2 vectors of columns by the whole inner dimension, values of one `k` together. The last panel is filled
//! up with zeros. bf16 weights stay bf16, so that a product with few rows reads half the bytes.

use super::kernel::{Element, panel_columns};
use crate::cpu::buffer::Buffer;
use crate::cpu::pool::Pool;
use crate::cpu::simd::Level;
use crate::{DType, TensorView};

/// The packed weight of a linear layer.
#[derive(Debug)]
pub(crate) struct Panels {
    buffer: Buffer,
    dtype: PanelDType,
    /// Words from one panel to the next.
    words: usize,
}

/// What a panel's words hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PanelDType {
    F32,
    Bf16Pairs,
}

/// Values of a row that are transposed at a time, so that both sides stay in the first-level cache.
const TRANSPOSED_AT_ONCE: usize = 64;

/// Floats between rows of the block that is transposed: a line more, which keeps them off each other's cache sets.
const APART: usize = TRANSPOSED_AT_ONCE + 16;

impl Panels {
    /// Packs the stacked rows of `parts`, all of them `depth` columns wide.
    pub(crate) fn pack(level: Level, pool: &Pool, parts: &[TensorView<'_>], depth: usize) -> Self {
        let rows: Vec<(&TensorView<'_>, usize)> =
            parts.iter().flat_map(|part| (0..part.len() / depth).map(move |row| (part, row * depth))).collect();
        let columns = panel_columns(level.lanes());
        let panels = rows.len().div_ceil(columns);
        let dtype =
            if parts.iter().all(|p| p.dtype() == DType::Bf16) { PanelDType::Bf16Pairs } else { PanelDType::F32 };
        let words = depth
            * match dtype {
                PanelDType::F32 => f32::words(level.lanes()),
                PanelDType::Bf16Pairs => u32::words(level.lanes()),
            };
        let mut buffer = Buffer::zeroed(panels * words);
        let total_ns = rows.len() * depth;
        match dtype {
            PanelDType::F32 => {
                let all = &mut buffer.as_mut_slice::<f32>()[..panels * words];
                pool.for_each(total_ns, all.chunks_exact_mut(words).zip(rows.chunks(columns)), |(panel, rows)| {
                    let mut steps = panel.chunks_exact_mut(columns);
                    for_each_step(rows, columns, depth, |values| {
                        for (x, value) in steps.next().into_iter().flatten().zip(values.iter().step_by(APART)) {
                            *x = *value;
                        }
                    });
                });
            }
            PanelDType::Bf16Pairs => {
                let lanes = level.lanes();
                let all = &mut buffer.as_mut_slice::<u32>()[..panels * words];
                pool.for_each(total_ns, all.chunks_exact_mut(words).zip(rows.chunks(columns)), |(panel, rows)| {
                    let mut steps = panel.chunks_exact_mut(lanes);
                    for_each_step(rows, columns, depth, |values| {
                        for (lane, pair) in steps.next().into_iter().flatten().enumerate() {
                            let (low, high) = (values[lane * APART], values[(lane + lanes) * APART]);
                            // Exact: the values were bf16, so the lower halves are zero.
                            *pair = low.to_bits() >> 16 | high.to_bits();
                        }
                    });
                });
            }
        }
        Self { buffer, dtype, words }
    }

    /// What the words hold.
    pub(crate) fn dtype(&self) -> PanelDType {
        self.dtype
    }

    /// Panel `index`, as the words that [`Panels::dtype`] says.
    pub(crate) fn panel<E: Element>(&self, index: usize) -> &[E] {
        &self.buffer.as_slice()[index * self.words..(index + 1) * self.words]
    }
}

/// Calls `put` with the values of each `k` in turn: one for each of `columns`, [`APART`] from each other, zero where
/// there is no row.
fn for_each_step(rows: &[(&TensorView<'_>, usize)], columns: usize, depth: usize, mut put: impl FnMut(&[f32])) {
    let mut block = vec![0.0; columns * APART];
    for start in (0..depth).step_by(TRANSPOSED_AT_ONCE) {
        let length = TRANSPOSED_AT_ONCE.min(depth - start);
        for ((view, offset), block) in rows.iter().zip(block.chunks_exact_mut(APART)) {
            view.widen(offset + start, &mut block[..length]);
        }
        for k in 0..length {
            put(&block[k..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::Isa;
    use half::bf16;

    #[test]
    fn pairs_hold_two_columns_and_the_rest_is_zero() {
        let level = Level::new(Isa::Portable).unwrap();
        let (rows, depth) = (9, 3);
        let bytes: Vec<u8> = (0..rows * depth).flat_map(|i| bf16::from_f32(i as f32).to_le_bytes()).collect();
        let shape = [rows, depth];
        let view = TensorView::new(DType::Bf16, &shape, &bytes).unwrap();
        let panels = Panels::pack(level, &Pool::new(1).unwrap(), &[view], depth);
        assert_eq!(panels.dtype(), PanelDType::Bf16Pairs);
        // k = 2 of the first panel: columns 0..4 below, 4..8 above.
        for (lane, word) in panels.panel::<u32>(0)[8..12].iter().enumerate() {
            assert_eq!(f32::from_bits(word << 16), (lane * depth + 2) as f32);
            assert_eq!(f32::from_bits(word & 0xffff_0000), ((lane + 4) * depth + 2) as f32);
        }
        assert_eq!(panels.panel::<u32>(1)[9..12], [0; 3]);
    }
}
