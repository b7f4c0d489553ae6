//! Vectors as numbers and as bytes: exact cosine top-k, and the forms in which vectors travel.
//!
//! - [`top_k`], [`top_k_many`]: the most similar rows of a matrix, exactly, by cosine; [`score`] and [`Best`], what they
//!   are made of.
//! - [`BodyParser`]: a body that brings vectors along, parsed while it arrives, straight into rows.
//! - [`parse_integer`] and [`character_position`]: what other bodies have in common with that one.
//! - [`encode_base64`] / [`decode_base64`] and [`write_f32_json`]: vectors on their way out (and in).
//!
//! Everything is row-major and little-endian; everything is a pure function of its arguments.
//!
//! Deliberately absent: HTTP, async, files, approximate indexes, and any general JSON document model.

#![deny(unsafe_code)]

mod body;
mod cosine;
mod dtype;
mod json;
mod pool;
mod rows;
mod sources;
mod topk;
mod wire;

pub use body::{
    Block, BodyParser, Data, Form, Gathered, Head, Ids, Kept, Limits, Outcome, Purpose, Rated, check_candidates,
    check_ids, check_whole_rows, refusal,
};
pub use dtype::Dtype;
pub use json::{BodyError, ErrorKind, Loc, character_position, parse_integer, write_f32_json};
pub use pool::{spawn, start_threads};
pub use rows::{Rows, ShapeError};
pub use sources::Sources;
pub use topk::{Best, Scored, Threads, TopKError, kernel_name, norms, score, top_k, top_k_among, top_k_many};
pub use wire::{WireError, decode_base64, encode_base64};
