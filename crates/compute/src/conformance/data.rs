//! Pseudo-random data, and the way it gets onto a device.

use crate::reference::Matrix;
use crate::{Backend, DType, PackedBatch, Result, TensorView};
use half::{bf16, f16};

/// A small generator (SplitMix64: Steele, Lea and Flood 2014, <https://doi.org/10.1145/2660193.2660195>).
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly in `-magnitude..magnitude`.
    pub(super) fn float(&mut self, magnitude: f32) -> f32 {
        magnitude * ((self.next() >> 40) as f32 / 8_388_608.0 - 1.0)
    }

    /// `count` floats in `-magnitude..magnitude`.
    pub(super) fn floats(&mut self, count: usize, magnitude: f32) -> Vec<f32> {
        (0..count).map(|_| self.float(magnitude)).collect()
    }
}

/// A tensor as a file would hold it.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    dtype: DType,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Stored {
    /// Rounds `values` to `dtype`.
    pub(super) fn new(dtype: DType, shape: &[usize], values: &[f32]) -> Self {
        let bytes = match dtype {
            DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            DType::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
            DType::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        };
        Self { dtype, shape: shape.to_vec(), bytes }
    }

    pub(super) fn random(random: &mut Random, dtype: DType, shape: &[usize]) -> Self {
        Self::new(dtype, shape, &random.floats(shape.iter().product(), 1.0))
    }

    pub(super) fn view(&self) -> TensorView<'_> {
        TensorView::new(self.dtype, &self.shape, &self.bytes).expect("the bytes were made for the shape")
    }
}

/// A batch of sequences of these lengths, with tokens `0..rows`.
pub(super) fn batch(lengths: &[usize]) -> PackedBatch {
    let mut next = 0u32..;
    let sequences: Vec<Vec<u32>> = lengths.iter().map(|&length| next.by_ref().take(length).collect()).collect();
    PackedBatch::new(&sequences).expect("lengths are positive")
}

/// Puts rows of `columns` values onto the device, by way of an embedding table, and returns them as the device holds
/// them too, for the reference.
pub(super) fn place<B: Backend>(backend: &B, columns: usize, values: &[f32]) -> Result<(B::Tensor, Matrix)> {
    let rows = values.len() / columns;
    let table = Stored::new(DType::F32, &[rows, columns], values);
    let table = backend.prepare_table(&table.view())?;
    let tensor = backend.embed(&table, None, &backend.upload(&batch(&[rows]))?)?;
    let held = Matrix::new(rows, columns, backend.download(&tensor)?);
    Ok((tensor, held))
}
