//! Vectors of f32 on whatever instruction set the machine has, chosen once when the backend starts.
//!
//! A kernel is written once over [`Simd`] and compiled once for each instruction set: [`Simd::vectorize`] enters a
//! function that carries the set's target features, and everything below it is inlined into that function. So every
//! function that is generic over [`Simd`] must be `#[inline(always)]`, or it would be compiled without the features and
//! call each instruction as a function.
//!
//! A value of an implementing type is the proof that the CPU has the instructions: it is made only by [`Level::new`].
//!
//! Deliberately absent: gathers, integer arithmetic beyond products of 16-bit pairs, anything wider than what the kernels
//! here need.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod math;
mod portable;

use super::CpuWeights;
use portable::Portable;

/// An instruction set for which the kernels are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// What the compiler makes of four floats at a time; on every machine.
    Portable,
    /// x86-64 with AVX2 and FMA: eight floats.
    Avx2,
    /// x86-64 with AVX-512F: sixteen floats.
    Avx512,
}

impl Isa {
    /// Every instruction set, the fastest first.
    pub const ALL: [Self; 3] = [Self::Avx512, Self::Avx2, Self::Portable];

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        Level::new(self).is_some()
    }

    /// Whether a real CPU has passed the conformance cases with it, for weights held like that. What has not is taken only
    /// where it is asked for.
    const fn is_proven(self, weights: CpuWeights) -> bool {
        // Products of integers with AVX-512 have only been compiled so far.
        !matches!((self, weights), (Self::Avx512, CpuWeights::Int8))
    }

    /// The fastest that this machine can run, of those that are proven.
    pub fn detect(weights: CpuWeights) -> Self {
        let proven = |isa: &Self| isa.is_proven(weights) && isa.is_available();
        Self::ALL.into_iter().find(proven).unwrap_or(Self::Portable)
    }

    /// One that this machine can run and that is faster than [`Isa::detect`], but was never proven.
    pub fn unproven(weights: CpuWeights) -> Option<Self> {
        let faster = Self::ALL.into_iter().take_while(|isa| *isa != Self::detect(weights));
        faster.filter(|isa| !isa.is_proven(weights)).find(|isa| isa.is_available())
    }

    /// The names of all that this machine can run.
    pub fn available_names() -> Vec<&'static str> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).map(Self::name).collect()
    }

    /// Its name in lower case, as the backend's name shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }
}

/// An instruction set that is known to be present.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Level {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
}

impl Level {
    /// The level of `isa`, or `None` where the CPU lacks it.
    pub(crate) fn new(isa: Isa) -> Option<Self> {
        match isa {
            Isa::Portable => Some(Self::Portable(Portable)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::Avx2::detect().map(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::Avx512::detect().map(Self::Avx512),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => None,
        }
    }

    /// Runs a kernel with the instructions of this level.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Portable(simd) => simd.vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => simd.vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => simd.vectorize(kernel),
        }
    }

    /// Floats in a vector.
    pub(crate) fn lanes(self) -> usize {
        match self {
            Self::Portable(_) => Portable::LANES,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => avx2::Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => avx512::Avx512::LANES,
        }
    }
}

/// Code that runs on any instruction set. `run` must be `#[inline(always)]`, like all that it calls.
pub(crate) trait Kernel {
    type Output;

    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Operations on a vector of f32.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Floats in a vector.
    const LANES: usize;

    /// Rows of a register tile of two vectors a row, as many as leave registers for the operands.
    const TILE_ROWS: usize;

    type Vector: Copy;

    /// [`Simd::LANES`] integers of 32 bits, or as many pairs of 16.
    type Ints: Copy;

    /// Runs `kernel` in a function that is compiled for this instruction set.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, x: f32) -> Self::Vector;

    /// The first [`Simd::LANES`] floats of `from`, which has at least as many.
    fn load(self, from: &[f32]) -> Self::Vector;

    /// Stores to the first [`Simd::LANES`] floats of `to`, which has at least as many.
    fn store(self, x: Self::Vector, to: &mut [f32]);

    /// Loads up to [`Simd::LANES`] floats, `rest` in the remaining lanes.
    fn load_part(self, from: &[f32], rest: f32) -> Self::Vector;

    /// Stores the first `to.len()` lanes, at most all of them.
    fn store_part(self, x: Self::Vector, to: &mut [f32]);

    /// Two vectors out of [`Simd::LANES`] words: of each word the lower half is a bf16 for the first, the upper half a
    /// bf16 for the second.
    fn load_pairs(self, from: &[u32]) -> [Self::Vector; 2];

    /// All lanes zero.
    fn zero_ints(self) -> Self::Ints;

    /// Two vectors of pairs of 16-bit integers out of [`Simd::LANES`] words, which hold pairs of 8-bit ones: the first half
    /// of the words for the first vector.
    fn load_byte_pairs(self, from: &[u32]) -> [Self::Ints; 2];

    /// The pair of 16-bit integers in `pair`, in every lane.
    fn splat_pair(self, pair: u32) -> Self::Ints;

    /// `sum + a.0 * b.0 + a.1 * b.1` in every lane, where `a` and `b` hold pairs of 16-bit integers.
    fn dot_pairs(self, a: Self::Ints, b: Self::Ints, sum: Self::Ints) -> Self::Ints;

    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;

    /// The nearest floats.
    fn to_floats(self, x: Self::Ints) -> Self::Vector;

    /// The nearest 16-bit integers to the lanes of `a`, then to those of `b`, as [`Simd::LANES`] words of pairs. Lanes must
    /// be within 16 bits; what becomes of others is not said.
    fn store_pairs(self, a: Self::Vector, b: Self::Vector, to: &mut [u32]);

    /// Asks for the cache line at `address`, which need not be one that the program may read.
    fn prefetch(self, address: *const u8);

    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn sub(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn mul(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn div(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// `a * b + c`, fused where the set can.
    fn mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;

    /// The smaller; `b` where either is NaN.
    fn min(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// The larger; `b` where either is NaN.
    fn max(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// `yes` where `a < b`, else `no`, which includes NaN.
    fn select_less(self, a: Self::Vector, b: Self::Vector, yes: Self::Vector, no: Self::Vector) -> Self::Vector;

    /// The nearest integers.
    fn round(self, x: Self::Vector) -> Self::Vector;

    /// `x * 2^n` for integral `n` in `-126..=127`.
    fn scale_by_power_of_two(self, x: Self::Vector, n: Self::Vector) -> Self::Vector;

    /// The sum of all lanes.
    fn sum(self, x: Self::Vector) -> f32;

    /// The largest lane.
    fn max_lane(self, x: Self::Vector) -> f32;

    /// A square of [`Simd::LANES`] by as many floats, rows `stride` apart in `from`, with rows and columns exchanged, to
    /// rows `to_stride` apart in `to`.
    fn transpose(self, from: &[f32], stride: usize, to: &mut [f32], to_stride: usize);
}

/// [`Simd::transpose`] of `lanes` by `lanes` floats, one at a time.
#[inline(always)]
fn transpose_each(lanes: usize, from: &[f32], stride: usize, to: &mut [f32], to_stride: usize) {
    for row in 0..lanes {
        let from = &from[row * stride..row * stride + lanes];
        for (column, &x) in from.iter().enumerate() {
            to[column * to_stride + row] = x;
        }
    }
}

#[cfg(test)]
mod tests;
