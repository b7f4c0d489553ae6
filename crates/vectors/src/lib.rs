//! Vectors as numbers and as bytes: exact cosine top-k, and the forms in which vectors travel.
//!
//! - [`top_k`]: the most similar rows of a matrix, exactly, by cosine.
//! - [`parse_retrieve`]: a retrieve request's JSON body, parsed straight into `f32`.
//! - [`parse_integer`] and [`character_position`]: what other bodies have in common with that one.
//! - [`encode_base64`] / [`decode_base64`] and [`write_f32_json`]: vectors on their way out (and in).
//!
//! Everything is `f32` and row-major; everything is a pure function of its arguments.
//!
//! Deliberately absent: HTTP, async, files, approximate indexes, and any general JSON document model.

mod cosine;
mod json;
mod rows;
mod topk;
mod wire;

pub use json::{
    BodyError, ErrorKind, Limits, Loc, RetrieveRequest, character_position, parse_integer, parse_retrieve,
    write_f32_json,
};
pub use rows::{Rows, ShapeError};
pub use topk::{Scored, Threads, TopKError, kernel_name, top_k};
pub use wire::{WireError, decode_base64, encode_base64};
