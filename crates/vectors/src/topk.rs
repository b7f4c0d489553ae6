//! The `k` rows most similar to each source vector, exactly.
//!
//! Every row is scored ([`crate::cosine`]); a bounded heap for each source and part of the rows keeps the best, and the
//! parts are merged. The order is total (similarity, then position), so the answer does not depend on how the rows were
//! split.
//!
//! Deliberately absent: approximate search, and any index that outlives the call.

#![deny(unsafe_code)]

use crate::cosine::{self, PANEL_ROWS, VectorFault};
use crate::{Rows, ShapeError, Sources};
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
    /// The sources' data does not divide into sources.
    #[error(transparent)]
    Shape(ShapeError),
    /// Sources and rows are of different lengths.
    #[error("the source has {source_dim} components, the rows have {rows_dim}")]
    Dimensions {
        /// Components of each source.
        source_dim: usize,
        /// Components of each row.
        rows_dim: usize,
    },
    /// A source has no direction: all components are zero, or there are none. The first faulty source is named.
    #[error("source {index} is a zero vector")]
    ZeroSource {
        /// The source's position.
        index: usize,
    },
    /// A component of a source is NaN or infinite. The first faulty source is named.
    #[error("component {component} of source {index} is not finite")]
    NonFiniteSource {
        /// The source's position.
        index: usize,
        /// The component's position in its source.
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
/// [`top_k_many`] for one source.
///
/// # Errors
///
/// See [`TopKError`]. Every row is checked, also those that would not be among the best.
pub fn top_k(source: &[f32], rows: Rows<'_>, k: usize, threads: Threads) -> Result<Vec<Scored>, TopKError> {
    let sources = Sources::new(source, source.len())?;
    let mut ranked = top_k_many(&sources, rows, None, k, threads)?;
    Ok(ranked.pop().unwrap_or_default())
}

/// For each source the `k` rows most similar to it by cosine, best first, equal similarities by position. All rows when
/// `k` is beyond their number; none when there are none. Nothing needs to be normalized.
///
/// Similarities are within 1e-6 of what `f64` arithmetic gives, for any finite components: rows whose squares would
/// leave the range of `f32` are computed in `f64`. A row equal to a source, or a multiple of it, has the similarity 1.
/// The same input gives the same bits on the same machine, whether a source is alone or among others.
///
/// `norms` are the rows' norms as [`norms`] gives them, if somebody has them already: the squares are then spared.
///
/// # Errors
///
/// See [`TopKError`]. Without `norms`, every row is checked, also those that would not be among the best. With `norms`
/// the rows are taken to be what the norms were computed from.
///
/// # Panics
///
/// When `norms` are not one for each row.
pub fn top_k_many(
    sources: &Sources,
    rows: Rows<'_>,
    norms: Option<&[f64]>,
    k: usize,
    threads: Threads,
) -> Result<Vec<Vec<Scored>>, TopKError> {
    let none = || Best::new(sources.len(), k);
    let part_rows = if rows.is_empty() || threads == Threads::Caller {
        rows.len()
    } else {
        let part_rows_min = PART_BYTES_MIN / rows.row_bytes() + 1;
        let part_rows = part_rows_min.max(rows.len() / (PARTS_PER_THREAD * rayon::current_num_threads()));
        part_rows.next_multiple_of(PANEL_ROWS)
    };
    if rows.len() <= part_rows {
        let mut best = none();
        score(sources, rows, norms, 0, &mut best)?;
        return Ok(best.into_ranked());
    }
    check_norms(rows, norms);
    (0..rows.len().div_ceil(part_rows))
        .into_par_iter()
        // What a thread has found goes on to its next part: full heaps take little in.
        .fold(
            || Ok(none()),
            |best, part| {
                let part = part * part_rows..((part + 1) * part_rows).min(rows.len());
                let mut best = best?;
                let norms = norms.map(|norms| &norms[part.clone()]);
                score(sources, rows.slice(part.clone()), norms, part.start, &mut best).map(|()| best)
            },
        )
        // Neighbours are merged in order of position, so that the first faulty row is the one named.
        .reduce(
            || Ok(none()),
            |left, right| {
                let mut left = left?;
                left.merge(right?);
                Ok(left)
            },
        )
        .map(Best::into_ranked)
}

/// The best of `candidates` (positions of rows) for each source, as [`top_k_many`] would rank them among all rows: for who has
/// found by another computation which rows may be among the best. Similarities are the same bits as those of
/// [`top_k_many`] for one source.
///
/// # Errors
///
/// See [`TopKError`].
///
/// # Panics
///
/// When there is no list of candidates for a source, or a candidate is no row, or `norms` are not one for each row.
pub fn top_k_among(
    sources: &Sources,
    rows: Rows<'_>,
    norms: &[f64],
    candidates: &[Vec<usize>],
    k: usize,
) -> Result<Vec<Vec<Scored>>, TopKError> {
    check_norms(rows, Some(norms));
    assert_eq!(candidates.len(), sources.len(), "candidates for each source");
    let rank = |(source, candidates): (usize, &Vec<usize>)| {
        let source = sources.only(source);
        let mut best = Best::new(1, k);
        for &row in candidates {
            score(&source, rows.slice(row..row + 1), Some(&norms[row..=row]), row, &mut best)?;
        }
        Ok(best.into_ranked().pop().unwrap_or_default())
    };
    candidates.iter().enumerate().map(rank).collect()
}

/// Scores rows on the caller's thread: for who has them in pieces, or spreads the work in another way. What
/// [`top_k_many`] says of similarities and `norms` holds here as well.
///
/// `first_row` is the position of the first of the rows: added to the positions that go into `best`, and to those that
/// errors name.
///
/// # Errors
///
/// See [`TopKError`]; what is in `best` is then of no use.
///
/// # Panics
///
/// When `norms` are not one for each row, or `best` is for another number of sources.
pub fn score(
    sources: &Sources,
    rows: Rows<'_>,
    norms: Option<&[f64]>,
    first_row: usize,
    best: &mut Best,
) -> Result<(), TopKError> {
    check_norms(rows, norms);
    assert_eq!(best.heaps.len(), sources.len(), "as many rankings as sources");
    if rows.is_empty() {
        return Ok(());
    }
    if rows.dim() != sources.dim() {
        return Err(TopKError::Dimensions { source_dim: sources.dim(), rows_dim: rows.dim() });
    }
    cosine::similarities(sources, rows, norms, |row, source, similarity| {
        best.push(source, Scored { index: first_row + row, similarity });
    })
    .map_err(|fault| faulty_row(first_row, fault))
}

/// The Euclidean norm of each row, appended to `out`: for rows that will be searched more than once.
///
/// `first_row` is the position of the first of the rows, for errors.
///
/// # Errors
///
/// [`TopKError::ZeroRow`] or [`TopKError::NonFiniteRow`] for the first row that has no direction. What `out` holds
/// beyond what it held is then of no use.
pub fn norms(rows: Rows<'_>, first_row: usize, out: &mut Vec<f64>) -> Result<(), TopKError> {
    cosine::norms(rows, out).map_err(|fault| faulty_row(first_row, fault))
}

/// Which implementation of the inner loop this machine runs: `avx512`, `avx2` or `portable`.
pub fn kernel_name() -> &'static str {
    cosine::kernel_name()
}

fn check_norms(rows: Rows<'_>, norms: Option<&[f64]>) {
    if let Some(norms) = norms {
        assert_eq!(norms.len(), rows.len(), "as many norms as rows");
    }
}

fn faulty_row(first_row: usize, (row, fault): (usize, VectorFault)) -> TopKError {
    let row = first_row + row;
    match fault {
        VectorFault::Zero => TopKError::ZeroRow { row },
        VectorFault::NonFinite { component } => TopKError::NonFiniteRow { row, component },
    }
}

fn best_first(a: &Scored, b: &Scored) -> Ordering {
    // Similarities are never NaN, and `total_cmp` would put -0.0 after 0.0.
    b.similarity.partial_cmp(&a.similarity).unwrap_or(Ordering::Equal).then(a.index.cmp(&b.index))
}

/// The best rows so far, for each source.
#[derive(Debug)]
pub struct Best {
    k: usize,
    /// For each source, the worst of its best on top.
    heaps: Vec<BinaryHeap<WorstOnTop>>,
}

#[derive(Debug)]
struct WorstOnTop(Scored);

impl Best {
    /// Room for the best `k` rows for each of `sources` sources. Nothing is allocated for rows that do not come.
    pub fn new(sources: usize, k: usize) -> Self {
        Self { k, heaps: std::iter::repeat_with(BinaryHeap::new).take(sources).collect() }
    }

    /// Takes in what was found among other rows.
    ///
    /// # Panics
    ///
    /// When `other` is for another number of sources.
    pub fn merge(&mut self, other: Self) {
        assert_eq!(self.heaps.len(), other.heaps.len(), "rankings for the same sources");
        for (source, heap) in other.heaps.into_iter().enumerate() {
            for scored in heap {
                self.push(source, scored.0);
            }
        }
    }

    /// For each source its best rows: best first, equal similarities by position. However the rows were split, and in
    /// whatever order they came, the result is the same.
    pub fn into_ranked(self) -> Vec<Vec<Scored>> {
        let ranked = |heap: BinaryHeap<WorstOnTop>| heap.into_sorted_vec().into_iter().map(|scored| scored.0).collect();
        self.heaps.into_iter().map(ranked).collect()
    }

    #[inline]
    fn push(&mut self, source: usize, scored: Scored) {
        let scored = WorstOnTop(scored);
        let heap = &mut self.heaps[source];
        if heap.len() < self.k {
            heap.push(scored);
        } else if let Some(mut worst) = heap.peek_mut()
            && scored < *worst
        {
            *worst = scored;
        }
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
