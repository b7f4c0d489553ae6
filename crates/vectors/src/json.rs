//! JSON, as far as vectors need it: a parser of tokens and of arrays of numbers, and a writer for one kind of array.
//!
//! Deliberately absent: a document model, and the fields of any body (`body`). Arrays of numbers go straight into `f32`.

#![deny(unsafe_code)]

mod cursor;
mod error;
mod integer;
mod number;
mod text;
mod vector;
mod write;

pub(crate) use cursor::{Cursor, open_list};
pub use error::{BodyError, ErrorKind, Loc, character_position};
pub(crate) use error::{in_characters, invalid, malformed};
pub use integer::parse_integer;
pub(crate) use integer::parse_positive;
pub(crate) use number::skip_number;
pub(crate) use text::{number_error, parse_escape, parse_string, plain_text};
pub(crate) use vector::{Length, VectorParser};
pub use write::write_f32_json;
