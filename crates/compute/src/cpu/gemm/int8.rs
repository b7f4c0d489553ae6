//! Weights of 8 bits, and activations of 15.
//!
//! A column of the product (an output channel) has its weights rounded to `-127..=127` steps of its own size, and a row of
//! activations (a token) is rounded to [`ROW_STEPS`] steps each way. Both are multiplied as 16-bit integers, in pairs, and
//! summed exactly in 32 bits over the depth of a block; then the two scales are applied. So next to all that is lost is lost
//! by the weights: activations, whose outliers are what usually breaks 8 bits (Dettmers et al. 2022,
//! <https://arxiv.org/abs/2208.07339>), keep nearly the digits of an f16.
//!
//! Why 16-bit products: without VNNI there is no instruction that multiplies 8-bit integers into 32-bit sums. The one for
//! 16-bit pairs does two products a lane, twice what a multiply-add of floats does, and the one for bytes saturates.

use super::kernel::BLOCK_DEPTH;
use super::panels::{APART, DEPTH_AT_ONCE, MAX_LANES, Row, put};
use crate::cpu::pool::Pool;
use crate::cpu::rows::load;
use crate::cpu::simd::{Kernel, Level, Simd};

/// Steps of a weight, each way.
const WEIGHT_STEPS: f32 = 127.0;

/// Steps of an activation, each way. A block sums 2 [`BLOCK_DEPTH`] products of at most this times [`WEIGHT_STEPS`].
pub(crate) const ROW_STEPS: f32 = 16_384.0;
const _: () = assert!(2 * BLOCK_DEPTH as u64 * 16_384 * 127 <= i32::MAX as u64);

/// Rows of a weight, which become columns, to one panel and the scales of its columns. What is not finite makes the scale
/// NaN, and so all that is multiplied with it.
pub(super) struct PackInt8<'a> {
    /// As many as a panel is wide, or fewer.
    pub(super) rows: &'a [Row<'a>],
    pub(super) depth: usize,
    /// Words, whatever they hold.
    pub(super) panel: &'a mut [f32],
    pub(super) scales: &'a mut [f32],
}

impl Kernel for PackInt8<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut values = [0.0; DEPTH_AT_ONCE];
        let mut steps = [0.0; 2 * MAX_LANES];
        for ((row, scale), steps) in self.rows.iter().zip(self.scales).zip(&mut steps) {
            let (mut largest, mut sum) = (0.0f32, 0.0f32);
            for start in (0..self.depth).step_by(DEPTH_AT_ONCE) {
                let values = &mut values[..DEPTH_AT_ONCE.min(self.depth - start)];
                row.widen(start, values);
                for x in values {
                    largest = if x.abs() > largest { x.abs() } else { largest };
                    // Stays zero unless there is an infinity or a NaN.
                    sum += *x * 0.0;
                }
            }
            *scale = if sum == 0.0 { largest / WEIGHT_STEPS } else { f32::NAN };
            *steps = if *scale > 0.0 { WEIGHT_STEPS / largest } else { 0.0 };
        }
        // A word has the bytes of two columns at two `k`.
        let mut block = [0.0f32; MAX_LANES * APART];
        for start in (0..self.depth).step_by(2 * DEPTH_AT_ONCE) {
            let depth = (2 * DEPTH_AT_ONCE).min(self.depth - start);
            for ((rows, steps), block) in self.rows.chunks(2).zip(steps.chunks(2)).zip(block.chunks_exact_mut(APART)) {
                block.fill(0.0);
                for (at, (row, steps)) in rows.iter().zip(steps).enumerate() {
                    for (half, start_of_half) in (0..depth).step_by(DEPTH_AT_ONCE).enumerate() {
                        let mut values = [0.0; DEPTH_AT_ONCE];
                        let length = DEPTH_AT_ONCE.min(depth - start_of_half);
                        row.widen(start + start_of_half, &mut values[..length]);
                        let pairs = values.as_chunks::<2>().0.iter();
                        for (word, pair) in block[half * DEPTH_AT_ONCE / 2..].iter_mut().zip(pairs) {
                            let [first, second] = pair.map(|x| to_byte(x * steps));
                            *word = f32::from_bits(word.to_bits() | (first | second << 8) << (16 * at));
                        }
                    }
                }
            }
            put(s, &block, depth.div_ceil(2), &mut self.panel[start / 2 * S::LANES..], S::LANES);
        }
    }
}

/// The nearest of the steps, as a byte.
#[inline(always)]
fn to_byte(x: f32) -> u32 {
    // Held within the steps where the size is so small that its inverse is infinite. Adding and taking away 1.5 * 2^23
    // rounds, as in `Simd::round` of machines without the instruction.
    const SHIFT: f32 = 12_582_912.0;
    let rounded = (x.clamp(-WEIGHT_STEPS, WEIGHT_STEPS) + SHIFT) - SHIFT;
    u32::from((rounded as i8).cast_unsigned())
}

/// Words of a row of `columns` activations.
pub(crate) fn row_words(columns: usize) -> usize {
    columns.div_ceil(2)
}

/// Rounds the rows of `x`, `columns` each, to `words`, and tells the size of a step of each in `scales`.
pub(crate) fn quantize_rows(
    level: Level,
    pool: &Pool,
    x: &[f32],
    columns: usize,
    words: &mut [f32],
    scales: &mut [f32],
) {
    let rows = pool.rows_per_item(x.len() / columns, columns / 4);
    let items = x.chunks(rows * columns).zip(words.chunks_mut(rows * row_words(columns))).zip(scales.chunks_mut(rows));
    pool.for_each(x.len() / 4, items, |((x, words), scales)| level.run(QuantizeRows { x, columns, words, scales }));
}

struct QuantizeRows<'a> {
    x: &'a [f32],
    columns: usize,
    words: &'a mut [f32],
    scales: &'a mut [f32],
}

impl Kernel for QuantizeRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.x.chunks_exact(self.columns).zip(self.words.chunks_exact_mut(row_words(self.columns)));
        for ((x, words), scale) in rows.zip(self.scales) {
            let (mut largest, mut finite) = (s.splat(0.0), s.splat(0.0));
            for part in x.chunks(S::LANES) {
                let part = load(s, part);
                largest = s.max(largest, s.max(part, s.sub(s.splat(0.0), part)));
                // Stays zero unless there is an infinity or a NaN.
                finite = s.mul_add(part, s.splat(0.0), finite);
            }
            let largest = s.max_lane(largest);
            let finite = s.sum(finite) == 0.0;
            *scale = if finite { largest / ROW_STEPS } else { f32::NAN };
            // A row so small that its step is subnormal counts as zeros.
            let steps = if finite && largest > f32::MIN_POSITIVE * ROW_STEPS { ROW_STEPS / largest } else { 0.0 };
            let steps = s.splat(steps);
            let words: &mut [u32] = bytemuck::cast_slice_mut(words);
            let (whole, rest) = x.split_at(x.len() / (2 * S::LANES) * 2 * S::LANES);
            let (words, words_rest) = words.split_at_mut(whole.len() / 2);
            for (x, to) in whole.chunks_exact(2 * S::LANES).zip(words.chunks_exact_mut(S::LANES)) {
                let (a, b) = (s.load(x), s.load(&x[S::LANES..]));
                s.store_pairs(s.mul(a, steps), s.mul(b, steps), to);
            }
            let mut last = [0; MAX_LANES];
            let (first, second) = rest.split_at(rest.len().min(S::LANES));
            let (a, b) = (s.load_part(first, 0.0), s.load_part(second, 0.0));
            s.store_pairs(s.mul(a, steps), s.mul(b, steps), &mut last);
            words_rest.copy_from_slice(&last[..words_rest.len()]);
        }
    }
}
