//! The `k` rows most similar to a source vector, exactly.
//!
//! Every row is scored ([`crate::cosine`]); a bounded heap for each part of the rows keeps the best, and the parts are
//! merged. The order is total (similarity, then position), so the answer does not depend on how the rows were split.
//!
//! Deliberately absent: approximate search, and any index that outlives the call.

#![deny(unsafe_code)]

use crate::Rows;
use crate::cosine::{Source, VectorFault};
use rayon::prelude::*;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// The least that is worth handing to a thread.
const PART_BYTES_MIN: usize = 512 << 10;

/// Parts for each thread: enough for the threads to end together, few enough for merging to cost nothing.
const PARTS_PER_THREAD: usize = 8;

/// A row and how similar it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// The row's position, from 0.
    pub index: usize,
    /// Cosine similarity, in `[-1, 1]`.
    pub similarity: f32,
}

/// Where the work may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// On the calling thread only.
    Caller,
    /// Spread over the current rayon pool where the input is big enough: the global one, or the one whose `install`
    /// this call is inside.
    Pool,
}

/// Why there is no ranking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopKError {
    /// Source and rows are of different lengths.
    #[error("the source has {source_dim} components, the rows have {rows_dim}")]
    Dimensions {
        /// Components of the source.
        source_dim: usize,
        /// Components of each row.
        rows_dim: usize,
    },
    /// The source has no direction: all components are zero, or there are none.
    #[error("the source is a zero vector")]
    ZeroSource,
    /// A component of the source is NaN or infinite.
    #[error("component {component} of the source is not finite")]
    NonFiniteSource {
        /// The component's position.
        component: usize,
    },
    /// A row has no direction. The first faulty row is named.
    #[error("row {row} is a zero vector")]
    ZeroRow {
        /// The row's position.
        row: usize,
    },
    /// A component of a row is NaN or infinite. The first faulty row is named.
    #[error("component {component} of row {row} is not finite")]
    NonFiniteRow {
        /// The row's position.
        row: usize,
        /// The component's position in its row.
        component: usize,
    },
}

/// The `k` rows most similar to `source` by cosine, best first, equal similarities by position. All rows when `k` is
/// beyond their number; none when there are none. Nothing needs to be normalized.
///
/// Similarities are within 1e-6 of what `f64` arithmetic gives, for any finite components: rows whose squares would
/// leave the range of `f32` are computed in `f64`. The same input gives the same bits on the same machine.
///
/// # Errors
///
/// See [`TopKError`]. Every row is checked, also those that would not be among the best.
pub fn top_k(source: &[f32], rows: Rows<'_>, k: usize, threads: Threads) -> Result<Vec<Scored>, TopKError> {
    let source_dim = source.len();
    let source = Source::new(source).map_err(|fault| match fault {
        VectorFault::Zero => TopKError::ZeroSource,
        VectorFault::NonFinite { component } => TopKError::NonFiniteSource { component },
    })?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    if rows.dim() != source_dim {
        return Err(TopKError::Dimensions { source_dim, rows_dim: rows.dim() });
    }
    let part_rows_min = PART_BYTES_MIN / (rows.dim() * size_of::<f32>()) + 1;
    let part_rows = part_rows_min.max(rows.len() / (PARTS_PER_THREAD * rayon::current_num_threads()));
    let mut best = if threads == Threads::Caller || rows.len() <= part_rows {
        best_of_part(&source, rows.as_slice(), 0, k)?
    } else {
        let parts: Vec<Result<Vec<Scored>, TopKError>> = rows
            .as_slice()
            .par_chunks(part_rows * rows.dim())
            .enumerate()
            .map(|(part, data)| best_of_part(&source, data, part * part_rows, k))
            .collect();
        let mut merged = Vec::new();
        // In order of position, so that the first faulty row is the one named.
        for part in parts {
            merged.extend(part?);
        }
        merged
    };
    best.sort_unstable_by(best_first);
    best.truncate(k);
    Ok(best)
}

/// Which implementation of the inner loop this machine runs: `avx512`, `avx2` or `portable`.
pub fn kernel_name() -> &'static str {
    crate::cosine::kernel_name()
}

fn best_of_part(source: &Source<'_>, data: &[f32], first_row: usize, k: usize) -> Result<Vec<Scored>, TopKError> {
    let mut best = BestK::new(k, data.len() / source.dim());
    for (i, row) in data.chunks_exact(source.dim()).enumerate() {
        let index = first_row + i;
        let similarity = source.similarity(row).map_err(|fault| match fault {
            VectorFault::Zero => TopKError::ZeroRow { row: index },
            VectorFault::NonFinite { component } => TopKError::NonFiniteRow { row: index, component },
        })?;
        best.push(Scored { index, similarity });
    }
    Ok(best.into_vec())
}

fn best_first(a: &Scored, b: &Scored) -> Ordering {
    // Similarities are never NaN, and `total_cmp` would put -0.0 after 0.0.
    b.similarity.partial_cmp(&a.similarity).unwrap_or(Ordering::Equal).then(a.index.cmp(&b.index))
}

/// The best `k` of what was pushed, unordered.
struct BestK {
    k: usize,
    /// The worst of the best on top.
    heap: BinaryHeap<WorstOnTop>,
}

struct WorstOnTop(Scored);

impl BestK {
    fn new(k: usize, rows: usize) -> Self {
        Self { k, heap: BinaryHeap::with_capacity(k.min(rows)) }
    }

    fn push(&mut self, scored: Scored) {
        let scored = WorstOnTop(scored);
        if self.heap.len() < self.k {
            self.heap.push(scored);
        } else if let Some(mut worst) = self.heap.peek_mut()
            && scored < *worst
        {
            *worst = scored;
        }
    }

    fn into_vec(self) -> Vec<Scored> {
        self.heap.into_iter().map(|scored| scored.0).collect()
    }
}

impl Ord for WorstOnTop {
    fn cmp(&self, other: &Self) -> Ordering {
        best_first(&self.0, &other.0)
    }
}

impl PartialOrd for WorstOnTop {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for WorstOnTop {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for WorstOnTop {}
