//! What blocks have come to, put together: the ranking.

use super::block::{Data, Kept, Outcome, not_whole, rows};
use super::fields::{TARGET_IDS, TARGETS, TOP_K, check_row, of_source, refusal};
use super::{Head, Ids, Limits};
use crate::json::{BodyError, Loc};
use crate::{Best, Scored, Sources, Threads, score};
use rayon::prelude::*;
use std::borrow::Cow;

/// The outcomes of a body's blocks, taken in the order of the blocks.
#[derive(Debug, Default)]
pub struct Gathered {
    best: Option<Best>,
    scored_rows: usize,
    kept: Vec<Kept>,
}

impl Gathered {
    /// Takes the outcome of the next block.
    pub fn take(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Scored(rated) => {
                self.scored_rows += rated.rows;
                match &mut self.best {
                    Some(all) => all.merge(rated.best),
                    None => self.best = Some(rated.best),
                }
            }
            Outcome::Kept(kept) => self.kept.push(kept),
        }
    }

    /// Rows that were kept, in order.
    pub fn into_kept(self) -> Vec<Kept> {
        self.kept
    }

    /// The best `k` rows for each source, best first. `head` is what the body held beside the rows.
    ///
    /// # Errors
    ///
    /// What is wrong with rows that could not be scored before, or with the number of ids; more candidates than the limits
    /// allow.
    pub fn rank(self, head: &Head, k: usize, limits: &Limits, threads: Threads) -> Result<Vec<Vec<Scored>>, BodyError> {
        let Some(sources) = head.sources.as_deref() else { return Ok(Vec::new()) };
        let dim = sources.dim();
        if head.dim.is_some_and(|told| told != dim) && !head.flat {
            let row_dim = head.dim.unwrap_or_default();
            return Err(of_source(row_dim, dim, 0));
        }
        if head.flat {
            check_whole_rows(self.kept.iter().map(|kept| kept.data.as_bytes().len()).sum(), dim, limits)?;
        }
        let pieces = if head.flat { whole_rows(&self.kept, dim) } else { as_they_are(&self.kept) };
        let kept_rows: usize = pieces.iter().map(|piece| piece.bytes.len() / (dim * piece.dtype.bytes())).sum();
        check_ids(head.ids.as_ref(), self.scored_rows + kept_rows)?;
        check_candidates(sources.len(), k, self.scored_rows + kept_rows, limits)?;
        let mut best = score_all(&pieces, sources, k, threads)?;
        if let Some(scored) = self.best {
            best.merge(scored);
        }
        let mut ranked = best.into_ranked();
        ranked.iter_mut().for_each(|scored| scored.truncate(k));
        Ok(ranked)
    }

    /// Whether all that was taken could be ranked in no time.
    pub fn is_small(&self) -> bool {
        self.kept.is_empty() && self.scored_rows < 1 << 16
    }
}

/// Whether so many bytes of `f32` are whole rows of `dim`, and not too many.
///
/// # Errors
///
/// When something is left over, or the limits are exceeded.
pub fn check_whole_rows(bytes: usize, dim: usize, limits: &Limits) -> Result<(), BodyError> {
    let row_bytes = dim * size_of::<f32>();
    match bytes.checked_rem(row_bytes) {
        Some(0) => (bytes / row_bytes).checked_sub(1).map_or(Ok(()), |last| check_row(last, dim, limits)),
        rest => Err(not_whole(bytes / row_bytes.max(1), rest.unwrap_or(bytes), dim, row_bytes)),
    }
}

/// Whether so many sources may ask for `k` each out of so many rows.
///
/// # Errors
///
/// When that would be more candidates than the limits allow.
pub fn check_candidates(sources: usize, k: usize, rows: usize, limits: &Limits) -> Result<(), BodyError> {
    if sources.saturating_mul(k.min(rows)) <= limits.candidates_max {
        return Ok(());
    }
    let problem = format_args!("{sources} sources may ask for {} candidates at most", limits.candidates_max);
    Err(BodyError::value(&[Loc::Key(TOP_K)], problem))
}

/// Whether there are as many ids as rows.
///
/// # Errors
///
/// When there are ids, and not as many.
pub fn check_ids(ids: Option<&Ids>, rows: usize) -> Result<(), BodyError> {
    match ids {
        Some(ids) if ids.len() != rows => {
            let problem = format_args!("there are {} {TARGET_IDS} for {rows} {TARGETS}", ids.len());
            Err(BodyError::value(&[Loc::Key(TARGET_IDS)], problem))
        }
        _ => Ok(()),
    }
}

struct Piece<'a> {
    bytes: Cow<'a, [u8]>,
    dtype: crate::Dtype,
    first_row: usize,
}

fn as_they_are(kept: &[Kept]) -> Vec<Piece<'_>> {
    fn piece(kept: &Kept) -> Piece<'_> {
        Piece { bytes: Cow::Borrowed(kept.data.as_bytes()), dtype: kept.data.dtype(), first_row: kept.first_row }
    }
    kept.iter().map(piece).collect()
}

/// The components of `kept`, one run of `f32`, as rows of `dim`. Rows that lie across two parts are copied. What is left
/// over in the end is a piece of its own, which is no row.
fn whole_rows(kept: &[Kept], dim: usize) -> Vec<Piece<'_>> {
    let row_bytes = dim * size_of::<f32>();
    let mut pieces = Vec::new();
    let mut first_row = 0;
    let mut across: Vec<u8> = Vec::new();
    for part in kept {
        let mut bytes = part.data.as_bytes();
        if !across.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(row_bytes - across.len()));
            across.extend_from_slice(head);
            bytes = rest;
            if across.len() < row_bytes {
                continue;
            }
            pieces.push(Piece { bytes: Cow::Owned(std::mem::take(&mut across)), dtype: crate::Dtype::F32, first_row });
            first_row += 1;
        }
        let rows = bytes.len() / row_bytes;
        let (whole, rest) = bytes.split_at(rows * row_bytes);
        if rows > 0 {
            pieces.push(Piece { bytes: Cow::Borrowed(whole), dtype: crate::Dtype::F32, first_row });
            first_row += rows;
        }
        across.extend_from_slice(rest);
    }
    if !across.is_empty() {
        pieces.push(Piece { bytes: Cow::Owned(across), dtype: crate::Dtype::F32, first_row });
    }
    pieces
}

/// The best rows of all pieces, or the first thing wrong with them.
fn score_all(pieces: &[Piece<'_>], sources: &Sources, k: usize, threads: Threads) -> Result<Best, BodyError> {
    type Part = (Best, Option<BodyError>);
    let none = || -> Part { (Best::new(sources.len(), k), None) };
    let add = |(mut best, error): Part, piece: &Piece<'_>| -> Part {
        let scored = error.map_or_else(
            || {
                let rows = rows(&piece.bytes, piece.dtype, sources.dim(), piece.first_row)?;
                score(sources, rows, None, piece.first_row, &mut best).map_err(refusal)
            },
            Err,
        );
        (best, scored.err())
    };
    let (best, error) = match threads {
        Threads::Caller => pieces.iter().fold(none(), add),
        // In order, so that of two errors the left one is the first.
        Threads::Pool => pieces.par_iter().fold(none, add).reduce(none, |(mut best, error), (other, other_error)| {
            best.merge(other);
            (best, error.or(other_error))
        }),
    };
    error.map_or(Ok(best), Err)
}

impl Data {
    /// Components held.
    pub fn len(&self) -> usize {
        self.as_bytes().len() / self.dtype().bytes()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
