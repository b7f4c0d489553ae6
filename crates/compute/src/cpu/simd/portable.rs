//! Four floats at a time in plain Rust, for machines without a hand-written set: the compiler turns these loops into
//! the vectors of the target's baseline (SSE2 on x86-64, NEON on aarch64).

use super::{Kernel, Simd};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

const LANES: usize = 4;

#[inline(always)]
fn lanes(f: impl FnMut(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

/// A pair of 16-bit integers, the first below.
#[inline(always)]
fn join(first: i16, second: i16) -> i32 {
    i32::from(second) << 16 | i32::from(first.cast_unsigned())
}

impl Simd for Portable {
    const LANES: usize = LANES;
    // Eight accumulators, two operands and a broadcast fit the sixteen registers of SSE2; NEON has 32.
    const TILE_ROWS: usize = if cfg!(target_arch = "aarch64") { 8 } else { 4 };

    type Vector = [f32; LANES];
    type Ints = [i32; LANES];

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[inline(never)]
        fn enter<K: Kernel>(kernel: K) -> K::Output {
            kernel.run(Portable)
        }
        enter(kernel)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; LANES] {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> [f32; LANES] {
        let from = &from[..LANES];
        lanes(|i| from[i])
    }

    #[inline(always)]
    fn store(self, x: [f32; LANES], to: &mut [f32]) {
        to[..LANES].copy_from_slice(&x);
    }

    #[inline(always)]
    fn load_part(self, from: &[f32], rest: f32) -> [f32; LANES] {
        lanes(|i| from.get(i).copied().unwrap_or(rest))
    }

    #[inline(always)]
    fn store_part(self, x: [f32; LANES], to: &mut [f32]) {
        to.copy_from_slice(&x[..to.len()]);
    }

    #[inline(always)]
    fn load_pairs(self, from: &[u32]) -> [[f32; LANES]; 2] {
        let from = &from[..LANES];
        [lanes(|i| f32::from_bits(from[i] << 16)), lanes(|i| f32::from_bits(from[i] & 0xffff_0000))]
    }

    #[inline(always)]
    fn zero_ints(self) -> [i32; LANES] {
        [0; LANES]
    }

    #[inline(always)]
    fn load_byte_pairs(self, from: &[u32]) -> [[i32; LANES]; 2] {
        let from = &from[..LANES];
        // Of a word, the lower two bytes are one pair, the upper two the next.
        let pair = |at: usize| {
            let [low, high] = ((from[at / 2] >> (16 * (at % 2))) as u16).to_le_bytes();
            join(i16::from(low.cast_signed()), i16::from(high.cast_signed()))
        };
        [std::array::from_fn(pair), std::array::from_fn(|i| pair(i + LANES))]
    }

    #[inline(always)]
    fn splat_pair(self, pair: u32) -> [i32; LANES] {
        [pair.cast_signed(); LANES]
    }

    #[inline(always)]
    fn dot_pairs(self, a: [i32; LANES], b: [i32; LANES], sum: [i32; LANES]) -> [i32; LANES] {
        let low = |x: i32| i32::from(x as i16);
        std::array::from_fn(|i| sum[i] + low(a[i]) * low(b[i]) + (a[i] >> 16) * (b[i] >> 16))
    }

    #[inline(always)]
    fn add_ints(self, a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn to_floats(self, x: [i32; LANES]) -> [f32; LANES] {
        lanes(|i| x[i] as f32)
    }

    #[inline(always)]
    fn store_pairs(self, a: [f32; LANES], b: [f32; LANES], to: &mut [u32]) {
        let (a, b) = (self.round(a), self.round(b));
        let at = |i: usize| if i < LANES { a[i] as i16 } else { b[i - LANES] as i16 };
        for (i, word) in to[..LANES].iter_mut().enumerate() {
            *word = join(at(2 * i), at(2 * i + 1)).cast_unsigned();
        }
    }

    #[inline(always)]
    fn prefetch(self, _address: *const u8) {}

    #[inline(always)]
    fn add(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        lanes(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        lanes(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        lanes(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        lanes(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn mul_add(self, a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
        // Without the instruction, `f32::mul_add` is a call into libm for every float.
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            lanes(|i| a[i].mul_add(b[i], c[i]))
        } else {
            lanes(|i| a[i] * b[i] + c[i])
        }
    }

    #[inline(always)]
    fn min(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        lanes(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn max(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        lanes(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn select_less(self, a: [f32; LANES], b: [f32; LANES], yes: [f32; LANES], no: [f32; LANES]) -> [f32; LANES] {
        lanes(|i| if a[i] < b[i] { yes[i] } else { no[i] })
    }

    #[inline(always)]
    fn round(self, x: [f32; LANES]) -> [f32; LANES] {
        // Adding and taking away 1.5 * 2^23 leaves no bit below the units, for |x| < 2^22; `f32::round` is a call into
        // libm on baseline x86-64.
        const SHIFT: f32 = 12_582_912.0;
        lanes(|i| (x[i] + SHIFT) - SHIFT)
    }

    #[inline(always)]
    fn scale_by_power_of_two(self, x: [f32; LANES], n: [f32; LANES]) -> [f32; LANES] {
        lanes(|i| x[i] * f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    fn sum(self, x: [f32; LANES]) -> f32 {
        (x[0] + x[2]) + (x[1] + x[3])
    }

    #[inline(always)]
    fn max_lane(self, x: [f32; LANES]) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn transpose(self, from: &[f32], stride: usize, to: &mut [f32], to_stride: usize) {
        super::transpose_each(LANES, from, stride, to, to_stride);
    }
}
