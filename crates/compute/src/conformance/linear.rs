//! Linear layers.

use super::data::{Random, Stored, place};
use super::{Failure, Report, compare, row_magnitudes};
use crate::reference::Reference;
use crate::{Backend, DType};

#[derive(Clone, Debug)]
pub(super) struct LinearCase {
    pub(super) rows: usize,
    pub(super) in_columns: usize,
    /// Output columns of the stacked parts.
    pub(super) parts: Vec<usize>,
    /// Of each part in turn.
    pub(super) dtypes: Vec<DType>,
    pub(super) bias: bool,
    /// Whether the product is added to a residual.
    pub(super) add: bool,
}

impl LinearCase {
    pub(super) fn run<B: Backend>(&self, backend: &B, relative: f64) -> Result<Report, Failure> {
        let mut random = Random::new(1);
        let dtype = |i: usize| self.dtypes[i % self.dtypes.len()];
        let shapes = || self.parts.iter().copied().enumerate();
        let parts: Vec<Stored> =
            shapes().map(|(i, out)| Stored::random(&mut random, dtype(i), &[out, self.in_columns])).collect();
        let bias: Vec<Stored> =
            shapes().filter(|_| self.bias).map(|(i, out)| Stored::random(&mut random, dtype(i), &[out])).collect();
        let parts: Vec<_> = parts.iter().map(Stored::view).collect();
        let bias: Vec<_> = bias.iter().map(Stored::view).collect();
        let weight = backend.prepare_linear(&parts, &bias)?;
        let exact_weight = Reference.prepare_linear(&parts, &bias)?;

        let out_columns: usize = self.parts.iter().sum();
        let (x, exact_x) = place(backend, self.in_columns, &random.floats(self.rows * self.in_columns, 1.0))?;
        let (got, want) = if self.add {
            let (mut y, mut exact_y) = place(backend, out_columns, &random.floats(self.rows * out_columns, 4.0))?;
            backend.linear_add(&x, &weight, &mut y)?;
            Reference.linear_add(&exact_x, &exact_weight, &mut exact_y)?;
            (y, exact_y)
        } else {
            (backend.linear(&x, &weight)?, Reference.linear(&exact_x, &exact_weight)?)
        };
        let want = Reference.download(&want)?;
        // A sum may cancel; its rounding is that of its terms, whose typical sum is sqrt(k) / 3.
        let typical = (self.in_columns as f32).sqrt() / 3.0;
        let magnitude = row_magnitudes(&want, out_columns, typical);
        compare(&backend.download(&got)?, &want, relative, magnitude)
    }
}
