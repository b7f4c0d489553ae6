//! Embedding, norms, activations and pooling.

use super::data::{Random, Stored, batch, place};
use super::{Failure, Report, compare, row_magnitudes};
use crate::reference::{Matrix, Reference};
use crate::{Activation, Backend, DType, Norm, NormKind, PackedBatch, Pooling};

#[derive(Clone, Debug)]
pub(super) struct EmbedCase {
    pub(super) dtype: DType,
    pub(super) columns: usize,
    pub(super) norm: Option<NormKind>,
}

impl EmbedCase {
    pub(super) fn run<B: Backend>(&self, backend: &B, relative: f64) -> Result<Report, Failure> {
        let table = Stored::random(&mut Random::new(2), self.dtype, &[50, self.columns]);
        let batch = PackedBatch::new(&[vec![3, 49, 0], vec![7], vec![3, 3]]).expect("no sequence is empty");
        let weight = Stored::random(&mut Random::new(11), DType::F32, &[self.columns]);
        let norm = self.norm.map(|kind| norm_of(backend, kind, &weight, None)).transpose()?;
        let exact_norm = self.norm.map(|kind| norm_of(&Reference, kind, &weight, None)).transpose()?;
        let got = backend.embed(&backend.prepare_table(&table.view())?, norm.as_ref(), &backend.upload(&batch)?)?;
        let want = Reference.embed(&Reference.prepare_table(&table.view())?, exact_norm.as_ref(), &batch)?;
        let want = Reference.download(&want)?;
        let magnitude = row_magnitudes(&want, self.columns, 1.0);
        compare(&backend.download(&got)?, &want, relative, |i| if self.norm.is_some() { magnitude(i) } else { want[i] })
    }
}

#[derive(Clone, Debug)]
pub(super) struct NormCase {
    pub(super) kind: NormKind,
    pub(super) columns: usize,
    pub(super) bias: bool,
}

impl NormCase {
    pub(super) fn run<B: Backend>(&self, backend: &B, relative: f64) -> Result<Report, Failure> {
        let columns = self.columns;
        let mut random = Random::new(3);
        let mut values = random.floats(9 * columns, 2.0);
        values[columns..2 * columns].fill(0.0);
        values[2 * columns..3 * columns].iter_mut().for_each(|x| *x *= 1e6);
        values[3 * columns..4 * columns].iter_mut().for_each(|x| *x *= 1e-6);
        // Off center, where a variance computed as a difference of squares loses its digits.
        values[4 * columns..5 * columns].iter_mut().for_each(|x| *x += 100.0);
        // One value that dwarfs the others, as trained models have.
        values[5 * columns] = 1e4;
        let (x, exact_x) = place(backend, columns, &values)?;

        let weight = Stored::random(&mut random, DType::F32, &[columns]);
        let bias = self.bias.then(|| Stored::random(&mut random, DType::F32, &[columns]));
        let norm = norm_of(backend, self.kind, &weight, bias.as_ref())?;
        let exact_norm = norm_of(&Reference, self.kind, &weight, bias.as_ref())?;
        let want = Reference.download(&Reference.norm(&exact_x, &exact_norm)?)?;
        let got = backend.download(&backend.norm(&x, &norm)?)?;
        // The mean of the row that is off center is itself rounded, to 100 * 2^-24 against a deviation of about 1.
        let magnitude = row_magnitudes(&want, columns, 1.0);
        let off_center = |index: usize| if index / columns == 4 { 10.0 } else { 1.0 };
        compare(&got, &want, relative, |index| off_center(index) * magnitude(index))
    }
}

/// The norm with these vectors on a backend.
pub(super) fn norm_of<B: Backend>(
    backend: &B,
    kind: NormKind,
    weight: &Stored,
    bias: Option<&Stored>,
) -> crate::Result<Norm<B::Vector>> {
    Ok(Norm {
        kind,
        weight: backend.prepare_vector(&weight.view())?,
        bias: bias.map(|bias| backend.prepare_vector(&bias.view())).transpose()?,
        eps: 1e-5,
    })
}

#[derive(Clone, Debug)]
pub(super) struct ActivationCase {
    pub(super) activation: Activation,
    /// Whether the second half of each row is gated by the first.
    pub(super) gated: bool,
    /// Columns of the result.
    pub(super) columns: usize,
}

impl ActivationCase {
    pub(super) fn run<B: Backend>(&self, backend: &B, relative: f64) -> Result<Report, Failure> {
        let columns = self.columns;
        let mut random = Random::new(4);
        let mut inputs = random.floats(40 * columns, 8.0);
        for (input, extreme) in
            inputs.iter_mut().zip([0.0, -0.0, 1e-30, -1e-30, 10.0, -10.0, 1e4, -1e4, 30.0, -30.0, -100.0, 1e-3, -1e-3])
        {
            *input = extreme;
        }
        let gates = if self.gated { random.floats(inputs.len(), 2.0) } else { Vec::new() };
        let (got, want, magnitudes) = if self.gated {
            let rows = inputs.chunks(columns).zip(gates.chunks(columns));
            let values: Vec<f32> = rows.flat_map(|(a, b)| a.iter().chain(b)).copied().collect();
            let (x, exact_x) = place(backend, 2 * columns, &values)?;
            let magnitudes: Vec<f32> = inputs.iter().zip(&gates).map(|(a, b)| a * b).collect();
            let got = backend.gated_act(&x, self.activation)?;
            (got, Reference.gated_act(&exact_x, self.activation)?, magnitudes)
        } else {
            let (mut x, mut exact_x) = place(backend, columns, &inputs)?;
            backend.activation(&mut x, self.activation)?;
            Reference.activation(&mut exact_x, self.activation)?;
            (x, exact_x, inputs)
        };
        let want = Reference.download(&want)?;
        // Relative to the result; but 1 + erf(x) rounds to a fraction of 1, and so the result to a fraction of x.
        compare(&backend.download(&got)?, &want, relative, |i| want[i].abs() + 0.1 * magnitudes[i].abs())
    }
}

#[derive(Clone, Debug)]
pub(super) struct PoolCase {
    pub(super) pooling: Pooling,
    pub(super) lengths: Vec<usize>,
    pub(super) columns: usize,
}

impl PoolCase {
    pub(super) fn run<B: Backend>(&self, backend: &B, relative: f64) -> Result<Report, Failure> {
        let batch = batch(&self.lengths);
        let values = Random::new(5).floats(batch.rows() * self.columns, 1.0);
        let (x, exact_x): (_, Matrix) = place(backend, self.columns, &values)?;
        let got = backend.pool(&x, self.pooling, &backend.upload(&batch)?)?;
        let want = Reference.download(&Reference.pool(&exact_x, self.pooling, &batch)?)?;
        compare(&backend.download(&got)?, &want, relative, |_| 1.0)
    }
}
