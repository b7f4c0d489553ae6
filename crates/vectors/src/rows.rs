//! A borrowed matrix of row vectors.

#![deny(unsafe_code)]

/// `[n, d]` `f32`, row-major and contiguous.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    data: &'a [f32],
    dim: usize,
}

/// The data does not divide into rows of this length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} components do not divide into rows of {dim}")]
pub struct ShapeError {
    /// Components given.
    pub len: usize,
    /// Components wanted in each row.
    pub dim: usize,
}

impl<'a> Rows<'a> {
    /// `data` as rows of `dim` components each.
    ///
    /// No rows at all are fine with any `dim`, zero included.
    ///
    /// # Errors
    ///
    /// When `data` is not a whole number of rows, or there is data and `dim` is zero.
    pub fn new(data: &'a [f32], dim: usize) -> Result<Self, ShapeError> {
        let whole = if dim == 0 { data.is_empty() } else { data.len().is_multiple_of(dim) };
        if whole { Ok(Self { data, dim }) } else { Err(ShapeError { len: data.len(), dim }) }
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.data.len().checked_div(self.dim).unwrap_or(0)
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Components in each row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Row `i`, of `dim` components.
    ///
    /// # Panics
    ///
    /// When there is no row `i`.
    pub fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.dim..][..self.dim]
    }

    /// All components, row after row.
    pub fn as_slice(&self) -> &'a [f32] {
        self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_rows_only() {
        let data = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let rows = Rows::new(&data, 3).unwrap();
        assert_eq!((rows.len(), rows.dim(), rows.row(1)), (2, 3, &data[3..]));
        assert_eq!(Rows::new(&data, 4).unwrap_err(), ShapeError { len: 6, dim: 4 });
        assert_eq!(Rows::new(&data, 0).unwrap_err(), ShapeError { len: 6, dim: 0 });
        assert!(Rows::new(&[], 0).unwrap().is_empty());
        assert_eq!(Rows::new(&[], 7).unwrap().len(), 0);
    }
}
