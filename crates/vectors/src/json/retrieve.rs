//! The body of a retrieve request:
//!
//! ```json
//! {"source_embedding": [0.1, 0.2], "target_embeddings": [[0.1, 0.2], [0.3, 0.4]], "top_k": 50, "target_ids": ["a", "b"]}
//! ```
//!
//! Fields come in any order; unknown ones are validated as JSON and skipped; a field of the four that comes twice is an
//! error. Components may be written as integers; strings and booleans are not taken for numbers. Where there is more
//! than one thing wrong, the first in the order of bytes is reported, and then what only shows at the end.

use super::cursor::Cursor;
use super::error::{BodyError, ErrorKind, Loc, in_characters, malformed};
use super::integer::parse_top_k;
use super::text::{parse_string, skip_value};
use super::vector::{Length, VectorParser};

/// Bounds on what a body may hold. A body beyond them is refused where it exceeds them, not after it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows of `target_embeddings`, and entries of `target_ids`.
    pub rows_max: usize,
    /// Components of one vector.
    pub dim_max: usize,
    /// Components of `target_embeddings` together. Four bytes of memory each.
    pub components_max: usize,
}

impl Default for Limits {
    /// 16 Mi rows, 64 Ki components a vector, 2 GiB of `f32`.
    fn default() -> Self {
        Self { rows_max: 1 << 24, dim_max: 1 << 16, components_max: 1 << 29 }
    }
}

/// A retrieve request. All components are finite, no vector is zero, all are of one length.
#[derive(Clone, Debug, PartialEq)]
pub struct RetrieveRequest {
    /// `[dim]`.
    pub source: Vec<f32>,
    /// `[rows, dim]`, row-major.
    pub targets: Vec<f32>,
    /// Rows of `targets`.
    pub rows: usize,
    /// Components of each vector, those of the source where there are no rows.
    pub dim: usize,
    /// The caller's names of the rows, one each.
    pub target_ids: Option<Vec<String>>,
    /// At least 1 where given; numbers beyond 64 bits become the largest there is.
    pub top_k: Option<usize>,
}

const SOURCE: &str = "source_embedding";
const TARGETS: &str = "target_embeddings";
const TOP_K: &str = "top_k";
const TARGET_IDS: &str = "target_ids";

/// Parses a retrieve request's body.
///
/// # Errors
///
/// The first thing wrong with it, see [`BodyError`]. No body makes it panic, recurse, or take more memory than four
/// bytes for each two of the body (for `target_ids`, what their strings take).
pub fn parse_retrieve(body: &[u8], limits: &Limits) -> Result<RetrieveRequest, BodyError> {
    parse(body, limits).map_err(|error| in_characters(error, body))
}

fn parse(body: &[u8], limits: &Limits) -> Result<RetrieveRequest, BodyError> {
    if body.is_empty() {
        return Err(BodyError::new(&[], ErrorKind::Missing, "Field required"));
    }
    let mut cursor = Cursor::new(body);
    let mut fields = Fields::default();
    cursor.skip_whitespace();
    if cursor.peek() != Some(b'{') {
        return Err(not_an_object(&mut cursor));
    }
    cursor.at += 1;
    let mut more = !cursor.take(b'}');
    while more {
        cursor.skip_whitespace();
        let key = parse_string(&mut cursor)?;
        cursor.expect(b':', "':'")?;
        cursor.skip_whitespace();
        match &*key {
            SOURCE => {
                once(SOURCE, fields.source.is_some())?;
                fields.source = Some(parse_source(&mut cursor, limits, &fields)?);
            }
            TARGETS => {
                once(TARGETS, fields.targets.is_some())?;
                fields.targets = Some(parse_targets(&mut cursor, limits, fields.source.as_deref())?);
            }
            TOP_K => {
                once(TOP_K, fields.top_k.is_some())?;
                fields.top_k = Some(parse_top_k(&mut cursor, &[Loc::Key(TOP_K)])?);
            }
            TARGET_IDS => {
                once(TARGET_IDS, fields.target_ids.is_some())?;
                fields.target_ids = Some(parse_target_ids(&mut cursor, limits)?);
            }
            _ => skip_value(&mut cursor)?,
        }
        more = cursor.another(b'}')?;
    }
    cursor.skip_whitespace();
    if cursor.at < body.len() {
        return Err(malformed(body, cursor.at, "nothing after the object"));
    }
    fields.finish()
}

#[derive(Default)]
struct Fields {
    source: Option<Vec<f32>>,
    targets: Option<Targets>,
    top_k: Option<usize>,
    /// The inner `None` is a `null`, which stands for none given.
    target_ids: Option<Option<Vec<String>>>,
}

struct Targets {
    data: Vec<f32>,
    rows: usize,
}

impl Fields {
    /// What can only be said when all fields are there.
    fn finish(self) -> Result<RetrieveRequest, BodyError> {
        let missing = |key| BodyError::new(&[Loc::Key(key)], ErrorKind::Missing, "Field required");
        let source = self.source.ok_or_else(|| missing(SOURCE))?;
        let Targets { data: targets, rows } = self.targets.ok_or_else(|| missing(TARGETS))?;
        let dim = source.len();
        if let Some(row_dim) = targets.len().checked_div(rows)
            && row_dim != dim
        {
            return Err(Length::OfSource(dim).error(row_dim, &[Loc::Key(TARGETS), Loc::Index(0)]));
        }
        let target_ids = self.target_ids.flatten();
        if let Some(ids) = &target_ids
            && ids.len() != rows
        {
            let problem = format_args!("there are {} target_ids for {rows} target_embeddings", ids.len());
            return Err(BodyError::value(&[Loc::Key(TARGET_IDS)], problem));
        }
        Ok(RetrieveRequest { source, targets, rows, dim, target_ids, top_k: self.top_k })
    }
}

fn once(key: &'static str, seen: bool) -> Result<(), BodyError> {
    if seen { Err(BodyError::value(&[Loc::Key(key)], "the key is given twice")) } else { Ok(()) }
}

/// JSON of another type and no JSON at all are different errors.
#[cold]
fn not_an_object(cursor: &mut Cursor<'_>) -> BodyError {
    let is_null = cursor.peek() == Some(b'n');
    if let Err(error) = skip_value(cursor) {
        return error;
    }
    cursor.skip_whitespace();
    if cursor.at < cursor.bytes.len() {
        return cursor.unexpected("nothing after the value");
    }
    if is_null {
        return BodyError::new(&[], ErrorKind::Missing, "Field required");
    }
    let msg = "Input should be a valid dictionary or object to extract fields from";
    BodyError::new(&[], ErrorKind::ModelAttributesType, msg)
}

/// Steps over the `[` of an array.
fn open_list(cursor: &mut Cursor<'_>, loc: &[Loc]) -> Result<(), BodyError> {
    match cursor.peek() {
        Some(b'[') => {
            cursor.at += 1;
            Ok(())
        }
        Some(b'{' | b'"' | b't' | b'f' | b'n' | b'-' | b'0'..=b'9') => {
            Err(BodyError::new(loc, ErrorKind::ListType, "Input should be a valid list"))
        }
        _ => Err(cursor.unexpected("a value")),
    }
}

fn parse_source(cursor: &mut Cursor<'_>, limits: &Limits, fields: &Fields) -> Result<Vec<f32>, BodyError> {
    let loc = [Loc::Key(SOURCE)];
    open_list(cursor, &loc)?;
    let mut source = Vec::new();
    if let Some(targets) = &fields.targets {
        source.reserve_exact(targets.data.len().checked_div(targets.rows).unwrap_or(0));
    }
    VectorParser { cursor, loc: &loc, length: Length::AtMost(limits.dim_max) }.parse(&mut source)?;
    Ok(source)
}

fn parse_targets(cursor: &mut Cursor<'_>, limits: &Limits, source: Option<&[f32]>) -> Result<Targets, BodyError> {
    let list = [Loc::Key(TARGETS)];
    open_list(cursor, &list)?;
    let mut targets = Targets { data: Vec::new(), rows: 0 };
    let mut more = !cursor.take(b']');
    while more {
        let row = targets.rows;
        let loc = [Loc::Key(TARGETS), Loc::Index(row)];
        if row == limits.rows_max {
            return Err(too_long(&list, "rows", limits.rows_max));
        }
        let length = match (source, row) {
            (Some(source), _) => Length::OfSource(source.len()),
            (None, 0) => Length::AtMost(limits.dim_max),
            (None, _) => Length::OfRowsBefore(targets.data.len() / row),
        };
        cursor.skip_whitespace();
        let start = cursor.at;
        open_list(cursor, &loc)?;
        VectorParser { cursor, loc: &loc, length }.parse(&mut targets.data)?;
        targets.rows += 1;
        if targets.data.len() > limits.components_max {
            return Err(too_long(&list, "components", limits.components_max));
        }
        let rest_bytes = cursor.bytes.len() - cursor.at;
        if row == 0 {
            reserve_rest(&mut targets.data, cursor.at - start, rest_bytes, limits);
        } else if targets.data.capacity() - targets.data.len() < targets.data.len() / targets.rows {
            grow(&mut targets.data, rest_bytes);
        }
        more = cursor.another(b']')?;
    }
    Ok(targets)
}

/// Sets memory aside for as many rows like the first as the rest of the body has room for, so that the rows are not
/// copied as they grow (and twice in memory while they are). Never more bytes than the rest of the body has: a first row
/// that is shorter in text than those after it (one of zeros and ones) is a bad guess.
fn reserve_rest(data: &mut Vec<f32>, row_bytes: usize, rest_bytes: usize, limits: &Limits) {
    // A little more, for the rows that are shorter in text than the first.
    let rows = rest_bytes / row_bytes + rest_bytes / row_bytes / 32 + 1;
    let components = rows.saturating_mul(data.len()).min(limits.components_max.saturating_sub(data.len()));
    // A guess that does not fit in memory is no error; running out of it later would be.
    data.try_reserve_exact(components.min(rest_bytes / size_of::<f32>())).ok();
}

/// Where that was too little: twice as much, or what the rest of the body can need at most, at two bytes of text for a
/// component.
fn grow(data: &mut Vec<f32>, rest_bytes: usize) {
    data.try_reserve_exact(data.len().min(rest_bytes / 2)).ok();
}

fn too_long(loc: &[Loc], what: &str, limit: usize) -> BodyError {
    BodyError::new(loc, ErrorKind::TooLong, format!("List should have at most {limit} {what}"))
}

fn parse_target_ids(cursor: &mut Cursor<'_>, limits: &Limits) -> Result<Option<Vec<String>>, BodyError> {
    let list = [Loc::Key(TARGET_IDS)];
    if cursor.peek() == Some(b'n') {
        cursor.expect_word("null")?;
        return Ok(None);
    }
    open_list(cursor, &list)?;
    let mut ids = Vec::new();
    let mut more = !cursor.take(b']');
    while more {
        if ids.len() == limits.rows_max {
            return Err(too_long(&list, "ids", limits.rows_max));
        }
        cursor.skip_whitespace();
        match cursor.peek() {
            Some(b'"') => ids.push(parse_string(cursor)?.into_owned()),
            Some(b'[' | b'{' | b't' | b'f' | b'n' | b'-' | b'0'..=b'9') => {
                let loc = [Loc::Key(TARGET_IDS), Loc::Index(ids.len())];
                return Err(BodyError::new(&loc, ErrorKind::StringType, "Input should be a valid string"));
            }
            _ => return Err(cursor.unexpected("a value")),
        }
        more = cursor.another(b']')?;
    }
    Ok(Some(ids))
}
