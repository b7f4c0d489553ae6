//! Weights on the device: bf16 whatever their file holds, vectors and angles in f32.

use super::memory::Owned;
use crate::cuda::gpu::Gpu;
use crate::rope::RopeTable;
use crate::{DType, Result, TensorView};
use half::bf16;
use std::sync::Arc;

/// Floats that are rounded at a time.
const CHUNK: usize = 1 << 21;

/// A matrix of `[rows, columns]` in bf16.
#[derive(Debug)]
pub struct Matrix<G: Gpu> {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) memory: Owned<G>,
}

/// A linear layer.
#[derive(Debug)]
pub struct Linear<G: Gpu> {
    /// `[out, in]`.
    pub(super) weight: Matrix<G>,
    pub(super) bias: Option<Vector<G>>,
}

/// A vector in f32.
#[derive(Debug)]
pub struct Vector<G: Gpu> {
    pub(super) length: usize,
    pub(super) memory: Owned<G>,
}

/// Cosines and sines of rotary embedding, `[positions, dim / 2, 2]` in f32.
#[derive(Debug)]
pub struct Rope<G: Gpu> {
    pub(super) dim: usize,
    pub(super) positions: usize,
    pub(super) memory: Owned<G>,
}

impl<G: Gpu> Matrix<G> {
    /// `parts` of `columns` columns, stacked.
    pub(super) fn new(gpu: &Arc<G>, rows: usize, columns: usize, parts: &[TensorView<'_>]) -> Result<Self> {
        let memory = Owned::new(gpu, 2 * rows * columns)?;
        let mut to = memory.address();
        let mut floats = Vec::new();
        let mut rounded = Vec::new();
        for part in parts {
            if part.dtype() == DType::Bf16 {
                gpu.fill(to, part.bytes())?;
                to = to.offset(part.bytes().len());
                continue;
            }
            for start in (0..part.len()).step_by(CHUNK) {
                floats.resize(CHUNK.min(part.len() - start), 0.0);
                part.widen(start, &mut floats);
                rounded.clear();
                rounded.extend(floats.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()));
                gpu.fill(to, &rounded)?;
                to = to.offset(rounded.len());
            }
        }
        Ok(Self { rows, columns, memory })
    }
}

impl<G: Gpu> Vector<G> {
    pub(super) fn new(gpu: &Arc<G>, values: impl Iterator<Item = f32>) -> Result<Self> {
        let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        let memory = Owned::new(gpu, bytes.len())?;
        gpu.fill(memory.address(), &bytes)?;
        Ok(Self { length: bytes.len() / 4, memory })
    }
}

impl<G: Gpu> Rope<G> {
    pub(super) fn new(gpu: &Arc<G>, table: &RopeTable) -> Result<Self> {
        let angles = (0..table.positions).flat_map(|position| {
            let (cos, sin) = table.at(position);
            cos.iter().zip(sin).flat_map(|(&cos, &sin)| [cos, sin])
        });
        let Vector { memory, .. } = Vector::new(gpu, angles)?;
        Ok(Self { dim: table.dim, positions: table.positions, memory })
    }
}
