//! Eight floats at a time with AVX2 and FMA.

#![allow(unsafe_code)]

use super::{Kernel, Simd};
use std::arch::x86_64::*;

/// Proof that the CPU has AVX2 and FMA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

const LANES: usize = 8;

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }
}

#[target_feature(enable = "avx2,fma")]
fn enter<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// The mask of the first `lanes` lanes.
#[inline(always)]
fn first(_proof: Avx2, lanes: usize) -> __m256i {
    const ONES_THEN_ZEROS: [i32; 2 * LANES] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    let mask = &ONES_THEN_ZEROS[LANES - lanes..2 * LANES - lanes];
    // SAFETY: `mask` has eight words (a larger `lanes` would have panicked); the CPU has AVX2.
    unsafe { _mm256_loadu_si256(mask.as_ptr().cast()) }
}

impl Simd for Avx2 {
    const LANES: usize = LANES;
    // Twelve accumulators, two operands and a broadcast fit the sixteen registers.
    const TILE_ROWS: usize = 6;

    type Vector = __m256;
    type Ints = __m256i;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: an `Avx2` exists only where AVX2 and FMA were detected.
        unsafe { enter(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        let from = &from[..LANES];
        // SAFETY: `from` has eight floats; the CPU has AVX2.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, x: __m256, to: &mut [f32]) {
        let to = &mut to[..LANES];
        // SAFETY: `to` has eight floats; the CPU has AVX2.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn load_part(self, from: &[f32], rest: f32) -> __m256 {
        let mask = first(self, from.len());
        // SAFETY: the mask covers just the floats of `from`; the CPU has AVX2.
        unsafe {
            let part = _mm256_maskload_ps(from.as_ptr(), mask);
            _mm256_blendv_ps(_mm256_set1_ps(rest), part, _mm256_castsi256_ps(mask))
        }
    }

    #[inline(always)]
    fn store_part(self, x: __m256, to: &mut [f32]) {
        let mask = first(self, to.len());
        // SAFETY: the mask covers just the floats of `to`; the CPU has AVX2.
        unsafe { _mm256_maskstore_ps(to.as_mut_ptr(), mask, x) }
    }

    #[inline(always)]
    fn load_pairs(self, from: &[u32]) -> [__m256; 2] {
        let from = &from[..LANES];
        // SAFETY: `from` has eight words; the CPU has AVX2.
        unsafe {
            let pairs = _mm256_loadu_si256(from.as_ptr().cast());
            let upper = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(upper)]
        }
    }

    #[inline(always)]
    fn zero_ints(self) -> __m256i {
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    fn load_byte_pairs(self, from: &[u32]) -> [__m256i; 2] {
        let from = from[..LANES].as_ptr().cast::<__m128i>();
        // SAFETY: there are eight words, two vectors of four; the CPU has AVX2.
        unsafe { [_mm256_cvtepi8_epi16(_mm_loadu_si128(from)), _mm256_cvtepi8_epi16(_mm_loadu_si128(from.add(1)))] }
    }

    #[inline(always)]
    fn splat_pair(self, pair: u32) -> __m256i {
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        unsafe { _mm256_set1_epi32(pair.cast_signed()) }
    }

    #[inline(always)]
    fn dot_pairs(self, a: __m256i, b: __m256i, sum: __m256i) -> __m256i {
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)) }
    }

    #[inline(always)]
    fn add_ints(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        unsafe { _mm256_add_epi32(a, b) }
    }

    #[inline(always)]
    fn to_floats(self, x: __m256i) -> __m256 {
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        unsafe { _mm256_cvtepi32_ps(x) }
    }

    #[inline(always)]
    fn store_pairs(self, a: __m256, b: __m256, to: &mut [u32]) {
        let to = &mut to[..LANES];
        // SAFETY: `to` has eight words; the CPU has AVX2.
        unsafe {
            // Packing works within halves of 128 bits, hence the exchange of the middle quarters.
            let packed = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: a prefetch reads nothing that the program sees, at any address; every x86-64 CPU has SSE.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        unsafe { _mm256_div_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: an `Avx2` exists only where FMA was detected.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        unsafe { _mm256_min_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    fn select_less(self, a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        unsafe { _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
    }

    #[inline(always)]
    fn round(self, x: __m256) -> __m256 {
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }

    #[inline(always)]
    fn scale_by_power_of_two(self, x: __m256, n: __m256) -> __m256 {
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        }
    }

    #[inline(always)]
    fn sum(self, x: __m256) -> f32 {
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        unsafe {
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }

    #[inline(always)]
    fn max_lane(self, x: __m256) -> f32 {
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        unsafe {
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }

    #[inline(always)]
    fn transpose(self, from: &[f32], stride: usize, to: &mut [f32], to_stride: usize) {
        let row = |row: usize| self.load(&from[row * stride..]);
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        unsafe {
            // In pairs of rows, then in fours within each half, then the halves change places.
            let pair = |a: __m256, b: __m256| [_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)];
            let four = |[a, b]: [__m256; 2], [c, d]: [__m256; 2]| {
                [
                    _mm256_shuffle_ps::<0x44>(a, c),
                    _mm256_shuffle_ps::<0xee>(a, c),
                    _mm256_shuffle_ps::<0x44>(b, d),
                    _mm256_shuffle_ps::<0xee>(b, d),
                ]
            };
            let upper = four(pair(row(0), row(1)), pair(row(2), row(3)));
            let lower = four(pair(row(4), row(5)), pair(row(6), row(7)));
            for (i, (a, b)) in upper.into_iter().zip(lower).enumerate() {
                self.store(_mm256_permute2f128_ps::<0x20>(a, b), &mut to[i * to_stride..]);
                self.store(_mm256_permute2f128_ps::<0x31>(a, b), &mut to[(i + 4) * to_stride..]);
            }
        }
    }
}
