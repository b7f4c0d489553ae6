//! The judge: every operation as its formula is written, one scalar after another.
//!
//! Sums are accumulated in f64, so that a difference between this and another backend is that backend's rounding.
//! Nothing here is fast, and nothing should be: a change for speed belongs in another backend.

use crate::check;
use crate::rope::RopeTable;
use crate::{
    Activation, Backend, HeadNorms, Heads, Mask, Norm, NormKind, Packed, PackedBatch, Pooling, Result, TensorView,
};

/// The plain scalar backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

/// A row-major matrix of f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    data: Vec<f32>,
}

impl Matrix {
    /// Wraps row-major `data`.
    pub(crate) fn new(rows: usize, columns: usize, data: Vec<f32>) -> Self {
        assert_eq!(rows * columns, data.len(), "a matrix of [{rows}, {columns}]");
        Self { rows, columns, data }
    }

    #[cfg(test)]
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.columns..(row + 1) * self.columns]
    }

    fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.columns..(row + 1) * self.columns]
    }
}

/// A linear layer: its weight of `[out, in]` and its bias of `[out]`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Matrix,
    bias: Option<Vec<f32>>,
}

/// A rotary table.
#[derive(Clone, Debug)]
pub struct Rope(RopeTable);

impl Backend for Reference {
    type Linear = Linear;
    type Table = Matrix;
    type Vector = Vec<f32>;
    type Rope = Rope;
    type Batch = PackedBatch;
    type Tensor = Matrix;
    type Recording = ();

    fn name(&self) -> String {
        "reference (scalar)".to_owned()
    }

    fn numeric_format(&self) -> &'static str {
        "f32"
    }

    fn warm_up_tokens(&self, _: usize) -> Vec<usize> {
        Vec::new()
    }

    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    fn memory_bytes_free(&self) -> Option<u64> {
        None
    }

    fn prepare_linear(&self, parts: &[TensorView<'_>], bias: &[TensorView<'_>]) -> Result<Linear> {
        let [rows, columns] = check::linear_shape(parts, bias)?;
        let weight = Matrix::new(rows, columns, parts.iter().flat_map(TensorView::to_f32).collect());
        let bias = (!bias.is_empty()).then(|| bias.iter().flat_map(TensorView::to_f32).collect());
        Ok(Linear { weight, bias })
    }

    fn prepare_table(&self, table: &TensorView<'_>) -> Result<Matrix> {
        let [rows, columns] = check::matrix_shape("prepare_table", table)?;
        Ok(Matrix::new(rows, columns, table.to_f32()))
    }

    fn packed_layout(&self) -> Option<String> {
        None
    }

    fn packed_linear(&self, _: &Linear) -> Option<Packed> {
        None
    }

    fn packed_table(&self, _: &Matrix) -> Option<Packed> {
        None
    }

    fn linear_from(&self, packed: &Packed, _: &[TensorView<'_>]) -> Result<Linear> {
        Err(packed.refused("linear_from"))
    }

    fn table_from(&self, packed: &Packed) -> Result<Matrix> {
        Err(packed.refused("table_from"))
    }

    fn prepare_vector(&self, vector: &TensorView<'_>) -> Result<Vec<f32>> {
        check::vector_length(vector)?;
        Ok(vector.to_f32())
    }

    fn prepare_rope(&self, theta: f32, dim: usize, positions: usize) -> Result<Rope> {
        RopeTable::new(theta, dim, positions).map(Rope)
    }

    fn upload(&self, batch: &PackedBatch) -> Result<PackedBatch> {
        Ok(batch.clone())
    }

    fn run(
        &self,
        _: &(),
        batch: &PackedBatch,
        forward: &(dyn Fn(&Self::Batch) -> Result<Self::Tensor> + Sync),
    ) -> Result<Vec<f32>> {
        self.download(&forward(&self.upload(batch)?)?)
    }

    fn embed(&self, table: &Matrix, norm: Option<&Norm<Vec<f32>>>, batch: &PackedBatch) -> Result<Matrix> {
        check::tokens_in_table(batch, table.rows)?;
        let data = batch.tokens().iter().flat_map(|&id| table.row(id as usize)).copied().collect();
        let rows = Matrix::new(batch.rows(), table.columns, data);
        norm.map_or(Ok(rows.clone()), |norm| self.norm(&rows, norm))
    }

    fn linear(&self, x: &Matrix, weight: &Linear) -> Result<Matrix> {
        let mut y = Matrix::new(x.rows, weight.weight.rows, vec![0.0; x.rows * weight.weight.rows]);
        self.linear_add(x, weight, &mut y)?;
        Ok(y)
    }

    fn linear_add(&self, x: &Matrix, weight: &Linear, residual: &mut Matrix) -> Result<()> {
        const OP: &str = "linear";
        check::columns_match(OP, x.columns, weight.weight.columns)?;
        check::columns_match(OP, residual.columns, weight.weight.rows)?;
        check::ensure(x.rows == residual.rows, OP, || format!("{} rows into {}", x.rows, residual.rows))?;
        for row in 0..x.rows {
            for (out, y) in residual.row_mut(row).iter_mut().enumerate() {
                let bias = weight.bias.as_ref().map_or(0.0, |b| f64::from(b[out]));
                *y = (f64::from(*y) + dot(x.row(row), weight.weight.row(out)) + bias) as f32;
            }
        }
        Ok(())
    }

    fn norm(&self, x: &Matrix, norm: &Norm<Vec<f32>>) -> Result<Matrix> {
        check::norm_columns("norm", x.columns, norm.weight.len(), norm.bias.as_ref().map(Vec::len))?;
        let mut y = x.clone();
        for row in 0..y.rows {
            normalize(y.row_mut(row), norm);
        }
        Ok(y)
    }

    fn qk_norm_rope(
        &self,
        qkv: &mut Matrix,
        heads: Heads,
        norms: Option<HeadNorms<'_, Vec<f32>>>,
        rope: &Rope,
        batch: &PackedBatch,
    ) -> Result<()> {
        const OP: &str = "qk_norm_rope";
        check::fused_heads(OP, heads, [qkv.rows, qkv.columns], batch)?;
        check::rope_covers(OP, heads, rope.0.dim, rope.0.positions, batch)?;
        for norm in norms.iter().flat_map(|(q, k)| [q, k]) {
            check::head_norm(OP, heads, norm.kind, norm.weight.len(), norm.bias.is_some())?;
        }
        for range in batch.ranges() {
            for (position, row) in range.enumerate() {
                let rotated = heads.query + heads.key_value;
                for (i, head) in qkv.row_mut(row).chunks_exact_mut(heads.dim).take(rotated).enumerate() {
                    if let Some((query, key)) = norms {
                        normalize(head, if i < heads.query { query } else { key });
                    }
                    rotate(head, rope.0.at(position));
                }
            }
        }
        Ok(())
    }

    fn attention(&self, qkv: &Matrix, heads: Heads, mask: Mask, batch: &PackedBatch) -> Result<Matrix> {
        check::fused_heads("attention", heads, [qkv.rows, qkv.columns], batch)?;
        let scale = 1.0 / (heads.dim as f64).sqrt();
        let head = |row: usize, index: usize| &qkv.row(row)[index * heads.dim..(index + 1) * heads.dim];
        let mut out = Matrix::new(qkv.rows, heads.output_columns(), vec![0.0; qkv.rows * heads.output_columns()]);
        for range in batch.ranges() {
            for query_row in range.clone() {
                for query_head in 0..heads.query {
                    let key_head = heads.query + query_head / (heads.query / heads.key_value);
                    let value_head = key_head + heads.key_value;
                    let keys: Vec<usize> = range.clone().filter(|&row| visible(mask, query_row, row)).collect();
                    let query = head(query_row, query_head);
                    let logits: Vec<f64> = keys.iter().map(|&row| scale * dot(query, head(row, key_head))).collect();
                    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let mut total = 0.0;
                    let mut sum = vec![0.0; heads.dim];
                    for (&row, logit) in keys.iter().zip(&logits) {
                        let weight = (logit - max).exp();
                        total += weight;
                        for (sum, &value) in sum.iter_mut().zip(head(row, value_head)) {
                            *sum += weight * f64::from(value);
                        }
                    }
                    let out = &mut out.row_mut(query_row)[query_head * heads.dim..(query_head + 1) * heads.dim];
                    for (out, sum) in out.iter_mut().zip(&sum) {
                        *out = (sum / total) as f32;
                    }
                }
            }
        }
        Ok(out)
    }

    fn gated_act(&self, x: &Matrix, activation: Activation) -> Result<Matrix> {
        check::ensure(x.columns.is_multiple_of(2), "gated_act", || format!("{} columns have no halves", x.columns))?;
        let half = x.columns / 2;
        let gate = |row: &[f32]| -> Vec<f32> {
            (0..half).map(|i| (activate(activation, row[i]) * f64::from(row[half + i])) as f32).collect()
        };
        Ok(Matrix::new(x.rows, half, (0..x.rows).flat_map(|row| gate(x.row(row))).collect()))
    }

    fn activation(&self, x: &mut Matrix, activation: Activation) -> Result<()> {
        for value in &mut x.data {
            *value = activate(activation, *value) as f32;
        }
        Ok(())
    }

    fn pool(&self, x: &Matrix, pooling: Pooling, batch: &PackedBatch) -> Result<Matrix> {
        check::rows_of_batch("pool", x.rows, batch)?;
        let mut data = Vec::with_capacity(batch.sequences() * x.columns);
        for range in batch.ranges() {
            match pooling {
                Pooling::First => data.extend_from_slice(x.row(range.start)),
                Pooling::Last => data.extend_from_slice(x.row(range.end - 1)),
                Pooling::Mean => data.extend((0..x.columns).map(|column| {
                    let sum: f64 = range.clone().map(|row| f64::from(x.row(row)[column])).sum();
                    (sum / range.len() as f64) as f32
                })),
            }
        }
        Ok(Matrix::new(batch.sequences(), x.columns, data))
    }

    fn download(&self, x: &Matrix) -> Result<Vec<f32>> {
        Ok(x.data.clone())
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

fn visible(mask: Mask, query: usize, key: usize) -> bool {
    match mask {
        Mask::Causal => key <= query,
        Mask::Full => true,
        Mask::Window(n) => query.abs_diff(key) <= n,
    }
}

fn normalize(row: &mut [f32], norm: &Norm<Vec<f32>>) {
    let columns = row.len() as f64;
    let mean = match norm.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => row.iter().map(|&x| f64::from(x)).sum::<f64>() / columns,
    };
    let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / columns;
    let scale = 1.0 / (variance + f64::from(norm.eps)).sqrt();
    for (i, x) in row.iter_mut().enumerate() {
        let shift = norm.bias.as_ref().map_or(0.0, |bias| f64::from(bias[i]));
        *x = ((f64::from(*x) - mean) * scale * f64::from(norm.weight[i]) + shift) as f32;
    }
}

fn rotate(head: &mut [f32], (cos, sin): (&[f32], &[f32])) {
    let half = head.len() / 2;
    for i in 0..half {
        let (a, b) = (f64::from(head[i]), f64::from(head[half + i]));
        let (cos, sin) = (f64::from(cos[i]), f64::from(sin[i]));
        head[i] = (a * cos - b * sin) as f32;
        head[half + i] = (b * cos + a * sin) as f32;
    }
}

fn activate(activation: Activation, x: f32) -> f64 {
    let x = f64::from(x);
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
    }
}

/// The error function by the series of Abramowitz and Stegun 7.1.6, whose terms all have one sign:
/// `erf x = 2 / sqrt(pi) e^(-x^2) sum_n 2^n x^(2n + 1) / (1 * 3 * ... * (2n + 1))`.
fn erf(x: f64) -> f64 {
    // Beyond 6 it is 1 to the last bit of an f64; the series would need ever more terms.
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut sum, mut term, mut n) = (x, x, 1.0);
    while term.abs() > 1e-18 * sum.abs() {
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
        n += 1.0;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_at_known_points() {
        // Abramowitz and Stegun, table 7.1.
        for (x, want) in [(0.0, 0.0), (0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265_0)] {
            assert!((erf(x) - want).abs() < 1e-10, "erf({x})");
            assert_eq!(erf(-x), -erf(x));
        }
        assert_eq!(erf(7.0), 1.0);
        assert!(erf(f64::NAN).is_nan());
    }

    #[test]
    fn windows_are_inclusive_on_both_sides() {
        assert!(visible(Mask::Window(2), 5, 3) && visible(Mask::Window(2), 5, 7));
        assert!(!visible(Mask::Window(2), 5, 2) && !visible(Mask::Window(2), 5, 8));
        assert!(visible(Mask::Causal, 5, 5) && !visible(Mask::Causal, 5, 6));
    }

    #[test]
    fn rotation_pairs_the_halves() {
        let mut head = [1.0, 2.0, 3.0, 4.0];
        rotate(&mut head, (&[0.0, 1.0], &[1.0, 0.0]));
        assert_eq!(head, [-3.0, 2.0, 1.0, 4.0]);
    }
}
