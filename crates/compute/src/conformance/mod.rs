//! The cases that every backend passes, compared with the scalar [`Reference`](crate::reference::Reference).
//!
//! They live in the library and not in its tests, so that a machine with another device can run them from wherever its
//! backend is at hand. Data is pseudo-random and the same on every machine.
//!
//! What is allowed to differ is stated for each case as a fraction of the magnitude at hand, tight enough that a real
//! mistake (a mask off by one, a tanh GELU, no maximum in the softmax) fails. Inputs are read back from the device before
//! they go to the reference, so a device that stores activations in less than f32 is judged by what it does, not by
//! what it was given.

mod attention;
mod cases;
mod data;
#[cfg(test)]
mod faults;
mod linear;
mod misuse;
mod rows;

use crate::{Backend, ComputeError};
use thiserror::Error;

pub use cases::{cases, start_up_cases};

/// One thing to check.
#[derive(Clone, Debug)]
pub struct Case {
    name: String,
    check: Check,
    /// Allowed error relative to the magnitude at hand, where activations are f32.
    tolerance: f32,
}

impl Case {
    /// What is checked, with its shapes.
    pub fn name(&self) -> &str {
        &self.name
    }
}

#[derive(Clone, Debug)]
enum Check {
    Linear(linear::LinearCase),
    Embed(rows::EmbedCase),
    Norm(rows::NormCase),
    Activation(rows::ActivationCase),
    Pool(rows::PoolCase),
    Rope(attention::RopeCase),
    Attention(attention::AttentionCase),
    Independence(attention::IndependenceCase),
    Misuse(misuse::Misuse),
}

/// How a device stores what flows through it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Precision {
    /// Relative error of storing one activation, beyond that of f32: 0 for f32, 2^-9 for bf16.
    pub rounding: f32,
}

impl Precision {
    /// Activations in f32.
    pub const F32: Self = Self { rounding: 0.0 };
    /// Activations in bf16, products accumulated in f32.
    pub const BF16: Self = Self { rounding: 1.0 / 512.0 };
}

/// A case that passed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// The largest error found, as a fraction of what is allowed there.
    pub worst: f64,
}

/// A case that failed.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum Failure {
    /// The device refused what it must do.
    #[error(transparent)]
    Device(#[from] ComputeError),
    /// A tensor of another size than expected.
    #[error("{got} values where {want} were expected")]
    Length {
        /// Values returned.
        got: usize,
        /// Values expected.
        want: usize,
    },
    /// A value too far from the reference.
    #[error("value {index} is {got}, expected {want} within {allowed:e}")]
    Mismatch {
        /// Index into the row-major result.
        index: usize,
        /// The device's value.
        got: f32,
        /// The reference's value.
        want: f32,
        /// What it may differ by.
        allowed: f64,
    },
    /// A mistake of the caller was not refused as it should be.
    #[error("expected the error `{want}`, got {got}")]
    NotRefused {
        /// The error expected.
        want: &'static str,
        /// What came instead.
        got: String,
    },
}

/// Runs one case.
pub fn run<B: Backend>(backend: &B, case: &Case, precision: Precision) -> Result<Report, Failure> {
    // How often a value is stored on its way through an op differs by device; three times is generous to all of them.
    let relative = f64::from(case.tolerance) + 3.0 * f64::from(precision.rounding);
    match &case.check {
        Check::Linear(check) => check.run(backend, relative),
        Check::Embed(check) => check.run(backend, relative),
        Check::Norm(check) => check.run(backend, relative),
        Check::Activation(check) => check.run(backend, relative),
        Check::Pool(check) => check.run(backend, relative),
        Check::Rope(check) => check.run(backend, relative),
        Check::Attention(check) => check.run(backend, relative),
        Check::Independence(check) => check.run(backend, relative),
        Check::Misuse(check) => check.run(backend),
    }
}

/// Compares value by value; `magnitude(index)` is what `relative` is relative to. Two NaN, or two equal infinities, agree.
fn compare(got: &[f32], want: &[f32], relative: f64, magnitude: impl Fn(usize) -> f32) -> Result<Report, Failure> {
    if got.len() != want.len() {
        return Err(Failure::Length { got: got.len(), want: want.len() });
    }
    let mut report = Report::default();
    for (index, (&got, &want)) in got.iter().zip(want).enumerate() {
        if got == want || (got.is_nan() && want.is_nan()) {
            continue;
        }
        let allowed = relative * f64::from(magnitude(index).abs());
        let error = (f64::from(got) - f64::from(want)).abs();
        if error.is_nan() || error > allowed {
            return Err(Failure::Mismatch { index, got, want, allowed });
        }
        report.worst = report.worst.max(error / allowed);
    }
    Ok(report)
}

/// The largest magnitude of each row of `columns` values, at least `least`.
fn row_magnitudes(values: &[f32], columns: usize, least: f32) -> impl Fn(usize) -> f32 {
    let largest = |row: &[f32]| row.iter().fold(least, |max, x| max.max(x.abs()));
    let rows: Vec<f32> = values.chunks(columns).map(largest).collect();
    move |index| rows[index / columns]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_never_passes_for_a_number() {
        assert!(compare(&[f32::NAN], &[1.0], 1e9, |_| 1.0).is_err());
        assert!(compare(&[1.0], &[f32::NAN], 1e9, |_| 1.0).is_err());
        assert!(compare(&[1.0], &[f32::INFINITY], 1e9, |_| 1.0).is_err());
        assert_eq!(compare(&[1.5], &[1.0], 1.0, |_| 1.0), Ok(Report { worst: 0.5 }));
        assert!(compare(&[1.0], &[1.0, 1.0], 1.0, |_| 1.0).is_err());
    }

    #[test]
    fn every_case_of_the_start_is_there() {
        assert_eq!(start_up_cases().len(), 22);
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = cases().into_iter().map(|case| case.name).collect();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
