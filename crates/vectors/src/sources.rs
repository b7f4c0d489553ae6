//! The vectors that rows are compared with: checked and brought into shape once, for many rows.

#![deny(unsafe_code)]

use crate::cosine::{GROUP, UNIT, VectorFault, exact_dot, exact_norm};
use crate::{ShapeError, TopKError};

/// One or many vectors of one length, ready to be compared with rows. They need not be normalized.
#[derive(Clone, Debug)]
pub struct Sources {
    dim: usize,
    /// `[n, d]`: each source times a power of two (so that nothing that counts is rounded), of norm in `[1, 2)`.
    scaled: Vec<f32>,
    /// One over the norm of what is in `scaled`.
    inverse_norms: Vec<f64>,
    /// Groups of [`GROUP`] sources, [`UNIT`] components of each in turn, as the many-source kernels read them: one
    /// stream, where sources a power of two apart would all fall into one set of the cache. Missing sources are zero.
    packed: Vec<Line>,
}

/// A unit of one source, where no load of a vector crosses a line of the cache.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Line(pub(crate) [f32; UNIT]);

impl Sources {
    /// `data` as sources of `dim` components each.
    ///
    /// # Errors
    ///
    /// - [`TopKError::ZeroSource`] when a source is zero everywhere, or `dim` is.
    /// - [`TopKError::NonFiniteSource`] when a component is NaN or infinite.
    /// - [`TopKError::Shape`] when `data` is not a whole number of sources.
    pub fn new(data: &[f32], dim: usize) -> Result<Self, TopKError> {
        if dim == 0 && data.is_empty() {
            return Err(TopKError::ZeroSource { index: 0 });
        }
        crate::Rows::new(data, dim).map_err(|error: ShapeError| TopKError::Shape(error))?;
        let mut sources = Self {
            dim,
            scaled: Vec::with_capacity(data.len()),
            inverse_norms: Vec::with_capacity(data.len() / dim),
            packed: Vec::new(),
        };
        for (index, vector) in data.chunks_exact(dim).enumerate() {
            let norm = exact_norm(vector).map_err(|fault| match fault {
                VectorFault::Zero => TopKError::ZeroSource { index },
                VectorFault::NonFinite { component } => TopKError::NonFiniteSource { index, component },
            })?;
            let factor = (-norm.log2().floor()).exp2();
            sources.scaled.extend(vector.iter().map(|&x| (f64::from(x) * factor) as f32));
            let scaled = &sources.scaled[index * dim..];
            sources.inverse_norms.push(exact_dot(scaled, scaled).sqrt().recip());
        }
        if sources.len() > 1 {
            sources.pack();
        }
        Ok(sources)
    }

    /// The number of sources.
    pub fn len(&self) -> usize {
        self.inverse_norms.len()
    }

    /// Whether there are no sources.
    pub fn is_empty(&self) -> bool {
        self.inverse_norms.is_empty()
    }

    /// Bytes of memory taken.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.scaled) + size_of_val(&*self.packed) + size_of_val(&*self.inverse_norms)
    }

    /// Components in each source.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Source `i` scaled to length 1, rounded: for who compares it elsewhere.
    ///
    /// # Panics
    ///
    /// When there is no such source.
    pub fn unit(&self, i: usize) -> Vec<f32> {
        self.scaled(i).iter().map(|&x| (f64::from(x) * self.inverse_norm(i)) as f32).collect()
    }

    /// Source `i` alone.
    pub(crate) fn only(&self, i: usize) -> Self {
        let (scaled, inverse_norms) = (self.scaled(i).to_vec(), vec![self.inverse_norm(i)]);
        Self { dim: self.dim, scaled, inverse_norms, packed: Vec::new() }
    }

    /// Source `i`, scaled to a norm in `[1, 2)`.
    pub(crate) fn scaled(&self, i: usize) -> &[f32] {
        &self.scaled[i * self.dim..][..self.dim]
    }

    /// One over the norm of `scaled(i)`.
    pub(crate) fn inverse_norm(&self, i: usize) -> f64 {
        self.inverse_norms[i]
    }

    /// The groups that begin with source `first` (the first of a group), `groups_max` of them at most; what does not
    /// fill a unit of components is left out. Empty for a source that is alone.
    pub(crate) fn packed(&self, first: usize, groups_max: usize) -> &[Line] {
        let group_len = GROUP * (self.dim / UNIT);
        let packed = &self.packed[(first / GROUP * group_len).min(self.packed.len())..];
        &packed[..(groups_max * group_len).min(packed.len())]
    }

    fn pack(&mut self) {
        let groups = self.len().div_ceil(GROUP);
        self.packed.reserve_exact(groups * GROUP * (self.dim / UNIT));
        for group in 0..groups {
            for unit in (0..units(self.dim)).step_by(UNIT) {
                for source in group * GROUP..(group + 1) * GROUP {
                    let mut line = Line([0.0; UNIT]);
                    if source < self.len() {
                        line.0.copy_from_slice(&self.scaled(source)[unit..][..UNIT]);
                    }
                    self.packed.push(line);
                }
            }
        }
    }
}

/// The components of `dim` that fill whole units.
pub(crate) fn units(dim: usize) -> usize {
    dim / UNIT * UNIT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaled_to_norms_from_one_to_two() {
        let data = [3.0, 4.0, f32::MAX, f32::MAX, 0.0, f32::from_bits(1), -1.0, 0.0];
        let sources = Sources::new(&data, 2).unwrap();
        assert_eq!((sources.len(), sources.dim()), (4, 2));
        for i in 0..4 {
            let norm = exact_norm(sources.scaled(i)).unwrap();
            assert!((1.0..2.0).contains(&norm), "{i}: {norm}");
            assert!((sources.inverse_norm(i) * norm - 1.0).abs() < 1e-12);
        }
        assert_eq!(sources.scaled(0), [0.75, 1.0]);
    }

    #[test]
    fn packed_by_groups_and_units() {
        let dim = UNIT + 3;
        let data: Vec<f32> = (0..5 * dim).map(|i| 1.0 + i as f32 / 1000.0).collect();
        let sources = Sources::new(&data, dim).unwrap();
        assert_eq!(sources.packed(0, 9).len(), 2 * GROUP);
        assert_eq!(sources.packed(0, 1).len(), GROUP);
        assert_eq!(sources.packed(0, 1)[2].0, sources.scaled(2)[..UNIT]);
        let second = sources.packed(GROUP, 1);
        assert_eq!(second[0].0, sources.scaled(4)[..UNIT]);
        assert!(second[1..].iter().all(|line| line.0 == [0.0; UNIT]));
        assert!(Sources::new(&data[..dim], dim).unwrap().packed(0, 1).is_empty());
    }

    #[test]
    fn faults_name_the_source() {
        let fails = |data: &[f32], dim| Sources::new(data, dim).unwrap_err();
        assert_eq!(fails(&[], 0), TopKError::ZeroSource { index: 0 });
        assert_eq!(fails(&[1.0, 0.0, 0.0, -0.0], 2), TopKError::ZeroSource { index: 1 });
        assert_eq!(fails(&[1.0, 0.0, 0.0, f32::NAN], 2), TopKError::NonFiniteSource { index: 1, component: 1 });
        assert!(matches!(fails(&[1.0; 3], 2), TopKError::Shape(_)));
        assert!(matches!(fails(&[1.0; 3], 0), TopKError::Shape(_)));
        assert!(Sources::new(&[], 5).unwrap().is_empty());
    }
}
