//! The cosines of sources with one row after another.
//!
//! The inner loops sum products in `f32` lanes, [`BLOCK`] components at a time, and the blocks in `f64`. What that may
//! lose is bounded: a lane rounds [`ROUNDINGS`] times at most before its sum is an `f64`, each time by 2^-24 of the sum
//! of the products' magnitudes, which is at most the product of the norms. A row's squares lose as much, its norm half of
//! that: altogether 15 * 2^-24, or 9e-7, whatever the components are. Sources' norms are exact.
//!
//! Two kinds of rows are computed in `f64` altogether: those whose squares leave the range where that holds, and those
//! within the error of a cosine of 1 or -1, so that a row equal to the source has exactly the similarity 1.
//!
//! One source goes over the rows as they lie, at the speed of memory. Many go over panels of rows that stay in the
//! cache, a piece of the components at a time, so that rows come from memory once for [`SOURCES_AT_ONCE`] sources. Both
//! add up in the same order: a source alone and among others gives the same bits.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::sources::{Line, units};
use crate::{Dtype, Rows, Sources};
use std::ops::Range;

/// Components that the kernels go by. What does not fill a unit is summed in `f64`, by plain code.
pub(crate) const UNIT: usize = 16;

/// Sources that the kernels take at once.
pub(crate) const GROUP: usize = 4;

/// Components that are summed in `f32` before the sums go into `f64`, in eight lanes at least.
const BLOCK: usize = 64;

/// Eight products in a lane, then two additions of lanes: more than that has to be done in `f64`.
const ROUNDINGS: usize = 10;

/// Similarities this close to 1 or -1 may be exactly that, and are computed in `f64`. More than the kernels' error.
const EXTREME: f64 = 1.0 - 1e-6;

const _: () = assert!(BLOCK / 8 + 2 <= ROUNDINGS && 1.5 * ROUNDINGS as f64 / (1 << 24) as f64 <= 0.9e-6);
const _: () = assert!(BLOCK.is_multiple_of(UNIT) && PIECE.is_multiple_of(BLOCK));

/// Squared norms of rows that the `f32` loop is trusted with. Below, squares lose bits to underflow; above, they
/// overflow. The sources are scaled to norms in `[1, 2)`, so the dot products' terms are in the row's own range.
const TRUSTED_SQUARES: Range<f64> = 1e-20..1e30;

/// Components of a panel that are in hand at once: those of [`SOURCES_AT_ONCE`] sources fill half of a 32 KiB L1 cache.
const PIECE: usize = 256;

/// With [`PANEL_ROWS`] rows of 4096 `f32`, these fit an L2 cache of 512 KiB.
const SOURCES_AT_ONCE: usize = 4 * GROUP;

/// Rows of a panel. A multiple of the rows that the kernels take at once.
pub(crate) const PANEL_ROWS: usize = 12;

/// An implementation of the inner loops for rows of one format. All take whole units of components and ignore what is
/// beyond; all panic when the lengths of their arguments do not fit together.
#[derive(Clone, Copy)]
struct Kernel {
    name: &'static str,
    /// One source, over rows as they lie; no source if only squares are wanted.
    scan: fn(Panel<'_>),
    /// Groups of sources, over rows that fit the cache.
    panel: fn(Panel<'_>),
}

/// Some rows, and some sources to multiply them with.
struct Panel<'a> {
    /// For `scan`.
    source: &'a [f32],
    /// For `panel`: groups of sources as [`Sources::packed`] has them.
    packed: &'a [Line],
    /// Components of a row, those beyond the last unit included.
    dim: usize,
    rows: &'a [u8],
    /// `[rows, sources]`: dot products, added to what is there. Sources that fill a group up count.
    dots: &'a mut [f64],
    /// The rows' squared norms, added to what is there; empty if nobody needs them.
    squares: &'a mut [f64],
}

/// Why a vector has no direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VectorFault {
    Zero,
    NonFinite { component: usize },
}

/// Hands the similarity of each row with each source to `found`, as `(row, source, similarity)`.
///
/// `norms`, one a row, spare the squares. Components are then looked at only where the result gives reason to.
///
/// Returns the first row that has no direction, and why.
pub(crate) fn similarities(
    sources: &Sources,
    rows: Rows<'_>,
    norms: Option<&[f64]>,
    found: impl FnMut(usize, usize, f32),
) -> Result<(), (usize, VectorFault)> {
    similarities_by(best_kernel(rows.dtype()), sources, rows, norms, found)
}

fn similarities_by(
    kernel: Kernel,
    sources: &Sources,
    rows: Rows<'_>,
    norms: Option<&[f64]>,
    mut found: impl FnMut(usize, usize, f32),
) -> Result<(), (usize, VectorFault)> {
    let mut pair = Pair { sources, dtype: rows.dtype(), widened: Vec::new() };
    let alone = sources.len() == 1;
    for first_row in (0..rows.len()).step_by(PANEL_ROWS) {
        let panel = rows.slice(first_row..(first_row + PANEL_ROWS).min(rows.len()));
        let mut inverse_norms = [None; PANEL_ROWS];
        for first_source in (0..sources.len()).step_by(SOURCES_AT_ONCE) {
            let sources_here = first_source..(first_source + SOURCES_AT_ONCE).min(sources.len());
            let stride = if alone { 1 } else { sources_here.len().next_multiple_of(GROUP) };
            let mut dots = [0.0; PANEL_ROWS * SOURCES_AT_ONCE];
            let dots = &mut dots[..panel.len() * stride];
            let mut squares = [0.0; PANEL_ROWS];
            let squares_wanted = if first_source == 0 && norms.is_none() { panel.len() } else { 0 };
            let run = if alone { kernel.scan } else { kernel.panel };
            run(Panel {
                source: sources.scaled(0),
                packed: sources.packed(first_source, SOURCES_AT_ONCE / GROUP),
                dim: rows.dim(),
                rows: panel.as_bytes(),
                dots: &mut *dots,
                squares: &mut squares[..squares_wanted],
            });
            for (i, dots) in dots.chunks_exact(stride).enumerate() {
                let row = panel.row(i);
                if first_source == 0 {
                    inverse_norms[i] = match norms {
                        None => inverse_norm(squares[i] + pair.tail_squares(row)),
                        Some(norms) => trusted_inverse(norms[first_row + i]),
                    };
                }
                for (source, dot) in sources_here.clone().zip(dots) {
                    let dot = dot + pair.tail_dot(source, row);
                    let similarity = pair.similarity(source, row, dot, inverse_norms[i]);
                    found(first_row + i, source, similarity.map_err(|fault| (first_row + i, fault))?);
                }
            }
        }
    }
    Ok(())
}

/// The norm of each row, appended to `out`. Returns the first row that has no direction, and why.
pub(crate) fn norms(rows: Rows<'_>, out: &mut Vec<f64>) -> Result<(), (usize, VectorFault)> {
    norms_by(best_kernel(rows.dtype()), rows, out)
}

fn norms_by(kernel: Kernel, rows: Rows<'_>, out: &mut Vec<f64>) -> Result<(), (usize, VectorFault)> {
    let mut widened = Vec::new();
    out.reserve(rows.len());
    for first in (0..rows.len()).step_by(PANEL_ROWS) {
        let panel = rows.slice(first..(first + PANEL_ROWS).min(rows.len()));
        let mut squares = [0.0; PANEL_ROWS];
        let squares = &mut squares[..panel.len()];
        (kernel.scan)(Panel {
            source: &[],
            packed: &[],
            dim: rows.dim(),
            rows: panel.as_bytes(),
            dots: &mut [],
            squares,
        });
        for (i, squares) in squares.iter().enumerate() {
            let row = panel.row(i);
            let squares = squares + tail_squares(rows.dtype(), rows.dim(), row);
            out.push(if TRUSTED_SQUARES.contains(&squares) {
                squares.sqrt()
            } else {
                widened.clear();
                rows.dtype().widen(row, &mut widened);
                exact_norm(&widened).map_err(|fault| (first + i, fault))?
            });
        }
    }
    Ok(())
}

/// One over the norm, where the kernels can be trusted. NaN and infinities in the row make the squares NaN or infinite:
/// checking costs nothing.
fn inverse_norm(squares: f64) -> Option<f64> {
    TRUSTED_SQUARES.contains(&squares).then(|| squares.sqrt().recip())
}

fn trusted_inverse(norm: f64) -> Option<f64> {
    TRUSTED_SQUARES.contains(&(norm * norm)).then(|| norm.recip())
}

/// What a source and a row have in common, apart from the kernel's part.
struct Pair<'a> {
    sources: &'a Sources,
    dtype: Dtype,
    /// Room for a row.
    widened: Vec<f32>,
}

impl Pair<'_> {
    /// The similarity, from the dot product with the scaled source and one over the row's norm, if that is to be trusted.
    #[inline]
    fn similarity(
        &mut self,
        source: usize,
        row: &[u8],
        dot: f64,
        inverse_norm: Option<f64>,
    ) -> Result<f32, VectorFault> {
        let cosine = dot * inverse_norm.unwrap_or(f64::NAN) * self.sources.inverse_norm(source);
        // False for NaN as well.
        if cosine.abs() < EXTREME { Ok(cosine as f32) } else { self.exact_similarity(source, row) }
    }

    #[cold]
    fn exact_similarity(&mut self, source: usize, row: &[u8]) -> Result<f32, VectorFault> {
        self.widened.clear();
        self.dtype.widen(row, &mut self.widened);
        let norm = exact_norm(&self.widened)?;
        let dot = exact_dot(self.sources.scaled(source), &self.widened);
        let cosine = dot / norm * self.sources.inverse_norm(source);
        Ok(cosine.clamp(-1.0, 1.0) as f32)
    }

    fn tail_dot(&self, source: usize, row: &[u8]) -> f64 {
        let dim = self.sources.dim();
        if dim.is_multiple_of(UNIT) {
            return 0.0;
        }
        let mut components = [0.0; UNIT];
        let source = &self.sources.scaled(source)[units(dim)..];
        products(source, tail(self.dtype, dim, row, &mut components)).sum()
    }

    fn tail_squares(&self, row: &[u8]) -> f64 {
        tail_squares(self.dtype, self.sources.dim(), row)
    }
}

fn tail_squares(dtype: Dtype, dim: usize, row: &[u8]) -> f64 {
    if dim.is_multiple_of(UNIT) {
        return 0.0;
    }
    let mut components = [0.0; UNIT];
    let row = tail(dtype, dim, row, &mut components);
    products(row, row).sum()
}

/// The components that do not fill a unit.
fn tail<'a>(dtype: Dtype, dim: usize, row: &[u8], components: &'a mut [f32; UNIT]) -> &'a [f32] {
    let len = dtype.widen_into(&row[units(dim) * dtype.bytes()..], components);
    &components[..len]
}

fn products(a: &[f32], b: &[f32]) -> impl Iterator<Item = f64> {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b))
}

/// The norm in `f64`, where no square of an `f32` overflows or underflows.
pub(crate) fn exact_norm(vector: &[f32]) -> Result<f64, VectorFault> {
    if let Some(component) = vector.iter().position(|x| !x.is_finite()) {
        return Err(VectorFault::NonFinite { component });
    }
    let squares = exact_dot(vector, vector);
    if squares == 0.0 { Err(VectorFault::Zero) } else { Ok(squares.sqrt()) }
}

/// The dot product in `f64`. In lanes, since rows that are all close to the source should not be much slower.
pub(crate) fn exact_dot(a: &[f32], b: &[f32]) -> f64 {
    let (a_units, a_rest) = a.as_chunks::<UNIT>();
    let (b_units, b_rest) = b.as_chunks::<UNIT>();
    let mut lanes = [0.0; UNIT];
    for (a, b) in a_units.iter().zip(b_units) {
        for lane in 0..UNIT {
            lanes[lane] += f64::from(a[lane]) * f64::from(b[lane]);
        }
    }
    lanes.iter().sum::<f64>() + products(a_rest, b_rest).sum::<f64>()
}

pub(crate) fn kernel_name() -> &'static str {
    best_kernel(Dtype::F32).name
}

fn best_kernel(dtype: Dtype) -> Kernel {
    kernels(dtype).next().unwrap_or(portable::kernel(dtype))
}

/// The kernels that this machine can run, the fastest first.
fn kernels(dtype: Dtype) -> impl Iterator<Item = Kernel> {
    #[cfg(target_arch = "x86_64")]
    let simd = x86::kernels(dtype);
    #[cfg(not(target_arch = "x86_64"))]
    let simd = std::iter::empty();
    simd.chain([portable::kernel(dtype)])
}

#[cfg(test)]
mod tests;
