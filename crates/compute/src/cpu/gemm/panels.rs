//! Weights laid out once, when they are prepared, in the order in which the product reads them.
//!
//! A panel is 2 vectors of columns by the whole inner dimension, values of one `k` together. The last panel is filled
//! up with zeros. bf16 weights stay bf16, so that a product with few rows reads half the bytes; or all become 8-bit integers
//! ([`super::int8`]), with a scale for each column before the panels.

use super::int8::PackInt8;
use super::kernel::{Bf16Pairs, BytePairs, Element, Floats, panel_columns};
use crate::cpu::CpuWeights;
use crate::cpu::pages::Pages;
use crate::cpu::pool::Pool;
use crate::cpu::simd::{Kernel, Level, Simd};
use crate::{ComputeError, DType, Packed, Result, SharedBytes, TensorView};
use bytemuck::Pod;

/// The packed weight of a linear layer.
#[derive(Debug)]
pub(crate) struct Panels {
    bytes: SharedBytes,
    dtype: PanelDType,
    /// Words from one panel to the next.
    words: usize,
    /// Words before the first panel: a scale for each column, or none.
    scales: usize,
}

/// What a panel's words hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PanelDType {
    F32,
    Bf16Pairs,
    Int8Pairs,
}

impl PanelDType {
    const ALL: [Self; 3] = [Self::F32, Self::Bf16Pairs, Self::Int8Pairs];

    /// Its name in a file.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            PanelDType::F32 => "f32",
            PanelDType::Bf16Pairs => "bf16 pairs",
            PanelDType::Int8Pairs => "int8 pairs",
        }
    }

    /// Words of a panel, and words before the first of them.
    fn sizes(self, lanes: usize, rows: usize, depth: usize) -> Option<(usize, usize)> {
        let columns = panel_columns(lanes);
        match self {
            PanelDType::F32 => Some((depth.checked_mul(Floats::words(lanes))?, 0)),
            PanelDType::Bf16Pairs => Some((depth.checked_mul(Bf16Pairs::words(lanes))?, 0)),
            PanelDType::Int8Pairs => {
                let scales = rows.checked_next_multiple_of(columns)?.checked_next_multiple_of(SCALES_ALIGNED_TO)?;
                Some((depth.div_ceil(2).checked_mul(BytePairs::words(lanes))?, scales))
            }
        }
    }
}

/// Panels after scales start with a cache line.
const SCALES_ALIGNED_TO: usize = 16;

/// Bytes of a word.
const WORD_BYTES: usize = 4;

/// Values of a row that are brought into order at a time: with those of a panel's other rows they fit the first-level
/// cache.
pub(super) const DEPTH_AT_ONCE: usize = 128;

/// Words between rows of what is brought into order: a line more, which keeps them off each other's cache sets.
pub(super) const APART: usize = DEPTH_AT_ONCE + 16;

impl Panels {
    /// Packs the stacked rows of `parts`, all of them `depth` columns wide.
    pub(crate) fn pack(
        level: Level,
        pool: &Pool,
        weights: CpuWeights,
        parts: &[TensorView<'_>],
        depth: usize,
    ) -> Result<Self> {
        let rows: Vec<Row<'_>> =
            parts.iter().flat_map(|part| (0..part.len() / depth).map(move |row| Row { part, row, depth })).collect();
        let columns = panel_columns(level.lanes());
        let dtype = match weights {
            // The last layer of a classifier is less than a panel: nothing to gain, and a logit to lose.
            CpuWeights::Int8 if rows.len() >= columns => PanelDType::Int8Pairs,
            _ if parts.iter().all(|p| p.dtype() == DType::Bf16) => PanelDType::Bf16Pairs,
            _ => PanelDType::F32,
        };
        let (words, scales) = dtype.sizes(level.lanes(), rows.len(), depth).ok_or_else(too_large)?;
        let mut pages = Pages::zeroed((scales + rows.len().div_ceil(columns) * words) * WORD_BYTES)?;
        let all: &mut [f32] = bytemuck::cast_slice_mut(pages.as_mut_slice());
        let (column_scales, all) = all.split_at_mut(scales);
        if dtype == PanelDType::Int8Pairs {
            let panels = all.chunks_exact_mut(words).zip(rows.chunks(columns)).zip(column_scales.chunks_mut(columns));
            pool.for_each(rows.len() * depth, panels, |((panel, rows), scales)| {
                level.run(PackInt8 { rows, depth, panel, scales });
            });
            return Ok(Self { bytes: SharedBytes::new(pages), dtype, words, scales });
        }
        // An item is a few panels: a thread that writes megabytes on end leaves the large pages between to itself.
        let panels_an_item = (1usize << 20).div_ceil(words * WORD_BYTES);
        let items = all.chunks_mut(panels_an_item * words).zip(rows.chunks(panels_an_item * columns));
        pool.for_each(rows.len() * depth, items, |(panels, rows)| {
            for (panel, rows) in panels.chunks_exact_mut(words).zip(rows.chunks(columns)) {
                match dtype {
                    PanelDType::F32 => level.run(PackF32 { rows, depth, panel }),
                    PanelDType::Bf16Pairs | PanelDType::Int8Pairs => level.run(PackPairs { rows, depth, panel }),
                }
            }
        });
        Ok(Self { bytes: SharedBytes::new(pages), dtype, words, scales })
    }

    /// What somebody kept of [`Panels::bytes`].
    pub(crate) fn unpack(level: Level, packed: &Packed) -> Result<Self> {
        const OP: &str = "linear_from";
        let [rows, depth] = packed.shape;
        let dtype = PanelDType::ALL.into_iter().find(|dtype| dtype.name() == packed.format);
        let dtype = dtype.ok_or_else(|| packed.refused(OP))?;
        let (words, scales) = dtype.sizes(level.lanes(), rows, depth).ok_or_else(too_large)?;
        let bytes = rows.div_ceil(panel_columns(level.lanes())).checked_mul(words);
        let bytes = bytes.and_then(|words| words.checked_add(scales)?.checked_mul(WORD_BYTES));
        packed.require(OP, bytes)?;
        Ok(Self { bytes: packed.bytes.clone(), dtype, words, scales })
    }

    /// What the words hold.
    pub(crate) fn dtype(&self) -> PanelDType {
        self.dtype
    }

    /// All panels, one after the other.
    pub(crate) fn bytes(&self) -> &SharedBytes {
        &self.bytes
    }

    /// Panel `index`, as the words that [`Panels::dtype`] says.
    pub(crate) fn panel<W: Pod>(&self, index: usize) -> &[W] {
        const { assert!(size_of::<W>() == WORD_BYTES) };
        let start = self.scales + index * self.words;
        bytemuck::cast_slice(&self.bytes[start * WORD_BYTES..(start + self.words) * WORD_BYTES])
    }

    /// The scales of all columns; none where the values are what they are.
    pub(crate) fn scales(&self) -> &[f32] {
        bytemuck::cast_slice(&self.bytes[..self.scales * WORD_BYTES])
    }
}

fn too_large() -> ComputeError {
    ComputeError::OutOfMemory("a weight of more bytes than can be counted".to_owned())
}

/// A row of a weight: a column of the product.
pub(super) struct Row<'a> {
    part: &'a TensorView<'a>,
    row: usize,
    depth: usize,
}

impl Row<'_> {
    /// Values `start..start + out.len()`, as f32.
    pub(super) fn widen(&self, start: usize, out: &mut [f32]) {
        self.part.widen(self.row * self.depth + start, out);
    }

    /// Values `start..start + length` of a row of bf16.
    fn bf16s(&self, start: usize, length: usize) -> &[[u8; 2]] {
        &self.part.bytes().as_chunks().0[self.row * self.depth + start..][..length]
    }
}

/// One panel of f32.
struct PackF32<'a> {
    /// As many as a panel is wide, or fewer.
    rows: &'a [Row<'a>],
    depth: usize,
    panel: &'a mut [f32],
}

impl Kernel for PackF32<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let columns = panel_columns(S::LANES);
        for (rows, first) in self.rows.chunks(S::LANES).zip([0, S::LANES]) {
            let mut block = [0.0; MAX_LANES * APART];
            for start in (0..self.depth).step_by(DEPTH_AT_ONCE) {
                let length = DEPTH_AT_ONCE.min(self.depth - start);
                for (row, block) in rows.iter().zip(block.chunks_exact_mut(APART)) {
                    row.widen(start, &mut block[..length]);
                }
                put(s, &block, length, &mut self.panel[start * columns + first..], columns);
            }
        }
    }
}

/// One panel of pairs of bf16.
struct PackPairs<'a> {
    /// As many as a panel is wide, or fewer.
    rows: &'a [Row<'a>],
    depth: usize,
    /// Words, whatever they hold.
    panel: &'a mut [f32],
}

impl Kernel for PackPairs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (low, high) = self.rows.split_at(S::LANES.min(self.rows.len()));
        let mut block = [0.0; MAX_LANES * APART];
        for start in (0..self.depth).step_by(DEPTH_AT_ONCE) {
            let length = DEPTH_AT_ONCE.min(self.depth - start);
            for (i, (row, block)) in low.iter().zip(block.chunks_exact_mut(APART)).enumerate() {
                let block = &mut block[..length];
                let low = row.bf16s(start, length);
                match high.get(i) {
                    Some(row) => {
                        for ((pair, low), high) in block.iter_mut().zip(low).zip(row.bf16s(start, length)) {
                            let (low, high) = (u16::from_le_bytes(*low), u16::from_le_bytes(*high));
                            *pair = f32::from_bits(u32::from(low) | u32::from(high) << 16);
                        }
                    }
                    None => {
                        for (pair, low) in block.iter_mut().zip(low) {
                            *pair = f32::from_bits(u32::from(u16::from_le_bytes(*low)));
                        }
                    }
                }
            }
            put(s, &block, length, &mut self.panel[start * S::LANES..], S::LANES);
        }
    }
}

/// The most lanes of any instruction set.
pub(super) const MAX_LANES: usize = 16;

/// Writes the first `length` columns of `block`, of as many rows as there are lanes, as rows `stride` apart.
#[inline(always)]
pub(super) fn put<S: Simd>(s: S, block: &[f32], length: usize, to: &mut [f32], stride: usize) {
    const { assert!(S::LANES <= MAX_LANES && DEPTH_AT_ONCE.is_multiple_of(S::LANES)) };
    let whole = length / S::LANES * S::LANES;
    for k in (0..whole).step_by(S::LANES) {
        s.transpose(&block[k..], APART, &mut to[k * stride..], stride);
    }
    for k in whole..length {
        for lane in 0..S::LANES {
            to[k * stride + lane] = block[lane * APART + k];
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
        let panels = Panels::pack(level, &Pool::new(1).unwrap(), CpuWeights::Stored, &[view], depth).unwrap();
        assert_eq!(panels.dtype(), PanelDType::Bf16Pairs);
        // k = 2 of the first panel: columns 0..4 below, 4..8 above.
        for (lane, word) in panels.panel::<u32>(0)[8..12].iter().enumerate() {
            assert_eq!(f32::from_bits(word << 16), (lane * depth + 2) as f32);
            assert_eq!(f32::from_bits(word & 0xffff_0000), ((lane + 4) * depth + 2) as f32);
        }
        assert_eq!(panels.panel::<u32>(1)[9..12], [0; 3]);
    }

    #[test]
    fn every_value_is_where_the_product_reads_it() {
        for level in Isa::ALL.into_iter().filter_map(Level::new) {
            let columns = panel_columns(level.lanes());
            for (rows, depth) in [(1, 1), (columns, 300), (2 * columns + 3, 129), (columns - 1, 17)] {
                // Every bit pattern has to survive, those of NaN included.
                let values: Vec<u16> = (0..rows * depth).map(|i| (i * 257 % 65_536) as u16).collect();
                let bf16s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                let f32s: Vec<u8> = values.iter().flat_map(|v| (u32::from(*v) << 16).to_le_bytes()).collect();
                let shape = [rows, depth];
                for (dtype, bytes) in [(DType::Bf16, &bf16s), (DType::F32, &f32s)] {
                    let view = TensorView::new(dtype, &shape, bytes).unwrap();
                    let panels =
                        Panels::pack(level, &Pool::new(2).unwrap(), CpuWeights::Stored, &[view], depth).unwrap();
                    for (at, value) in values.iter().enumerate() {
                        let (row, k) = (at / depth, at % depth);
                        let (panel, column) = (panels.panel::<u32>(row / columns), row % columns);
                        let lanes = level.lanes();
                        let found = match (dtype, column < lanes) {
                            (DType::F32, _) => (panel[k * columns + column] >> 16) as u16,
                            (_, true) => panel[k * lanes + column] as u16,
                            (_, false) => (panel[k * lanes + column - lanes] >> 16) as u16,
                        };
                        assert_eq!(found, *value, "{dtype:?} {rows} x {depth}: row {row}, {k}");
                    }
                }
            }
        }
    }
}
