//! A tensor as a file holds it: borrowed little-endian bytes with a dtype and a shape.
//!
//! No arithmetic happens here; backends turn views into whatever layout they compute with.

use half::{bf16, f16};

/// Element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of an f32.
    Bf16,
}

impl DType {
    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
        }
    }
}

/// A borrowed, row-major, little-endian tensor. The bytes need not be aligned.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    dtype: DType,
    shape: &'a [usize],
    bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// Wraps `bytes`; `None` when their length is not the product of `shape` times the element size.
    pub fn new(dtype: DType, shape: &'a [usize], bytes: &'a [u8]) -> Option<Self> {
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        (elements.checked_mul(dtype.size_bytes())? == bytes.len()).then_some(Self { dtype, shape, bytes })
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extent of each axis, outermost first.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The raw little-endian bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size_bytes()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Widens elements `start..start + out.len()` to f32 (exact for every dtype).
    ///
    /// # Panics
    /// When the range is out of bounds.
    pub fn widen(&self, start: usize, out: &mut [f32]) {
        let size = self.dtype.size_bytes();
        let bytes = &self.bytes[start * size..(start + out.len()) * size];
        match self.dtype {
            DType::F32 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *o = f32::from_le_bytes(*b);
                }
            }
            DType::F16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = f16::from_le_bytes(*b).to_f32();
                }
            }
            DType::Bf16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = bf16::from_le_bytes(*b).to_f32();
                }
            }
        }
    }

    /// All elements as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        self.widen(0, &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_length_that_does_not_fit() {
        assert!(TensorView::new(DType::F32, &[2, 3], &[0; 24]).is_some());
        assert!(TensorView::new(DType::F32, &[2, 3], &[0; 23]).is_none());
        assert!(TensorView::new(DType::Bf16, &[usize::MAX, 2], &[]).is_none());
    }

    #[test]
    fn widens_each_dtype_exactly() {
        let values = [1.0f32, -0.5, 65504.0];
        let f32s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let f16s: Vec<u8> = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        let bf16s: Vec<u8> = [1.0f32, -0.5, 65536.0].iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        assert_eq!(TensorView::new(DType::F32, &[3], &f32s).unwrap().to_f32(), values);
        assert_eq!(TensorView::new(DType::F16, &[3], &f16s).unwrap().to_f32(), values);
        assert_eq!(TensorView::new(DType::Bf16, &[3], &bf16s).unwrap().to_f32(), [1.0, -0.5, 65536.0]);
    }
}
