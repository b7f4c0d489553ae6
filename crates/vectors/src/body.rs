//! The bodies that bring vectors along, parsed while they arrive: retrieve requests and target sets.
//!
//! Two steps, so that rows can be worked on by many threads while more of them come. [`BodyParser`] is fed the body's
//! chunks, in order, on one thread: it finds where rows begin and end, and reads everything that is not a row. What it
//! hands out are [`Block`]s, some whole rows each; [`Block::run`] turns the text into numbers and scores them, on any
//! thread. [`Gathered`] takes the outcomes, in order, and ranks.
//!
//! Nothing is kept but a bounded window and the best rows where the sources come before the targets; where they come
//! after, the rows are kept as they will be scored. A body of any size and shape takes no more memory than that, and
//! time proportional to its length.
//!
//! The forms: JSON ([`json`]) with vectors as lists of numbers or as base64, and whole safetensors files ([`tensors`]).
//!
//! Deliberately absent: HTTP, threads, limits on how long a body may be, compression.

mod block;
mod cutter;
mod elements;
mod fields;
mod gathered;
mod ids;
mod json;
mod matrix;
mod skip;
mod tensors;

pub use block::{Block, Data, Kept, Outcome, Rated};
pub use fields::refusal;
pub use gathered::{Gathered, check_candidates, check_ids, check_whole_rows};
pub use ids::Ids;

use crate::Sources;
use crate::json::BodyError;
use bytes::Bytes;
use std::sync::Arc;

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A JSON object.
    Json,
    /// A safetensors file.
    Safetensors,
}

/// What the rows are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be compared with the sources, which are required.
    Retrieve,
    /// To be kept, with their norms. Sources are unknown fields here, and ignored.
    Keep,
}

/// Bounds on what a body may hold. A body beyond them is refused where it exceeds them, not after it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows, and ids.
    pub rows_max: usize,
    /// Components of one vector.
    pub dim_max: usize,
    /// Components of all rows together. Four bytes of memory each where they have to be kept.
    pub components_max: usize,
    /// Sources of one request.
    pub sources_max: usize,
    /// Components of all sources together.
    pub source_components_max: usize,
    /// Candidates of all sources together: sources times `top_k`, or times rows where those are fewer.
    pub candidates_max: usize,
}

impl Limits {
    /// 16 Mi rows, 64 Ki components a vector, 2 GiB of `f32`, 1024 sources of 32 MiB, 4 Mi candidates.
    pub const DEFAULT: Self = Self {
        rows_max: 1 << 24,
        dim_max: 1 << 16,
        components_max: 1 << 29,
        sources_max: 1024,
        source_components_max: 1 << 23,
        candidates_max: 1 << 22,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What a body holds beside its rows.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// The vectors to find neighbours of, all of one length.
    pub sources: Option<Arc<Sources>>,
    /// Whether they came as `source_embeddings`: the answer then has a list of results.
    pub many: bool,
    /// The name of a resident set that stands in place of rows.
    pub targets: Option<String>,
    /// The caller's names of the rows.
    pub ids: Option<Ids>,
    /// At least 1 where given; numbers beyond 64 bits become the largest there is.
    pub top_k: Option<usize>,
    /// Components of each vector, where the body says so or its rows or sources tell.
    pub dim: Option<usize>,
    /// Whether components come as one run whose division into rows is told by `dim`.
    pub(crate) flat: bool,
}

impl Head {
    /// Whether the rows came as one run of components before it was known how many make a row.
    pub fn is_flat(&self) -> bool {
        self.flat
    }
}

/// Takes a body apart. Errors are the first thing wrong with it, in the order of its bytes, provided that those of the
/// blocks handed out before count first.
#[derive(Debug)]
pub struct BodyParser(Inner);

#[derive(Debug)]
enum Inner {
    Json(Box<json::JsonBody>),
    Tensors(Box<tensors::TensorBody>),
}

impl BodyParser {
    /// At the beginning of a body.
    pub fn new(form: Form, purpose: Purpose, limits: Limits) -> Self {
        Self(match form {
            Form::Json => Inner::Json(Box::new(json::JsonBody::new(purpose, limits))),
            Form::Safetensors => Inner::Tensors(Box::new(tensors::TensorBody::new(purpose, limits))),
        })
    }

    /// Takes the next bytes, and appends to `blocks` the rows that can be worked on now. Whole rows in `chunk` are not
    /// copied.
    ///
    /// # Errors
    ///
    /// The parser is of no further use then; the blocks handed out before still are.
    pub fn feed(&mut self, chunk: Bytes, blocks: &mut Vec<Block>) -> Result<(), BodyError> {
        match &mut self.0 {
            Inner::Json(body) => body.feed(chunk, blocks),
            Inner::Tensors(body) => body.feed(chunk, blocks),
        }
    }

    /// The body is over. Its last rows, and all else that is in it.
    ///
    /// # Errors
    ///
    /// As for [`BodyParser::feed`], and what can only be said when everything is there: fields that are missing.
    pub fn finish(self, blocks: &mut Vec<Block>) -> Result<Head, BodyError> {
        match self.0 {
            Inner::Json(body) => body.finish(blocks),
            Inner::Tensors(body) => body.finish(),
        }
    }

    /// Bytes that the parser holds back: the beginning of something whose end has not come.
    pub fn held_bytes(&self) -> usize {
        match &self.0 {
            Inner::Json(body) => body.held_bytes(),
            Inner::Tensors(body) => body.held_bytes(),
        }
    }
}
