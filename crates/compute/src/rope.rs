//! The angles of rotary position embedding, as the host computes them for every backend.
//!
//! The rounding follows the reference implementation (`transformers`, `modeling_rope_utils.py`): the inverse frequency
//! is an f32, and so is its product with the position. Doing better there would only move the vectors away from those
//! that the models were trained with; cosine and sine of that angle are then taken in f64.

use crate::Result;
use crate::check::ensure;

/// Cosines and sines of `[positions, dim / 2]`, row-major.
#[derive(Clone, Debug)]
pub(crate) struct RopeTable {
    pub(crate) dim: usize,
    pub(crate) positions: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Angles `position * theta^(-2i / dim)` for `i < dim / 2` and `position < positions`.
    pub(crate) fn new(theta: f32, dim: usize, positions: usize) -> Result<Self> {
        const OP: &str = "prepare_rope";
        ensure(dim > 0 && dim.is_multiple_of(2), OP, || format!("{dim} floats can not be paired"))?;
        ensure(theta.is_finite() && theta > 0.0, OP, || format!("theta is {theta}"))?;
        // Half a gigabyte of angles: a million positions of 128 floats. Wrong configurations ask for more.
        const ANGLES_MAX: usize = 1 << 26;
        ensure(positions.checked_mul(dim / 2).is_some_and(|n| n <= ANGLES_MAX), OP, || {
            format!("{positions} positions of {dim} floats are more than {ANGLES_MAX} angles")
        })?;
        let frequencies: Vec<f32> =
            (0..dim / 2).map(|i| f64::from(theta).powf(-2.0 * i as f64 / dim as f64) as f32).collect();
        let angles =
            (0..positions).flat_map(|position| frequencies.iter().map(move |f| f64::from(position as f32 * f)));
        let (cos, sin) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        Ok(Self { dim, positions, cos, sin })
    }

    /// Cosines and sines at `position`, `dim / 2` each.
    pub(crate) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.dim / 2;
        let range = position * half..(position + 1) * half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_formula() {
        let table = RopeTable::new(10_000.0, 4, 9).unwrap();
        let (cos, sin) = table.at(8);
        // Frequencies 1 and 1/100.
        for (got, want) in cos.iter().chain(sin).zip([8f64.cos(), 0.08f64.cos(), 8f64.sin(), 0.08f64.sin()]) {
            assert!((f64::from(*got) - want).abs() < 1e-7, "{got} is not {want}");
        }
        assert_eq!(table.at(0), ([1.0f32; 2].as_slice(), [0.0f32; 2].as_slice()));
    }

    #[test]
    fn refuses_what_can_not_be_rotated() {
        assert!(RopeTable::new(10_000.0, 5, 1).is_err());
        assert!(RopeTable::new(0.0, 4, 1).is_err());
        assert!(RopeTable::new(10_000.0, 10_000_000, 32_768).is_err());
        assert!(RopeTable::new(10_000.0, 1 << 40, usize::MAX).is_err());
    }
}
