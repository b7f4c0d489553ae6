//! The cosine of one source vector with one row after another.
//!
//! The inner loop takes the dot product and the row's squared norm in one pass over the row, in `f32` lanes that are
//! emptied into `f64` every [`BLOCK`] components: fast as memory, and within 1e-6 of `f64` at any length. Rows outside
//! the range where that holds are computed in `f64` altogether.

#![deny(unsafe_code)]

mod portable;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86;

use std::borrow::Cow;

/// Components that are summed in `f32` before the sums go into `f64`. A multiple of every kernel's step.
const BLOCK: usize = 1024;

/// Squared norms of rows that the `f32` loop is trusted with. Below, squares lose bits to underflow; above, they
/// overflow. The source is scaled to a norm in `[1, 2)`, so the dot product's terms are in the row's own range.
const TRUSTED_SQUARES: std::ops::Range<f64> = 1e-20..1e30;

/// Dot product of two vectors of one length, and the squared norm of the second.
type Kernel = fn(&[f32], &[f32]) -> (f64, f64);

/// Why a vector has no direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VectorFault {
    Zero,
    NonFinite { component: usize },
}

/// A source vector, checked and scaled once for many rows.
pub(crate) struct Source<'a> {
    original: &'a [f32],
    /// The source times a power of two (so that nothing is rounded), of norm in `[1, 2)`.
    scaled: Cow<'a, [f32]>,
    scaled_norm: f64,
    kernel: Kernel,
}

impl<'a> Source<'a> {
    pub(crate) fn new(source: &'a [f32]) -> Result<Self, VectorFault> {
        Self::with_kernel(source, best_kernel().1)
    }

    fn with_kernel(source: &'a [f32], kernel: Kernel) -> Result<Self, VectorFault> {
        let norm = exact_norm(source)?;
        let exponent = norm.log2().floor();
        let scaled = if exponent == 0.0 {
            Cow::Borrowed(source)
        } else {
            let factor = (-exponent).exp2();
            source.iter().map(|&x| (f64::from(x) * factor) as f32).collect()
        };
        // By the kernel and not from `norm`: a row equal to the source then has the similarity 1, to the bit.
        let (_, squares) = kernel(&scaled, &scaled);
        Ok(Self { original: source, scaled, scaled_norm: squares.sqrt(), kernel })
    }

    pub(crate) fn dim(&self) -> usize {
        self.original.len()
    }

    /// The cosine with `row`, which has the source's length.
    pub(crate) fn similarity(&self, row: &[f32]) -> Result<f32, VectorFault> {
        let (dot, squares) = (self.kernel)(&self.scaled, row);
        // A NaN or an infinity in the row makes the squares NaN or infinite: checking costs nothing here.
        let cosine = if TRUSTED_SQUARES.contains(&squares) {
            dot / (self.scaled_norm * squares.sqrt())
        } else {
            self.exact_similarity(row)?
        };
        Ok(cosine.clamp(-1.0, 1.0) as f32)
    }

    #[cold]
    fn exact_similarity(&self, row: &[f32]) -> Result<f64, VectorFault> {
        let row_norm = exact_norm(row)?;
        let source_norm = exact_norm(self.original)?;
        let dot: f64 = self.original.iter().zip(row).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        Ok(dot / source_norm / row_norm)
    }
}

/// The norm in `f64`, where no square of an `f32` overflows or underflows.
fn exact_norm(vector: &[f32]) -> Result<f64, VectorFault> {
    if let Some(component) = vector.iter().position(|x| !x.is_finite()) {
        return Err(VectorFault::NonFinite { component });
    }
    let squares: f64 = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    if squares == 0.0 { Err(VectorFault::Zero) } else { Ok(squares.sqrt()) }
}

pub(crate) fn kernel_name() -> &'static str {
    best_kernel().0
}

fn best_kernel() -> (&'static str, Kernel) {
    kernels().next().unwrap_or(("portable", portable::dot_and_squares))
}

/// The kernels that this machine can run, the fastest first.
fn kernels() -> impl Iterator<Item = (&'static str, Kernel)> {
    #[cfg(target_arch = "x86_64")]
    let simd = x86::kernels();
    #[cfg(not(target_arch = "x86_64"))]
    let simd = std::iter::empty();
    simd.chain([("portable", portable::dot_and_squares as Kernel)])
}

#[cfg(test)]
mod tests;
