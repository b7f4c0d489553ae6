//! Shape checks that every backend makes in the same words.
//!
//! Only what a caller can get wrong is checked here, once, before any arithmetic; kernels may then rely on it.

use crate::{ComputeError, Heads, NormKind, PackedBatch, Result, TensorView};

/// A [`ComputeError::Shape`] for `op`.
pub(crate) fn shape_error(op: &'static str, detail: impl Into<String>) -> ComputeError {
    ComputeError::Shape { op, detail: detail.into() }
}

/// Fails for `op` with `detail` unless `fits`.
pub(crate) fn ensure(fits: bool, op: &'static str, detail: impl FnOnce() -> String) -> Result<()> {
    if fits { Ok(()) } else { Err(shape_error(op, detail())) }
}

/// `[out, in]` of a linear layer made of stacked `parts` with as many vectors in `bias`, or none.
pub(crate) fn linear_shape(parts: &[TensorView<'_>], bias: &[TensorView<'_>]) -> Result<[usize; 2]> {
    const OP: &str = "prepare_linear";
    ensure(bias.is_empty() || bias.len() == parts.len(), OP, || {
        format!("{} parts, but {} bias vectors", parts.len(), bias.len())
    })?;
    let (mut rows, mut columns) = (0usize, None);
    for (i, part) in parts.iter().enumerate() {
        let [part_rows, part_columns] = matrix_shape(OP, part)?;
        ensure(*columns.get_or_insert(part_columns) == part_columns, OP, || {
            format!("part {i} has {part_columns} input columns, the first part {columns:?}")
        })?;
        if let Some(bias) = bias.get(i) {
            ensure(bias.shape() == [part_rows], OP, || {
                format!("part {i} has {part_rows} rows, its bias the shape {:?}", bias.shape())
            })?;
        }
        rows += part_rows;
    }
    let columns = columns.ok_or_else(|| shape_error(OP, "no parts"))?;
    Ok([rows, columns])
}

/// The two extents of a matrix, neither of them 0.
pub(crate) fn matrix_shape(op: &'static str, matrix: &TensorView<'_>) -> Result<[usize; 2]> {
    match *matrix.shape() {
        [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
        _ => Err(shape_error(op, format!("expected a matrix that is not empty, got the shape {:?}", matrix.shape()))),
    }
}

/// The length of a vector.
pub(crate) fn vector_length(vector: &TensorView<'_>) -> Result<usize> {
    match *vector.shape() {
        [length] if length > 0 => Ok(length),
        _ => Err(shape_error("prepare_vector", format!("expected a vector, got the shape {:?}", vector.shape()))),
    }
}

/// Every token of `batch` has a row in a table of `rows`.
pub(crate) fn tokens_in_table(batch: &PackedBatch, rows: usize) -> Result<()> {
    match batch.tokens().iter().find(|&&id| id as usize >= rows) {
        Some(&id) => Err(ComputeError::TokenOutOfRange { id, rows }),
        None => Ok(()),
    }
}

/// A tensor has one row for each token of the batch.
pub(crate) fn rows_of_batch(op: &'static str, rows: usize, batch: &PackedBatch) -> Result<()> {
    ensure(rows == batch.rows(), op, || format!("{rows} rows for a batch of {} tokens", batch.rows()))
}

/// A tensor has as many columns as the operand it meets.
pub(crate) fn columns_match(op: &'static str, got: usize, expected: usize) -> Result<()> {
    ensure(got == expected, op, || format!("{got} columns where {expected} are needed"))
}

/// A norm's vectors are as long as the rows that it normalizes.
pub(crate) fn norm_columns(op: &'static str, columns: usize, weight: usize, bias: Option<usize>) -> Result<()> {
    columns_match(op, weight, columns)?;
    columns_match(op, bias.unwrap_or(columns), columns)
}

/// A norm over single heads: root mean square, without a shift.
pub(crate) fn head_norm(op: &'static str, heads: Heads, kind: NormKind, weight: usize, has_bias: bool) -> Result<()> {
    ensure(kind == NormKind::Rms && !has_bias, op, || "heads take a root-mean-square norm without bias".to_owned())?;
    columns_match(op, weight, heads.dim)
}

/// `heads` is possible, and a fused projection of `[rows, columns]` fits it and the batch.
pub(crate) fn fused_heads(
    op: &'static str,
    heads: Heads,
    [rows, columns]: [usize; 2],
    batch: &PackedBatch,
) -> Result<()> {
    ensure(heads.dim > 0 && heads.key_value > 0 && heads.query.is_multiple_of(heads.key_value), op, || {
        format!("{} query heads of {} floats over {} key heads", heads.query, heads.dim, heads.key_value)
    })?;
    ensure(heads.query > 0, op, || "no query heads".to_owned())?;
    columns_match(op, columns, heads.fused_columns())?;
    rows_of_batch(op, rows, batch)
}

/// The rotary table covers the heads and the longest sequence of the batch.
pub(crate) fn rope_covers(
    op: &'static str,
    heads: Heads,
    dim: usize,
    positions: usize,
    batch: &PackedBatch,
) -> Result<()> {
    ensure(dim == heads.dim, op, || format!("a rotary table for {dim} floats, heads of {}", heads.dim))?;
    match batch.longest() {
        tokens if tokens > positions => Err(ComputeError::SequenceTooLong { tokens, positions }),
        _ => Ok(()),
    }
}
