//! Vectors as numbers and as bytes: exact cosine top-k, and the forms in which vectors travel.
//!
//! - [`top_k`] and [`top_k_many`]: the most similar rows of a matrix, exactly, by cosine; [`score`] and [`Best`] for
//!   rows that come in pieces.
//! - [`parse_retrieve`]: a retrieve request's JSON body, parsed straight into `f32`.
//! - [`parse_integer`] and [`character_position`]: what other bodies have in common with that one.
//! - [`encode_base64`] / [`decode_base64`] and [`write_f32_json`]: vectors on their way out (and in).
//!
//! Everything is row-major, rows in a [`Dtype`] and all else in `f32`; everything is a pure function of its arguments.
//!
//! Deliberately absent: HTTP, async, files, approximate indexes, and any general JSON document model.

mod cosine;
mod dtype;
mod json;
mod rows;
mod sources;
mod topk;
mod wire;

pub use dtype::Dtype;
pub use json::{
    BodyError, ErrorKind, Limits, Loc, RetrieveRequest, character_position, parse_integer, parse_retrieve,
    write_f32_json,
};
pub use rows::{Rows, ShapeError};
pub use sources::Sources;
pub use topk::{Best, Scored, Threads, TopKError, kernel_name, norms, score, top_k, top_k_many};
pub use wire::{WireError, decode_base64, encode_base64};
