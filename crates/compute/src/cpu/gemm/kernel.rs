//! The innermost product: a block of rows times one panel, in register tiles.
//!
//! The left operand lies in scratch with a fixed distance between rows ([`ROW_STRIDE`]), so that every row is one
//! constant displacement from one pointer, and rows never fall on the same cache sets as they would at strides of a
//! power of two. The right operand is a panel: for each `k` in turn, the values of two vectors of columns.

#![allow(unsafe_code)]

use crate::cpu::simd::{Kernel, Simd};
use crate::cpu::tile::TileMut;
use bytemuck::Pod;
use std::ops::Range;

/// The most that a block reaches along the inner dimension. Measured: with 256, passing over the output more often costs
/// up to a tenth; a panel of this depth still leaves the first-level cache room for the row tile to stream through.
pub(crate) const BLOCK_DEPTH: usize = 512;

/// Floats between rows of the left operand; the extra line keeps the rows off each other's cache sets.
pub(crate) const ROW_STRIDE: usize = BLOCK_DEPTH + 16;

/// How far ahead of the product a panel is asked for: some hundred nanoseconds. The hardware's own prefetcher stops at
/// every page.
const STEPS_AHEAD: usize = 64;

/// The most rows in a register tile of any instruction set.
const TILE_ROWS_MAX: usize = 12;

/// Columns of a panel, two vectors.
pub(crate) const fn panel_columns(lanes: usize) -> usize {
    2 * lanes
}

/// How a panel stores its values, and what its products are summed in. A step is one `k`, or several where a word of the
/// left operand holds as many.
pub(crate) trait Element: Send + Sync {
    /// What the panel's words are read as.
    type Word: Pod + Send + Sync;

    /// A vector of right operands.
    type Right<S: Simd>: Copy;

    /// A vector of sums.
    type Sum<S: Simd>: Copy;

    /// Words for one step of a panel.
    fn words(lanes: usize) -> usize;

    /// The two vectors at the start of `words`.
    fn load<S: Simd>(s: S, words: &[Self::Word]) -> [Self::Right<S>; 2];

    fn zero<S: Simd>(s: S) -> Self::Sum<S>;

    /// `sum` and the products of a word of the left operand with `b`, for both vectors.
    fn multiply_add<S: Simd>(s: S, x: f32, b: [Self::Right<S>; 2], sum: [Self::Sum<S>; 2]) -> [Self::Sum<S>; 2];

    fn add<S: Simd>(s: S, a: Self::Sum<S>, b: Self::Sum<S>) -> Self::Sum<S>;

    fn to_floats<S: Simd>(s: S, sum: Self::Sum<S>) -> S::Vector;
}

/// Products of floats, summed as floats.
macro_rules! sums_of_floats {
    () => {
        type Right<S: Simd> = S::Vector;
        type Sum<S: Simd> = S::Vector;

        #[inline(always)]
        fn zero<S: Simd>(s: S) -> S::Vector {
            s.splat(0.0)
        }

        #[inline(always)]
        fn multiply_add<S: Simd>(s: S, x: f32, b: [S::Vector; 2], sum: [S::Vector; 2]) -> [S::Vector; 2] {
            let x = s.splat(x);
            [s.mul_add(x, b[0], sum[0]), s.mul_add(x, b[1], sum[1])]
        }

        #[inline(always)]
        fn add<S: Simd>(s: S, a: S::Vector, b: S::Vector) -> S::Vector {
            s.add(a, b)
        }

        #[inline(always)]
        fn to_floats<S: Simd>(_: S, sum: S::Vector) -> S::Vector {
            sum
        }
    };
}

/// Floats, one a word.
pub(crate) struct Floats;

impl Element for Floats {
    type Word = f32;
    sums_of_floats!();

    #[inline(always)]
    fn words(lanes: usize) -> usize {
        2 * lanes
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, words: &[f32]) -> [S::Vector; 2] {
        [s.load(words), s.load(&words[S::LANES..])]
    }
}

/// Two bf16 in a word: the lower half belongs to the first vector of columns, the upper half to the second. So both
/// vectors come out of one load by a shift and a mask, without a shuffle.
pub(crate) struct Bf16Pairs;

impl Element for Bf16Pairs {
    type Word = u32;
    sums_of_floats!();

    #[inline(always)]
    fn words(lanes: usize) -> usize {
        lanes
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, words: &[u32]) -> [S::Vector; 2] {
        s.load_pairs(words)
    }
}

/// 8-bit integers, of which a step has two for each column; the left operand has two of 16 bits a word. Sums are of 32 bits
/// and must not overflow over the depth of a block.
pub(crate) struct BytePairs;

impl Element for BytePairs {
    type Word = u32;
    type Right<S: Simd> = S::Ints;
    type Sum<S: Simd> = S::Ints;

    #[inline(always)]
    fn words(lanes: usize) -> usize {
        lanes
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, words: &[u32]) -> [S::Ints; 2] {
        s.load_byte_pairs(words)
    }

    #[inline(always)]
    fn zero<S: Simd>(s: S) -> S::Ints {
        s.zero_ints()
    }

    #[inline(always)]
    fn multiply_add<S: Simd>(s: S, x: f32, b: [S::Ints; 2], sum: [S::Ints; 2]) -> [S::Ints; 2] {
        let x = s.splat_pair(x.to_bits());
        [s.dot_pairs(x, b[0], sum[0]), s.dot_pairs(x, b[1], sum[1])]
    }

    #[inline(always)]
    fn add<S: Simd>(s: S, a: S::Ints, b: S::Ints) -> S::Ints {
        s.add_ints(a, b)
    }

    #[inline(always)]
    fn to_floats<S: Simd>(s: S, sum: S::Ints) -> S::Vector {
        s.to_floats(sum)
    }
}

/// What sums are multiplied by: a float for each row, and one for each column of the panel.
#[derive(Clone, Copy)]
pub(crate) struct Scales<'a> {
    pub(crate) rows: &'a [f32],
    pub(crate) columns: &'a [f32],
}

/// `out = a * panel`, or `out += a * panel`, scaled if there are scales.
pub(crate) struct PanelProduct<'a, E: Element> {
    /// `out.rows()` rows of `depth` floats, [`ROW_STRIDE`] apart.
    pub(crate) a: &'a [f32],
    pub(crate) depth: usize,
    /// `depth` times [`Element::words`].
    pub(crate) panel: &'a [E::Word],
    pub(crate) scales: Option<Scales<'a>>,
    /// Added to every row: one float a column of the panel.
    pub(crate) bias: Option<&'a [f32]>,
    /// Whether to add to what `out` holds.
    pub(crate) accumulate: bool,
    /// At most as wide as a panel.
    pub(crate) out: TileMut<'a>,
}

impl<E: Element> Kernel for PanelProduct<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let rows = self.out.rows();
        // The bounds that the tiles rely on.
        assert!(rows > 0 && self.depth <= BLOCK_DEPTH && self.a.len() >= (rows - 1) * ROW_STRIDE + self.depth);
        assert!(self.panel.len() >= self.depth * E::words(S::LANES) && self.out.columns() <= panel_columns(S::LANES));

        // Tiles of nearly equal height: 16 rows are 8 + 8, which keeps the multipliers busier than 12 + 4.
        let tiles = rows.div_ceil(S::TILE_ROWS);
        for tile in 0..tiles {
            let range = tile * rows / tiles..(tile + 1) * rows / tiles;
            // Few rows leave too few independent sums to hide the latency of a multiply-add, so the depth is unrolled
            // as far as the registers allow: `height: unrolling with 32 registers, with 16`.
            macro_rules! of_height {
                ($($height:literal: $wide:literal, $narrow:literal;)*) => {
                    match range.len() {
                        $($height if $height <= S::TILE_ROWS => {
                            if S::TILE_ROWS > 6 {
                                // SAFETY: the asserts above; `range` lies within the rows.
                                unsafe { self.tile::<S, $height, $wide>(s, range) }
                            } else {
                                // SAFETY: the asserts above; `range` lies within the rows.
                                unsafe { self.tile::<S, $height, $narrow>(s, range) }
                            }
                        })*
                        height => unreachable!("a tile of {height} rows"),
                    }
                };
            }
            of_height! {
                1: 4, 4; 2: 4, 2; 3: 2, 1; 4: 2, 1; 5: 2, 1; 6: 1, 1;
                7: 1, 1; 8: 1, 1; 9: 1, 1; 10: 1, 1; 11: 1, 1; 12: 1, 1;
            }
        }
    }
}

impl<E: Element> PanelProduct<'_, E> {
    /// One register tile of `HEIGHT` rows, with `UNROLL` separate sums along the depth.
    ///
    /// # Safety
    /// `a` reaches to `rows.end - 1` times [`ROW_STRIDE`] plus `depth`, and the panel has `depth` steps.
    #[inline(always)]
    unsafe fn tile<S: Simd, const HEIGHT: usize, const UNROLL: usize>(&mut self, s: S, rows: Range<usize>) {
        const { assert!(HEIGHT <= TILE_ROWS_MAX) };
        let first_row = rows.start * ROW_STRIDE;
        // The output is far apart in memory, and needed when the sums are done: it can come meanwhile.
        for row in rows.clone() {
            let row = self.out.row_mut(row);
            s.prefetch(row.as_ptr().cast());
            s.prefetch(row.as_ptr().wrapping_add(S::LANES).cast());
        }
        let mut sums = [[[E::zero(s); 2]; HEIGHT]; UNROLL];
        let mut k = 0;
        while k + UNROLL <= self.depth {
            for (i, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `k + i` is below the depth; the rest is the caller's promise.
                unsafe { self.step(s, first_row, k + i, sums) };
            }
            k += UNROLL;
        }
        while k < self.depth {
            // SAFETY: `k` is below the depth; the rest is the caller's promise.
            unsafe { self.step(s, first_row, k, &mut sums[0]) };
            k += 1;
        }
        let (first, others) = sums.split_at_mut(1);
        for other in others {
            for (sum, other) in first[0].iter_mut().zip(other) {
                *sum = [E::add(s, sum[0], other[0]), E::add(s, sum[1], other[1])];
            }
        }
        for (row, sum) in rows.zip(&first[0]) {
            self.finish(s, row, sum.map(|sum| E::to_floats(s, sum)));
        }
    }

    /// Adds the products of one `k` to the sums.
    ///
    /// # Safety
    /// `k` is below the depth, the panel has `depth` steps, and `a` has the rows of `sums` from `first_row` on, `depth`
    /// floats each.
    #[inline(always)]
    unsafe fn step<S: Simd, const HEIGHT: usize>(
        &self,
        s: S,
        first_row: usize,
        k: usize,
        sums: &mut [[E::Sum<S>; 2]; HEIGHT],
    ) {
        let words = E::words(S::LANES);
        let ahead = self.panel.as_ptr().wrapping_add((k + STEPS_AHEAD) * words).cast::<u8>();
        for line in (0..words * size_of::<E::Word>()).step_by(64) {
            s.prefetch(ahead.wrapping_add(line));
        }
        // SAFETY: the panel has a step `k`.
        let b = E::load(s, unsafe { self.panel.get_unchecked(k * words..(k + 1) * words) });
        // SAFETY: `a` has this place, and below, `row` rows further down.
        let a = unsafe { self.a.get_unchecked(first_row + k..) };
        for (row, sum) in sums.iter_mut().enumerate() {
            // SAFETY: `a` has this row, and it has more than `k` floats. One pointer and a constant: with a sum of
            // indices the compiler computes twelve addresses at a time and runs out of registers.
            let x = unsafe { *a.get_unchecked(row * ROW_STRIDE) };
            *sum = E::multiply_add(s, x, b, *sum);
        }
    }

    /// Adds the bias and what was there before, and stores.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, s: S, row: usize, mut sum: [S::Vector; 2]) {
        if let Some(Scales { rows, columns }) = self.scales {
            let scale = s.splat(rows[row]);
            let both = [s.load(columns), s.load(&columns[S::LANES..])];
            sum = [s.mul(sum[0], s.mul(both[0], scale)), s.mul(sum[1], s.mul(both[1], scale))];
        }
        let row = self.out.row_mut(row);
        if let Some(bias) = self.bias {
            sum = [s.add(sum[0], s.load(bias)), s.add(sum[1], s.load(&bias[S::LANES..]))];
        }
        if row.len() == panel_columns(S::LANES) {
            let (low, high) = row.split_at_mut(S::LANES);
            if self.accumulate {
                sum = [s.add(sum[0], s.load(low)), s.add(sum[1], s.load(high))];
            }
            s.store(sum[0], low);
            s.store(sum[1], high);
        } else {
            for (part, sum) in row.chunks_mut(S::LANES).zip(sum) {
                let sum = if self.accumulate { s.add(sum, s.load_part(part, 0.0)) } else { sum };
                s.store_part(sum, part);
            }
        }
    }
}
