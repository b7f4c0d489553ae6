//! Sixteen floats at a time with AVX-512F and AVX-512BW, which every CPU with AVX-512 has that is not a Xeon Phi.

#![allow(unsafe_code)]

use super::{Kernel, Simd};
use std::arch::x86_64::*;

/// Proof that the CPU has AVX-512F and AVX-512BW.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

const LANES: usize = 16;

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")).then_some(Self(()))
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn enter<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// The mask of the first `lanes` lanes.
#[inline(always)]
fn first(lanes: usize) -> __mmask16 {
    assert!(lanes <= LANES);
    ((1u32 << lanes) - 1) as __mmask16
}

impl Simd for Avx512 {
    const LANES: usize = LANES;
    // 24 accumulators, two operands and a broadcast fit the 32 registers, and hide four cycles of latency thrice over.
    const TILE_ROWS: usize = 12;

    type Vector = __m512;
    type Ints = __m512i;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: an `Avx512` exists only where AVX-512F was detected.
        unsafe { enter(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: an `Avx512` exists only where AVX-512F was detected.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m512 {
        let from = &from[..LANES];
        // SAFETY: `from` has sixteen floats; the CPU has AVX-512F.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32]) {
        let to = &mut to[..LANES];
        // SAFETY: `to` has sixteen floats; the CPU has AVX-512F.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn load_part(self, from: &[f32], rest: f32) -> __m512 {
        // SAFETY: the mask covers just the floats of `from`; the CPU has AVX-512F.
        unsafe { _mm512_mask_loadu_ps(_mm512_set1_ps(rest), first(from.len()), from.as_ptr()) }
    }

    #[inline(always)]
    fn store_part(self, x: __m512, to: &mut [f32]) {
        // SAFETY: the mask covers just the floats of `to`; the CPU has AVX-512F.
        unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), first(to.len()), x) }
    }

    #[inline(always)]
    fn load_pairs(self, from: &[u32]) -> [__m512; 2] {
        let from = &from[..LANES];
        // SAFETY: `from` has sixteen words; the CPU has AVX-512F.
        unsafe {
            let pairs = _mm512_loadu_si512(from.as_ptr().cast());
            let upper = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(upper)]
        }
    }

    #[inline(always)]
    fn zero_ints(self) -> __m512i {
        // SAFETY: an `Avx512` exists only where AVX-512F was detected.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn load_byte_pairs(self, from: &[u32]) -> [__m512i; 2] {
        let from = from[..LANES].as_ptr().cast::<__m256i>();
        // SAFETY: there are sixteen words, two vectors of eight; the CPU has AVX-512BW, and so AVX.
        unsafe {
            [_mm512_cvtepi8_epi16(_mm256_loadu_si256(from)), _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.add(1)))]
        }
    }

    #[inline(always)]
    fn splat_pair(self, pair: u32) -> __m512i {
        // SAFETY: an `Avx512` exists only where AVX-512F was detected.
        unsafe { _mm512_set1_epi32(pair.cast_signed()) }
    }

    #[inline(always)]
    fn dot_pairs(self, a: __m512i, b: __m512i, sum: __m512i) -> __m512i {
        // SAFETY: an `Avx512` exists only where AVX-512BW was detected.
        unsafe { _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)) }
    }

    #[inline(always)]
    fn add_ints(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: an `Avx512` exists only where AVX-512F was detected.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn to_floats(self, x: __m512i) -> __m512 {
        // SAFETY: an `Avx512` exists only where AVX-512F was detected.
        unsafe { _mm512_cvtepi32_ps(x) }
    }

    #[inline(always)]
    fn store_pairs(self, a: __m512, b: __m512, to: &mut [u32]) {
        let to = to[..LANES].as_mut_ptr().cast::<__m256i>();
        // SAFETY: `to` has sixteen words, two vectors of eight; the CPU has AVX-512F, and so AVX.
        unsafe {
            _mm256_storeu_si256(to, _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(a)));
            _mm256_storeu_si256(to.add(1), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(b)));
        }
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: a prefetch reads nothing that the program sees, at any address; every x86-64 CPU has SSE.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: an `Avx512` exists only where AVX-512F was detected.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: an `Avx512` exists only where AVX-512F was detected.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: an `Avx512` exists only where AVX-512F was detected.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: an `Avx512` exists only where AVX-512F was detected.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: an `Avx512` exists only where AVX-512F was detected.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: an `Avx512` exists only where AVX-512F was detected.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: an `Avx512` exists only where AVX-512F was detected.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn select_less(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        // SAFETY: an `Avx512` exists only where AVX-512F was detected.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes) }
    }

    #[inline(always)]
    fn round(self, x: __m512) -> __m512 {
        // SAFETY: an `Avx512` exists only where AVX-512F was detected.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }

    #[inline(always)]
    fn scale_by_power_of_two(self, x: __m512, n: __m512) -> __m512 {
        // SAFETY: an `Avx512` exists only where AVX-512F was detected.
        unsafe { _mm512_scalef_ps(x, n) }
    }

    #[inline(always)]
    fn sum(self, x: __m512) -> f32 {
        // SAFETY: an `Avx512` exists only where AVX-512F was detected.
        unsafe { _mm512_reduce_add_ps(x) }
    }

    #[inline(always)]
    fn max_lane(self, x: __m512) -> f32 {
        // SAFETY: an `Avx512` exists only where AVX-512F was detected.
        unsafe { _mm512_reduce_max_ps(x) }
    }

    #[inline(always)]
    fn transpose(self, from: &[f32], stride: usize, to: &mut [f32], to_stride: usize) {
        // A plain loop until a real CPU says that it matters.
        super::transpose_each(LANES, from, stride, to, to_stride);
    }
}
