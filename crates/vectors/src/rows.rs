//! A borrowed matrix of row vectors.

#![deny(unsafe_code)]

use crate::Dtype;
use std::ops::Range;

/// `[n, d]`, row-major and contiguous: little-endian bytes of one [`Dtype`], at any address.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// A whole number of rows.
    bytes: &'a [u8],
    dtype: Dtype,
    dim: usize,
}

/// The data does not divide into rows of this length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len_bytes} bytes do not divide into rows of {dim} components of {} bytes", .dtype.bytes())]
pub struct ShapeError {
    /// Bytes given.
    pub len_bytes: usize,
    /// The components' format.
    pub dtype: Dtype,
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
        Self::from_bytes(bytemuck::cast_slice(data), Dtype::F32, dim)
    }

    /// `bytes`, which may lie at any address, as rows of `dim` components of `dtype` each.
    ///
    /// No rows at all are fine with any `dim`, zero included.
    ///
    /// # Errors
    ///
    /// When `bytes` is not a whole number of rows, or there are bytes and `dim` is zero.
    pub fn from_bytes(bytes: &'a [u8], dtype: Dtype, dim: usize) -> Result<Self, ShapeError> {
        let whole = match dim.checked_mul(dtype.bytes()) {
            Some(row_bytes) if row_bytes > 0 => bytes.len().is_multiple_of(row_bytes),
            _ => bytes.is_empty(),
        };
        if whole { Ok(Self { bytes, dtype, dim }) } else { Err(ShapeError { len_bytes: bytes.len(), dtype, dim }) }
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.bytes.len().checked_div(self.row_bytes()).unwrap_or(0)
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Components in each row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The components' format.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// All components, row after row.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The components of row `i`.
    ///
    /// # Panics
    ///
    /// When there is no row `i`.
    pub fn row(&self, i: usize) -> &'a [u8] {
        &self.bytes[i * self.row_bytes()..][..self.row_bytes()]
    }

    /// Some of the rows.
    ///
    /// # Panics
    ///
    /// When `rows` is not a range within `0..len()`.
    pub fn slice(&self, rows: Range<usize>) -> Self {
        let bytes = &self.bytes[rows.start * self.row_bytes()..rows.end * self.row_bytes()];
        Self { bytes, ..*self }
    }

    /// Bytes in a row. Meaningless where there are no rows: `dim` may then be anything.
    pub(crate) fn row_bytes(&self) -> usize {
        self.dim.wrapping_mul(self.dtype.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_rows_only() {
        let data = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let rows = Rows::new(&data, 3).unwrap();
        assert_eq!((rows.len(), rows.dim(), rows.dtype()), (2, 3, Dtype::F32));
        let fails = |dim| ShapeError { len_bytes: 24, dtype: Dtype::F32, dim };
        assert_eq!(Rows::new(&data, 4).unwrap_err(), fails(4));
        assert_eq!(Rows::new(&data, 0).unwrap_err(), fails(0));
        assert_eq!(Rows::new(&data, usize::MAX / 2).unwrap_err(), fails(usize::MAX / 2));
        assert!(Rows::new(&[], 0).unwrap().is_empty());
        assert_eq!(Rows::new(&[], 7).unwrap().len(), 0);
        assert_eq!(Rows::new(&[], usize::MAX).unwrap().len(), 0);
    }

    #[test]
    fn bytes_at_any_address() {
        let bytes = [0, 1, 2, 3, 4, 5, 6, 7, 8];
        let rows = Rows::from_bytes(&bytes[1..], Dtype::Bf16, 2).unwrap();
        assert_eq!((rows.len(), rows.row(1), rows.as_bytes()), (2, &bytes[5..], &bytes[1..]));
        let error = Rows::from_bytes(&bytes, Dtype::Bf16, 2).unwrap_err();
        assert_eq!(error.to_string(), "9 bytes do not divide into rows of 2 components of 2 bytes");
    }

    #[test]
    fn slices_are_of_rows() {
        let data = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let rows = Rows::new(&data, 2).unwrap();
        assert_eq!(rows.slice(1..3).as_bytes(), bytemuck::cast_slice::<f32, u8>(&data[2..]));
        assert_eq!(rows.slice(3..3).len(), 0);
        assert_eq!(Rows::new(&[], 2).unwrap().slice(0..0).len(), 0);
    }
}
