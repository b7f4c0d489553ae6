//! Some whole rows of a body, and what becomes of them: numbers, and then similarities, or rows to keep.
//!
//! Blocks are independent of each other; running one allocates what is kept and nothing else that lasts.

use super::Purpose;
use super::fields::{TARGETS, not_finite, refusal};
use crate::json::{BodyError, Cursor, ErrorKind, Length, Loc, VectorParser, in_characters, open_list, parse_string};
use crate::wire::{WireError, floats_of};
use crate::{Best, Dtype, Rows, Scored, Sources, norms, score};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use memchr::memchr;
use std::cell::RefCell;
use std::sync::Arc;

/// Rows of a body that can be worked on.
#[derive(Debug)]
pub struct Block {
    pub(super) content: Content,
    /// Position of the first row among the body's rows.
    pub(super) first_row: usize,
    pub(super) job: Job,
}

/// What is done with rows.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) purpose: Purpose,
    /// The sources to compare with, where they are known by now.
    pub(super) sources: Option<Arc<Sources>>,
    /// How many of the best are asked for, where that is known by now.
    pub(super) k: Option<usize>,
}

/// The rows, as they came.
#[derive(Debug)]
pub(super) enum Content {
    /// Elements of a JSON list, with the commas between them.
    Elements {
        text: Bytes,
        length: Length,
        /// Characters of the body before the text.
        characters_before: usize,
        /// How many there are.
        count: usize,
    },
    /// A part of one base64 string, a multiple of four characters: whole rows, or a run of components where `dim` is not
    /// known.
    Matrix {
        text: Bytes,
        characters_before: usize,
        dim: Option<usize>,
        /// Whether the part before ended in padding, which nothing may follow.
        after_padding: bool,
    },
    /// Components as bytes.
    Binary { bytes: Bytes, dtype: Dtype, dim: usize },
}

/// What became of a block.
#[derive(Debug)]
pub enum Outcome {
    /// Its rows were compared with the sources.
    Scored(Rated),
    /// Its rows, for later.
    Kept(Kept),
}

/// Rows that were compared with the sources, of which only the best are kept.
#[derive(Debug)]
pub struct Rated {
    pub(super) best: Best,
    /// How many rows there were.
    pub(super) rows: usize,
    /// Bytes of memory that `best` may take: much only where the body has not told yet how many are asked for.
    bytes: usize,
}

impl Outcome {
    /// Bytes of memory that are kept, about.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Scored(rated) => rated.bytes,
            Self::Kept(kept) => kept.data.as_bytes().len() + size_of_val(&*kept.norms) + KEPT_OVERHEAD_BYTES,
        }
    }
}

/// Rows that were kept.
#[derive(Debug)]
pub struct Kept {
    /// The components.
    pub data: Data,
    /// Components of a row; `None` where the body has not told yet, and the components are a part of one run.
    pub dim: Option<usize>,
    /// The norm of each row, where rows are for keeping and `dim` is known; else empty.
    pub norms: Vec<f64>,
    /// Position of the first row; 0 where `dim` is not known.
    pub first_row: usize,
}

/// Components in memory.
#[derive(Debug)]
pub enum Data {
    /// As numbers.
    Floats(Vec<f32>),
    /// As little-endian bytes.
    Bytes(Vec<u8>, Dtype),
}

impl Data {
    /// The components' bytes, little-endian.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Floats(floats) => bytemuck::cast_slice(floats),
            Self::Bytes(bytes, _) => bytes,
        }
    }

    /// The components' format.
    pub fn dtype(&self) -> Dtype {
        match self {
            Self::Floats(_) => Dtype::F32,
            Self::Bytes(_, dtype) => *dtype,
        }
    }
}

thread_local! {
    /// The numbers of rows that are scored at once. Kept, since memory for them would be mapped anew for each block.
    static FLOATS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// What rows that are kept take beside themselves.
const KEPT_OVERHEAD_BYTES: usize = size_of::<Kept>() + 64;

/// With more than so many asked for, a body's best rows may be all of them.
const K_SMALL: usize = 1 << 12;

/// More than this is not kept for the next block.
const SCRATCH_FLOATS_MAX: usize = 1 << 20;

impl Block {
    /// A measure of the work: the bytes that are looked at, for each source.
    pub fn work_bytes(&self) -> usize {
        self.bytes().saturating_mul(self.job.sources.as_ref().map_or(1, |sources| sources.len()))
    }

    /// Bytes of the body in it.
    pub fn bytes(&self) -> usize {
        match &self.content {
            Content::Elements { text, .. } | Content::Matrix { text, .. } => text.len(),
            Content::Binary { bytes, .. } => bytes.len(),
        }
    }

    /// Parses the rows, and scores or keeps them.
    ///
    /// # Errors
    ///
    /// The first thing wrong with them.
    pub fn run(self) -> Result<Outcome, BodyError> {
        let Self { content, first_row, job } = self;
        match content {
            Content::Elements { text, length, characters_before, count } => {
                let place = |error| in_characters(error, &text, characters_before);
                let mut elements = Elements { cursor: Cursor::new(&text), length, row: first_row };
                let dim = length.exact();
                if let Some((sources, dim)) = job.at_once(dim) {
                    return FLOATS.with_borrow_mut(|floats| {
                        floats.clear();
                        elements.parse_all(floats).map_err(place)?;
                        let outcome = job.score(sources, bytemuck::cast_slice(floats), Dtype::F32, dim, first_row);
                        if floats.capacity() > SCRATCH_FLOATS_MAX {
                            *floats = Vec::new();
                        }
                        outcome
                    });
                }
                // All rows have the first one's length, or it is an error.
                let mut floats = Vec::with_capacity(dim.unwrap_or(0).saturating_mul(count).min(text.len()));
                elements.parse_all(&mut floats).map_err(place)?;
                floats.shrink_to_fit();
                job.keep(Data::Floats(floats), dim, first_row)
            }
            Content::Matrix { text, characters_before, dim, after_padding } => {
                if after_padding {
                    return Err(not_base64(&[Loc::Key(TARGETS)], &base64::DecodeError::InvalidPadding));
                }
                let bytes = decode_matrix(&text, characters_before)?;
                match job.at_once(dim) {
                    Some((sources, dim)) => job.score(sources, &bytes, Dtype::F32, dim, first_row),
                    None => job.keep(Data::Bytes(bytes, Dtype::F32), dim, first_row),
                }
            }
            Content::Binary { bytes, dtype, dim } => match job.at_once(Some(dim)) {
                Some((sources, dim)) => job.score(sources, &bytes, dtype, dim, first_row),
                None => job.keep(Data::Bytes(bytes.to_vec(), dtype), Some(dim), first_row),
            },
        }
    }
}

impl Job {
    /// The sources that rows of `dim` components are compared with at once, and `dim`. Rows are kept instead where their
    /// similarities might take more memory: it is not known yet how many are asked for, or they are many.
    fn at_once(&self, dim: Option<usize>) -> Option<(&Sources, usize)> {
        let (Purpose::Retrieve, Some(sources), Some(dim)) = (self.purpose, &self.sources, dim) else { return None };
        let small =
            self.k.is_some_and(|k| k <= K_SMALL) || sources.len() * size_of::<Scored>() <= dim * size_of::<f32>();
        small.then_some((&**sources, dim))
    }

    fn score(
        &self,
        sources: &Sources,
        bytes: &[u8],
        dtype: Dtype,
        dim: usize,
        first_row: usize,
    ) -> Result<Outcome, BodyError> {
        let rows = rows(bytes, dtype, dim, first_row)?;
        let mut best = Best::new(sources.len(), self.k.unwrap_or(usize::MAX));
        score(sources, rows, None, first_row, &mut best).map_err(refusal)?;
        let bytes = sources.len() * rows.len().min(self.k.unwrap_or(usize::MAX)) * size_of::<Scored>();
        Ok(Outcome::Scored(Rated { best, rows: rows.len(), bytes }))
    }

    fn keep(&self, data: Data, dim: Option<usize>, first_row: usize) -> Result<Outcome, BodyError> {
        let mut row_norms = Vec::new();
        if let (Purpose::Keep, Some(dim)) = (self.purpose, dim) {
            norms(rows(data.as_bytes(), data.dtype(), dim, first_row)?, first_row, &mut row_norms).map_err(refusal)?;
        }
        Ok(Outcome::Kept(Kept { data, dim, norms: row_norms, first_row }))
    }
}

/// `bytes` as rows, the first of which is row `first_row` of the body.
pub(super) fn rows(bytes: &[u8], dtype: Dtype, dim: usize, first_row: usize) -> Result<Rows<'_>, BodyError> {
    Rows::from_bytes(bytes, dtype, dim).map_err(|_| {
        let row_bytes = dim * dtype.bytes();
        let row = first_row + bytes.len().checked_div(row_bytes).unwrap_or(0);
        not_whole(row, bytes.len().checked_rem(row_bytes).unwrap_or(0), dim, row_bytes)
    })
}

/// Row `row`, the last one, has too few bytes.
pub(super) fn not_whole(row: usize, bytes: usize, dim: usize, row_bytes: usize) -> BodyError {
    let problem = format_args!("the last row has {bytes} bytes, {dim} components are {row_bytes}");
    BodyError::value(&[Loc::Key(TARGETS), Loc::Index(row)], problem)
}

/// Elements of a list, each a vector.
struct Elements<'a> {
    cursor: Cursor<'a>,
    length: Length,
    row: usize,
}

impl Elements<'_> {
    fn parse_all(&mut self, out: &mut Vec<f32>) -> Result<(), BodyError> {
        loop {
            self.cursor.skip_whitespace();
            let loc = [Loc::Key(TARGETS), Loc::Index(self.row)];
            parse_vector(&mut self.cursor, &loc, self.length, out).map_err(|error| in_row(error, self.row))?;
            self.row += 1;
            self.cursor.skip_whitespace();
            if self.cursor.at == self.cursor.bytes.len() {
                return Ok(());
            }
            self.cursor.expect(b',', "',' or ']'")?;
        }
    }
}

/// `error` with the row where it says no more than the position of a character.
#[cold]
pub(super) fn in_row(mut error: BodyError, row: usize) -> BodyError {
    if error.kind == ErrorKind::JsonInvalid {
        error.msg.push_str(&format!(", in {TARGETS}[{row}]"));
    }
    error
}

/// Appends the vector at the cursor, a list of numbers or a base64 string, to `out`.
pub(super) fn parse_vector(
    cursor: &mut Cursor<'_>,
    loc: &[Loc],
    length: Length,
    out: &mut Vec<f32>,
) -> Result<(), BodyError> {
    if cursor.peek() == Some(b'"') {
        let first = out.len();
        parse_base64(cursor, loc, out)?;
        return length.check(&out[first..], loc);
    }
    open_list(cursor, loc)?;
    VectorParser { cursor, loc, length }.parse(out)
}

/// Appends the components of the base64 string at the cursor.
pub(super) fn parse_base64(cursor: &mut Cursor<'_>, loc: &[Loc], out: &mut Vec<f32>) -> Result<(), BodyError> {
    let bytes = match decode_plain(cursor) {
        Some(bytes) => bytes,
        None => {
            let text = parse_string(cursor)?;
            STANDARD.decode(&*text).map_err(|error| not_base64(loc, &error))?
        }
    };
    match floats_of(&bytes) {
        Ok(floats) => {
            out.extend(floats);
            Ok(())
        }
        Err(WireError::NonFinite { component }) => Err(not_finite(loc, component)),
        Err(error) => Err(BodyError::value(loc, error)),
    }
}

/// The bytes of the string at the cursor, if it is base64 with nothing escaped: then it is JSON, too, without another
/// look at its characters.
fn decode_plain(cursor: &mut Cursor<'_>) -> Option<Vec<u8>> {
    let text = &cursor.bytes[cursor.at + 1..];
    let text = &text[..memchr(b'"', text)?];
    let bytes = STANDARD.decode(text).ok()?;
    cursor.at += text.len() + 2;
    Some(bytes)
}

pub(super) fn not_base64(loc: &[Loc], error: &dyn std::fmt::Display) -> BodyError {
    BodyError::value(loc, format_args!("neither a list of numbers nor base64: {error}"))
}

/// The bytes of a part of a string.
fn decode_matrix(text: &[u8], characters_before: usize) -> Result<Vec<u8>, BodyError> {
    STANDARD.decode(text).map_err(|error| {
        use base64::DecodeError::InvalidByte;
        let loc = [Loc::Key(TARGETS)];
        match error {
            InvalidByte(offset, byte) => not_base64(&loc, &InvalidByte(characters_before + offset, byte)),
            error => not_base64(&loc, &error),
        }
    })
}
