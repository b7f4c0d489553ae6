//! Mistakes of the caller, which are errors and never panics.

use super::data::{Stored, batch, place};
use super::rows::norm_of;
use super::{Failure, Report};
use crate::{Activation, Backend, ComputeError, DType, Heads, Mask, NormKind, PackedBatch, Pooling, Result};

/// A mistake.
#[derive(Clone, Copy, Debug)]
pub(super) enum Misuse {
    TokenOutOfRange,
    SequenceTooLong,
    NoParts,
    PartsOfDifferentInput,
    BiasOfWrongLength,
    TooFewBiases,
    WeightOfThreeAxes,
    TableOfOneAxis,
    VectorOfTwoAxes,
    LinearInput,
    LinearAddRows,
    LinearAddColumns,
    NormWeight,
    NormBias,
    HeadNormOfLayerKind,
    HeadsThatDoNotDivide,
    NoHeads,
    FusedColumns,
    AttentionRows,
    RopeOfOtherDim,
    RopeOfOddDim,
    RopeRows,
    OddGate,
    PoolRows,
}

impl Misuse {
    pub(super) const ALL: [Self; 24] = [
        Self::TokenOutOfRange,
        Self::SequenceTooLong,
        Self::NoParts,
        Self::PartsOfDifferentInput,
        Self::BiasOfWrongLength,
        Self::TooFewBiases,
        Self::WeightOfThreeAxes,
        Self::TableOfOneAxis,
        Self::VectorOfTwoAxes,
        Self::LinearInput,
        Self::LinearAddRows,
        Self::LinearAddColumns,
        Self::NormWeight,
        Self::NormBias,
        Self::HeadNormOfLayerKind,
        Self::HeadsThatDoNotDivide,
        Self::NoHeads,
        Self::FusedColumns,
        Self::AttentionRows,
        Self::RopeOfOtherDim,
        Self::RopeOfOddDim,
        Self::RopeRows,
        Self::OddGate,
        Self::PoolRows,
    ];

    pub(super) fn run<B: Backend>(self, backend: &B) -> Result<Report, Failure> {
        let want = match self {
            Self::TokenOutOfRange => "TokenOutOfRange",
            Self::SequenceTooLong => "SequenceTooLong",
            _ => "Shape",
        };
        let got = match self.commit(backend) {
            Err(ComputeError::TokenOutOfRange { id: 7, rows: 7 }) => "TokenOutOfRange".to_owned(),
            Err(ComputeError::SequenceTooLong { tokens: 3, positions: 2 }) => "SequenceTooLong".to_owned(),
            Err(ComputeError::Shape { .. }) => "Shape".to_owned(),
            other => format!("{other:?}"),
        };
        if got == want { Ok(Report::default()) } else { Err(Failure::NotRefused { want, got }) }
    }

    /// Makes the mistake.
    fn commit<B: Backend>(self, backend: &B) -> Result<()> {
        const HEADS: Heads = Heads { query: 2, key_value: 1, dim: 4 };
        let stored = |shape: &[usize]| Stored::new(DType::F32, shape, &vec![0.5; shape.iter().product()]);
        let tensor = |rows: usize, columns: usize| Ok(place(backend, columns, &vec![0.5; rows * columns])?.0);
        let linear = |parts: &[&[usize]], bias: &[&[usize]]| {
            let parts: Vec<Stored> = parts.iter().map(|shape| stored(shape)).collect();
            let bias: Vec<Stored> = bias.iter().map(|shape| stored(shape)).collect();
            let parts: Vec<_> = parts.iter().map(Stored::view).collect();
            let bias: Vec<_> = bias.iter().map(Stored::view).collect();
            backend.prepare_linear(&parts, &bias)
        };
        let uploaded = |lengths: &[usize]| backend.upload(&batch(lengths));
        let attend = |rows: usize, columns: usize, heads: Heads| {
            backend.attention(&tensor(rows, columns)?, heads, Mask::Full, &uploaded(&[3])?).map(drop)
        };
        let rotate = |rows: usize, kind: NormKind, dim: usize, positions: usize| {
            let norm = norm_of(backend, kind, &stored(&[HEADS.dim]), None)?;
            let rope = backend.prepare_rope(10_000.0, dim, positions)?;
            let mut qkv = tensor(rows, HEADS.fused_columns())?;
            backend.qk_norm_rope(&mut qkv, HEADS, Some((&norm, &norm)), &rope, &uploaded(&[3])?)
        };
        match self {
            Self::TokenOutOfRange => {
                let batch = PackedBatch::new(&[[6, 7]]).expect("no sequence is empty");
                backend
                    .embed(&backend.prepare_table(&stored(&[7, 4]).view())?, None, &backend.upload(&batch)?)
                    .map(drop)
            }
            Self::SequenceTooLong => rotate(3, NormKind::Rms, HEADS.dim, 2),
            Self::NoParts => linear(&[], &[]).map(drop),
            Self::PartsOfDifferentInput => linear(&[&[4, 8], &[4, 9]], &[]).map(drop),
            Self::BiasOfWrongLength => linear(&[&[4, 8]], &[&[5]]).map(drop),
            Self::TooFewBiases => linear(&[&[4, 8], &[4, 8]], &[&[4]]).map(drop),
            Self::WeightOfThreeAxes => linear(&[&[4, 2, 4]], &[]).map(drop),
            Self::TableOfOneAxis => backend.prepare_table(&stored(&[7]).view()).map(drop),
            Self::VectorOfTwoAxes => backend.prepare_vector(&stored(&[7, 1]).view()).map(drop),
            Self::LinearInput => backend.linear(&tensor(3, 9)?, &linear(&[&[4, 8]], &[])?).map(drop),
            Self::LinearAddRows => backend.linear_add(&tensor(3, 8)?, &linear(&[&[4, 8]], &[])?, &mut tensor(2, 4)?),
            Self::LinearAddColumns => backend.linear_add(&tensor(3, 8)?, &linear(&[&[4, 8]], &[])?, &mut tensor(3, 5)?),
            Self::NormWeight => {
                let norm = norm_of(backend, NormKind::Rms, &stored(&[5]), None)?;
                backend.norm(&tensor(3, 4)?, &norm).map(drop)
            }
            Self::NormBias => {
                let norm = norm_of(backend, NormKind::Layer, &stored(&[4]), Some(&stored(&[5])))?;
                backend.norm(&tensor(3, 4)?, &norm).map(drop)
            }
            Self::HeadNormOfLayerKind => rotate(3, NormKind::Layer, HEADS.dim, 3),
            Self::HeadsThatDoNotDivide => attend(3, 28, Heads { query: 3, key_value: 2, dim: 4 }),
            Self::NoHeads => attend(3, 8, Heads { query: 2, key_value: 0, dim: 4 }),
            Self::FusedColumns => attend(3, 15, HEADS),
            Self::AttentionRows => attend(4, 16, HEADS),
            Self::RopeOfOtherDim => rotate(3, NormKind::Rms, HEADS.dim + 2, 3),
            Self::RopeOfOddDim => rotate(3, NormKind::Rms, HEADS.dim + 1, 3),
            Self::RopeRows => rotate(4, NormKind::Rms, HEADS.dim, 3),
            Self::OddGate => backend.gated_act(&tensor(3, 7)?, Activation::Silu).map(drop),
            Self::PoolRows => backend.pool(&tensor(3, 4)?, Pooling::Mean, &uploaded(&[2, 2])?).map(drop),
        }
    }
}
