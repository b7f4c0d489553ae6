//! The inner loops for x86-64: AVX-512 and AVX2 (with FMA and F16C), picked at run time.
//!
//! The only module of the crate with `unsafe` in it. The loops are written once, over [`Simd`] (a vector width) and
//! [`Load`] (a component format), and become instructions by being inlined into functions compiled for those: see
//! `entries!`. Closures are left out of them: nothing obliges the compiler to inline one, and where it is not, every
//! instruction is a call.
//!
//! The tests run every kernel that their machine has: AVX-512 is tested only where there is AVX-512.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "indices that are constants once unrolled, over several arrays")]

use super::{BLOCK, GROUP, Kernel, PIECE, Panel, UNIT};
use crate::Dtype;
use crate::sources::units;
use std::arch::x86_64::*;

pub(super) fn kernels(dtype: Dtype) -> impl Iterator<Item = Kernel> {
    fn of<C: Load<Avx2> + Load<Avx512>>() -> [Option<Kernel>; 2] {
        let avx2 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        let avx512 = avx2 && is_x86_feature_detected!("avx512f");
        [avx512.then(avx512::kernel::<C>), avx2.then(avx2::kernel::<C>)]
    }
    let kernels = match dtype {
        Dtype::F32 => of::<F32>(),
        Dtype::F16 => of::<F16>(),
        Dtype::Bf16 => of::<Bf16>(),
    };
    kernels.into_iter().flatten()
}

/// A vector width.
///
/// # Safety
///
/// Every method may be called only from code that the CPU's features were checked for; pointers must be good for a
/// vector's worth of reading.
trait Simd {
    type Vector: Copy;
    /// `f32` in a vector.
    const LANES: usize;

    unsafe fn zero() -> Self::Vector;
    unsafe fn load(from: *const f32) -> Self::Vector;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// The sum of each vector's lanes: two additions in `f32`, the others in `f64`.
    unsafe fn sums(vectors: [Self::Vector; 4]) -> __m256d;
}

/// A component format, as a vector width reads it.
///
/// # Safety
///
/// As [`Simd`]. Pointers may be to any address.
trait Load<S: Simd> {
    const BYTES: usize;

    unsafe fn load(from: *const u8) -> S::Vector;
}

struct Avx2;
struct Avx512;

struct F32;
struct F16;
struct Bf16;

impl Simd for Avx2 {
    type Vector = __m256;
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: the trait's.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        // SAFETY: the trait's.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the trait's.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn sums([a, b, c, d]: [__m256; 4]) -> __m256d {
        // SAFETY: the trait's.
        unsafe {
            // In each half: a0 + a2, b0 + b2, a1 + a3, b1 + b3; then the same for c and d.
            let ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let halves =
                _mm256_add_ps(_mm256_shuffle_ps::<0b0100_0100>(ab, cd), _mm256_shuffle_ps::<0b1110_1110>(ab, cd));
            let (low, high) = (_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
            _mm256_add_pd(_mm256_cvtps_pd(low), _mm256_cvtps_pd(high))
        }
    }
}

impl Simd for Avx512 {
    type Vector = __m512;
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: the trait's.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: the trait's.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the trait's.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn sums(vectors: [__m512; 4]) -> __m256d {
        // SAFETY: the trait's.
        unsafe {
            let (mut low, mut high) = ([_mm256_setzero_ps(); 4], [_mm256_setzero_ps(); 4]);
            for i in 0..4 {
                low[i] = _mm512_castps512_ps256(vectors[i]);
                high[i] = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(vectors[i])));
            }
            _mm256_add_pd(Avx2::sums(low), Avx2::sums(high))
        }
    }
}

impl Load<Avx2> for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m256 {
        // SAFETY: the trait's; the instruction takes any address.
        unsafe { _mm256_loadu_ps(from.cast()) }
    }
}

impl Load<Avx2> for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m256 {
        // SAFETY: the trait's; the instruction takes any address.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
}

impl Load<Avx2> for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m256 {
        // SAFETY: the trait's; the instruction takes any address.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())))) }
    }
}

impl Load<Avx512> for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512 {
        // SAFETY: the trait's; the instruction takes any address.
        unsafe { _mm512_loadu_ps(from.cast()) }
    }
}

impl Load<Avx512> for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512 {
        // SAFETY: the trait's; the instruction takes any address.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
}

impl Load<Avx512> for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512 {
        // SAFETY: the trait's; the instruction takes any address.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())))) }
    }
}

/// Bytes ahead of the loads that lines are asked for, in each row: the hardware's own prefetching stops at the end of
/// each page.
const PREFETCH_AHEAD: usize = 512;

const LINE: usize = 64;

/// Rows that are gone over at once with one source: one place alone does not get all that the memory gives.
const SCAN_ROWS: usize = 4;

/// One source, or none, and rows as they lie.
///
/// # Safety
///
/// As [`Simd`].
#[inline(always)]
unsafe fn scan<S: Simd, C: Load<S>, const DOTS: bool, const SQUARES: bool>(panel: Panel<'_>) {
    let Panel { source, dim, rows, dots, squares, .. } = panel;
    let (len, row_bytes) = (units(dim), dim * C::BYTES);
    if len == 0 || rows.is_empty() {
        return;
    }
    let count = rows.len() / row_bytes;
    assert!(rows.len() == count * row_bytes);
    assert!(!DOTS || dots.len() == count && source.len() >= len);
    assert!(!SQUARES || squares.len() == count);
    let source = source.as_ptr();
    for first in (0..count).step_by(SCAN_ROWS) {
        let tile = Tile { first: rows[first * row_bytes..].as_ptr(), row_bytes, len };
        let here = first..(first + SCAN_ROWS).min(count);
        // SAFETY: the rows have at least `len` components, the source as well if it is wanted; the caller vouches for the
        // CPU.
        let sums = unsafe {
            match here.len() {
                1 => tile.scan::<S, C, DOTS, SQUARES, 1>(source),
                2 => tile.scan::<S, C, DOTS, SQUARES, 2>(source),
                3 => tile.scan::<S, C, DOTS, SQUARES, 3>(source),
                _ => tile.scan::<S, C, DOTS, SQUARES, SCAN_ROWS>(source),
            }
        };
        if DOTS {
            dots[here.clone()].iter_mut().zip(sums[0]).for_each(|(dot, sum)| *dot += sum);
        }
        if SQUARES {
            squares[here].iter_mut().zip(sums[1]).for_each(|(square, sum)| *square += sum);
        }
    }
}

/// Rows that are multiplied with a group of sources at once: with four sources, as many sums as there are registers for.
const TILE_ROWS: usize = 3;

/// A few rows' components of one piece.
#[derive(Clone, Copy)]
struct Tile {
    /// Where the first row's begin.
    first: *const u8,
    /// From one row to the next.
    row_bytes: usize,
    /// Components of the piece: a multiple of a unit.
    len: usize,
}

impl Tile {
    /// The dot products of `R` rows with `source`, and their squares.
    ///
    /// # Safety
    ///
    /// As [`Simd`]; there are `R` rows, and a source with as many components if dot products are wanted.
    #[inline(always)]
    unsafe fn scan<S: Simd, C: Load<S>, const DOTS: bool, const SQUARES: bool, const R: usize>(
        self,
        source: *const f32,
    ) -> [[f64; 4]; 2] {
        // SAFETY: blocks and rest end at `len`.
        unsafe {
            let mut totals = [_mm256_setzero_pd(); 2];
            let whole = self.len / BLOCK * BLOCK;
            for at in (0..whole).step_by(BLOCK) {
                self.scan_block::<S, C, DOTS, SQUARES, R, true>(source, at, BLOCK, &mut totals);
            }
            if whole < self.len {
                self.scan_block::<S, C, DOTS, SQUARES, R, true>(source, whole, self.len - whole, &mut totals);
            }
            let mut out = [[0.0; 4]; 2];
            for i in 0..2 {
                _mm256_storeu_pd(out[i].as_mut_ptr(), totals[i]);
            }
            out
        }
    }

    /// # Safety
    ///
    /// As [`Self::scan`]; `at + len` is at most the tile's length.
    #[inline(always)]
    unsafe fn scan_block<
        S: Simd,
        C: Load<S>,
        const DOTS: bool,
        const SQUARES: bool,
        const R: usize,
        const AHEAD: bool,
    >(
        self,
        source: *const f32,
        at: usize,
        len: usize,
        totals: &mut [__m256d; 2],
    ) {
        // SAFETY: every offset is below `at + len`; prefetches read nothing and never fault, wherever they point.
        unsafe {
            let (mut dots, mut squares) = ([S::zero(); 4], [S::zero(); 4]);
            // Beyond the end of these rows, the next ones begin.
            let mut ahead = at * C::BYTES + PREFETCH_AHEAD;
            if ahead >= self.row_bytes {
                ahead += (R - 1) * self.row_bytes;
            }
            for i in 0..if AHEAD { R } else { 0 } {
                for line in 0..BLOCK * C::BYTES / LINE {
                    let address = self.first.wrapping_add(i * self.row_bytes + ahead + line * LINE);
                    _mm_prefetch::<_MM_HINT_T0>(address.cast());
                }
            }
            for step in 0..len / S::LANES {
                let component = at + step * S::LANES;
                let s = if DOTS { S::load(source.add(component)) } else { S::zero() };
                for i in 0..R {
                    let r = C::load(self.first.add(i * self.row_bytes + component * C::BYTES));
                    if DOTS {
                        dots[i] = S::fma(s, r, dots[i]);
                    }
                    if SQUARES {
                        squares[i] = S::fma(r, r, squares[i]);
                    }
                }
            }
            if DOTS {
                totals[0] = _mm256_add_pd(totals[0], S::sums(dots));
            }
            if SQUARES {
                totals[1] = _mm256_add_pd(totals[1], S::sums(squares));
            }
        }
    }

    /// Adds the dot products of `R` rows with the group of sources at `packed` to four numbers at `dots`, and so on for
    /// each row, `stride` numbers further on.
    ///
    /// # Safety
    ///
    /// As [`Simd`]; there are `R` rows, a group of sources with as many components, and room for the numbers.
    #[inline(always)]
    unsafe fn dots<S: Simd, C: Load<S>, const R: usize>(self, packed: *const f32, dots: *mut f64, stride: usize) {
        // SAFETY: blocks and rest end at `len`.
        unsafe {
            let mut totals = [_mm256_setzero_pd(); R];
            for i in 0..R {
                totals[i] = _mm256_loadu_pd(dots.add(i * stride));
            }
            let whole = self.len / BLOCK * BLOCK;
            for at in (0..whole).step_by(BLOCK) {
                self.dots_block::<S, C, R>(packed, at, BLOCK, &mut totals);
            }
            if whole < self.len {
                self.dots_block::<S, C, R>(packed, whole, self.len - whole, &mut totals);
            }
            for i in 0..R {
                _mm256_storeu_pd(dots.add(i * stride), totals[i]);
            }
        }
    }

    /// # Safety
    ///
    /// As [`Self::dots`]; `at + len` is at most the tile's length.
    #[inline(always)]
    unsafe fn dots_block<S: Simd, C: Load<S>, const R: usize>(
        self,
        packed: *const f32,
        at: usize,
        len: usize,
        totals: &mut [__m256d; R],
    ) {
        // SAFETY: every offset is below `at + len`, in each of the rows and in the group.
        unsafe {
            let mut sums = [[S::zero(); GROUP]; R];
            for step in 0..len / S::LANES {
                let component = at + step * S::LANES;
                let mut rows = [S::zero(); R];
                for i in 0..R {
                    rows[i] = C::load(self.first.add(i * self.row_bytes + component * C::BYTES));
                }
                let unit = packed.add(component / UNIT * UNIT * GROUP + component % UNIT);
                for source in 0..GROUP {
                    let s = S::load(unit.add(source * UNIT));
                    for i in 0..R {
                        sums[i][source] = S::fma(s, rows[i], sums[i][source]);
                    }
                }
            }
            for i in 0..R {
                totals[i] = _mm256_add_pd(totals[i], S::sums(sums[i]));
            }
        }
    }

    /// Adds the squares of `R` rows to `squares`.
    ///
    /// # Safety
    ///
    /// As [`Simd`]; there are `R` rows.
    #[inline(always)]
    unsafe fn squares<S: Simd, C: Load<S>, const R: usize>(self, squares: &mut [f64]) {
        // SAFETY: every offset is below `len`, in each of the rows.
        unsafe {
            let mut sums = [0.0; 4];
            sums[..R].copy_from_slice(squares);
            let mut totals = [_mm256_setzero_pd(), _mm256_loadu_pd(sums.as_ptr())];
            for at in (0..self.len).step_by(BLOCK) {
                let len = BLOCK.min(self.len - at);
                self.scan_block::<S, C, false, true, R, false>(std::ptr::null(), at, len, &mut totals);
            }
            _mm256_storeu_pd(sums.as_mut_ptr(), totals[1]);
            squares.copy_from_slice(&sums[..R]);
        }
    }
}

/// A piece of the components at a time, so that the sources' part of it stays in the L1 cache; a few rows at a time.
///
/// # Safety
///
/// As [`Simd`].
#[inline(always)]
unsafe fn panel<S: Simd, C: Load<S>>(panel: Panel<'_>) {
    let Panel { packed, dim, rows, dots, squares, .. } = panel;
    let (len, row_bytes) = (units(dim), dim * C::BYTES);
    if len == 0 || packed.is_empty() || rows.is_empty() {
        return;
    }
    let (groups, count) = (packed.len() * UNIT / (GROUP * len), rows.len() / row_bytes);
    let stride = groups * GROUP;
    assert!(
        packed.len() * UNIT == groups * GROUP * len && rows.len() == count * row_bytes && dots.len() == count * stride
    );
    assert!(squares.is_empty() || squares.len() == count);
    for at in (0..len).step_by(PIECE) {
        // What is needed next: these rows' next piece, or the first piece of the next panel's rows.
        let ahead = if at + PIECE < len { PIECE * C::BYTES } else { rows.len() - at * C::BYTES };
        for first in (0..count).step_by(TILE_ROWS) {
            let row = rows[first * row_bytes + at * C::BYTES..].as_ptr();
            let tile = Tile { first: row, row_bytes, len: PIECE.min(len - at) };
            let tile_rows = TILE_ROWS.min(count - first);
            let lines = tile.len * C::BYTES / LINE;
            for group in 0..groups {
                // A part with each group: more at once than the CPU can have under way would make it wait.
                for line in group * lines / groups..(group + 1) * lines / groups {
                    for i in 0..tile_rows {
                        let next = row.wrapping_add(i * row_bytes + ahead + line * LINE);
                        // SAFETY: a prefetch reads nothing and never faults, wherever it points.
                        unsafe { _mm_prefetch::<_MM_HINT_T1>(next.cast()) };
                    }
                }
                let packed = packed[(group * len + at) / UNIT * GROUP..][..tile.len / UNIT * GROUP].as_ptr().cast();
                let dots = dots[first * stride + group * GROUP..][..(tile_rows - 1) * stride + GROUP].as_mut_ptr();
                // SAFETY: the rows and the group reach at least `tile.len` components on from the piece's first, the
                // numbers lie in `dots`, and the caller vouches for the CPU.
                unsafe {
                    match tile_rows {
                        1 => tile.dots::<S, C, 1>(packed, dots, stride),
                        2 => tile.dots::<S, C, 2>(packed, dots, stride),
                        _ => tile.dots::<S, C, TILE_ROWS>(packed, dots, stride),
                    }
                }
            }
            if let Some(squares) = squares.get_mut(first..first + tile_rows) {
                // SAFETY: as above.
                unsafe {
                    match tile_rows {
                        1 => tile.squares::<S, C, 1>(squares),
                        2 => tile.squares::<S, C, 2>(squares),
                        _ => tile.squares::<S, C, TILE_ROWS>(squares),
                    }
                }
            }
        }
    }
}

/// The functions that the loops are inlined into, compiled for a set of CPU features.
macro_rules! entries {
    ($module:ident, $simd:ty, $features:literal) => {
        mod $module {
            use super::*;

            /// To be handed out only where the CPU has the features.
            pub(super) fn kernel<C: Load<$simd>>() -> Kernel {
                Kernel {
                    name: stringify!($module),
                    scan: |panel| {
                        let wanted = (!panel.dots.is_empty(), !panel.squares.is_empty());
                        // SAFETY: the CPU has the features, or this kernel would not have been handed out.
                        unsafe {
                            match wanted {
                                (true, true) => one::<C, true, true>(panel),
                                (true, false) => one::<C, true, false>(panel),
                                (false, true) => one::<C, false, true>(panel),
                                (false, false) => {}
                            }
                        }
                    },
                    // SAFETY: as above.
                    panel: |panel| unsafe { many::<C>(panel) },
                }
            }

            #[target_feature(enable = $features)]
            fn one<C: Load<$simd>, const DOTS: bool, const SQUARES: bool>(panel: Panel<'_>) {
                // SAFETY: this function has the features.
                unsafe { super::scan::<$simd, C, DOTS, SQUARES>(panel) }
            }

            #[target_feature(enable = $features)]
            fn many<C: Load<$simd>>(panel: Panel<'_>) {
                // SAFETY: this function has the features.
                unsafe { super::panel::<$simd, C>(panel) }
            }
        }
    };
}

entries!(avx2, Avx2, "avx2,fma,f16c");
entries!(avx512, Avx512, "avx512f,avx2,fma,f16c");
