//! The inner loop in plain Rust: the judge of the others, and what machines without a kernel of their own run.

use super::BLOCK;

/// Enough independent sums to keep any machine's vector units busy.
const LANES: usize = 32;

pub(super) fn dot_and_squares(source: &[f32], row: &[f32]) -> (f64, f64) {
    let (mut dot, mut squares) = (0.0, 0.0);
    for (source, row) in source.chunks(BLOCK).zip(row.chunks(BLOCK)) {
        let (block_dot, block_squares) = block(source, row);
        dot += block_dot;
        squares += block_squares;
    }
    (dot, squares)
}

fn block(source: &[f32], row: &[f32]) -> (f64, f64) {
    let (source_steps, source_rest) = source.as_chunks::<LANES>();
    let (row_steps, row_rest) = row.as_chunks::<LANES>();
    let mut dot = [0.0f32; LANES];
    let mut squares = [0.0f32; LANES];
    for (s, r) in source_steps.iter().zip(row_steps) {
        for lane in 0..LANES {
            // No `mul_add`: without the instruction it is a function call.
            dot[lane] += s[lane] * r[lane];
            squares[lane] += r[lane] * r[lane];
        }
    }
    let mut dot = sum(&dot);
    let mut squares = sum(&squares);
    for (&s, &r) in source_rest.iter().zip(row_rest) {
        dot += f64::from(s) * f64::from(r);
        squares += f64::from(r) * f64::from(r);
    }
    (dot, squares)
}

fn sum(lanes: &[f32]) -> f64 {
    lanes.iter().copied().map(f64::from).sum()
}
