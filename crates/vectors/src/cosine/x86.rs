//! The inner loop for x86-64: AVX-512 and AVX2 with FMA, picked at run time.
//!
//! The only module of the crate with `unsafe` in it. Tails shorter than a step go through `f64`, as in the portable
//! loop.

use super::{BLOCK, Kernel};
use std::arch::x86_64::*;

pub(super) fn kernels() -> impl Iterator<Item = (&'static str, Kernel)> {
    let avx512: Option<(&'static str, Kernel)> =
        is_x86_feature_detected!("avx512f").then_some(("avx512", avx512_checked as Kernel));
    let avx2: Option<(&'static str, Kernel)> = (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"))
        .then_some(("avx2", avx2_checked as Kernel));
    avx512.into_iter().chain(avx2)
}

fn avx512_checked(source: &[f32], row: &[f32]) -> (f64, f64) {
    // SAFETY: `kernels`, the only way to this function, hands it out only where the CPU has AVX-512F.
    unsafe { avx512(source, row) }
}

fn avx2_checked(source: &[f32], row: &[f32]) -> (f64, f64) {
    // SAFETY: `kernels`, the only way to this function, hands it out only where the CPU has AVX2 and FMA.
    unsafe { avx2(source, row) }
}

/// Four vectors of 16 in flight for each sum: eight independent chains of FMA.
const STEP_512: usize = 64;
/// Four vectors of 8.
const STEP_256: usize = 32;

const _: () = assert!(BLOCK.is_multiple_of(STEP_512) && BLOCK.is_multiple_of(STEP_256));

#[target_feature(enable = "avx512f")]
fn avx512(source: &[f32], row: &[f32]) -> (f64, f64) {
    let (mut dot, mut squares) = (_mm512_setzero_pd(), _mm512_setzero_pd());
    let (mut dot_rest, mut squares_rest) = (0.0, 0.0);
    for (source, row) in source.chunks(BLOCK).zip(row.chunks(BLOCK)) {
        let (source_steps, source_rest) = source.as_chunks::<STEP_512>();
        let (row_steps, row_rest) = row.as_chunks::<STEP_512>();
        let mut d = [_mm512_setzero_ps(); 4];
        let mut q = [_mm512_setzero_ps(); 4];
        for (source_step, row_step) in source_steps.iter().zip(row_steps) {
            for lane in 0..4 {
                // SAFETY: both arrays have 64 components, and 16 * lane + 16 <= 64.
                let (s, r) = unsafe {
                    (
                        _mm512_loadu_ps(source_step.as_ptr().add(16 * lane)),
                        _mm512_loadu_ps(row_step.as_ptr().add(16 * lane)),
                    )
                };
                prefetch(&row_step[16 * lane]);
                d[lane] = _mm512_fmadd_ps(s, r, d[lane]);
                q[lane] = _mm512_fmadd_ps(r, r, q[lane]);
            }
        }
        for lane in 0..4 {
            dot = _mm512_add_pd(dot, widen_512(d[lane]));
            squares = _mm512_add_pd(squares, widen_512(q[lane]));
        }
        rest(source_rest, row_rest, &mut dot_rest, &mut squares_rest);
    }
    (_mm512_reduce_add_pd(dot) + dot_rest, _mm512_reduce_add_pd(squares) + squares_rest)
}

/// Components ahead of the loads that lines are asked for: a page, since the hardware's own prefetching stops at the end
/// of each. Worth a fifth of the speed where rows come from memory.
const PREFETCH_AHEAD: usize = 1024;

/// Asks for the cache line that will be read [`PREFETCH_AHEAD`] components after `component`, in this row or the next.
#[inline(always)]
fn prefetch(component: &f32) {
    let ahead = std::ptr::from_ref(component).wrapping_add(PREFETCH_AHEAD);
    // SAFETY: a prefetch reads nothing and never faults, wherever it points.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) }
}

/// Sixteen `f32` as eight sums of two, in `f64`.
#[target_feature(enable = "avx512f")]
fn widen_512(v: __m512) -> __m512d {
    let low = _mm512_castps512_ps256(v);
    let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
    _mm512_add_pd(_mm512_cvtps_pd(low), _mm512_cvtps_pd(high))
}

#[target_feature(enable = "avx2,fma")]
fn avx2(source: &[f32], row: &[f32]) -> (f64, f64) {
    let (mut dot, mut squares) = (_mm256_setzero_pd(), _mm256_setzero_pd());
    let (mut dot_rest, mut squares_rest) = (0.0, 0.0);
    for (source, row) in source.chunks(BLOCK).zip(row.chunks(BLOCK)) {
        let (source_steps, source_rest) = source.as_chunks::<STEP_256>();
        let (row_steps, row_rest) = row.as_chunks::<STEP_256>();
        let mut d = [_mm256_setzero_ps(); 4];
        let mut q = [_mm256_setzero_ps(); 4];
        for (source_step, row_step) in source_steps.iter().zip(row_steps) {
            for lane in 0..4 {
                // SAFETY: both arrays have 32 components, and 8 * lane + 8 <= 32.
                let (s, r) = unsafe {
                    (
                        _mm256_loadu_ps(source_step.as_ptr().add(8 * lane)),
                        _mm256_loadu_ps(row_step.as_ptr().add(8 * lane)),
                    )
                };
                if lane % 2 == 0 {
                    prefetch(&row_step[8 * lane]);
                }
                d[lane] = _mm256_fmadd_ps(s, r, d[lane]);
                q[lane] = _mm256_fmadd_ps(r, r, q[lane]);
            }
        }
        for lane in 0..4 {
            dot = _mm256_add_pd(dot, widen_256(d[lane]));
            squares = _mm256_add_pd(squares, widen_256(q[lane]));
        }
        rest(source_rest, row_rest, &mut dot_rest, &mut squares_rest);
    }
    (sum_256(dot) + dot_rest, sum_256(squares) + squares_rest)
}

/// Eight `f32` as four sums of two, in `f64`.
#[target_feature(enable = "avx2")]
fn widen_256(v: __m256) -> __m256d {
    let (low, high) = (_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    _mm256_add_pd(_mm256_cvtps_pd(low), _mm256_cvtps_pd(high))
}

#[target_feature(enable = "avx2")]
fn sum_256(v: __m256d) -> f64 {
    let pairs = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd::<1>(v));
    _mm_cvtsd_f64(_mm_add_sd(pairs, _mm_unpackhi_pd(pairs, pairs)))
}

/// What does not fill a step.
fn rest(source: &[f32], row: &[f32], dot: &mut f64, squares: &mut f64) {
    for (&s, &r) in source.iter().zip(row) {
        *dot += f64::from(s) * f64::from(r);
        *squares += f64::from(r) * f64::from(r);
    }
}
