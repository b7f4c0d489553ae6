//! JSON, as far as vectors need it: a parser made for one request body, and a writer for one kind of array.
//!
//! Deliberately absent: a document model. Arrays of numbers go straight into `f32`; what is not needed is validated and
//! skipped.

#![deny(unsafe_code)]

mod cursor;
mod error;
mod integer;
mod number;
mod retrieve;
mod text;
mod vector;
mod write;

pub use error::{BodyError, ErrorKind, Loc, character_position};
pub use integer::parse_integer;
pub use retrieve::{Limits, RetrieveRequest, parse_retrieve};
pub use write::write_f32_json;
