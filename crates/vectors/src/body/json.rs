//! A body in JSON:
//!
//! ```json
//! {"source_embedding": [0.1, 0.2], "target_embeddings": [[0.1, 0.2], [0.3, 0.4]], "top_k": 50, "target_ids": ["a", "b"]}
//! ```
//!
//! Any vector may be a base64 string of little-endian `f32` instead, and so may a whole matrix, whose rows then have the
//! length of the source, or of `dimensions`. `source_embeddings` (several) can stand in place of `source_embedding`, and
//! `targets` (the name of a resident set) in place of `target_embeddings`.
//!
//! Fields come in any order; unknown ones are validated as JSON and skipped; a field of those above that comes twice is
//! an error, and so is one beside the one that it stands for. Components may be written as integers; booleans are not
//! taken for numbers. Where there is more than one thing wrong, the first in the order of bytes is reported, and then
//! what only shows at the end.
//!
//! All state is in [`State`] and in the bytes that are held back. Everything but a vector is read as tokens; a token
//! counts when enough bytes behind it are there to know that it is whole, and is read again when they have come.

mod input;
mod sources;
mod targets;

use super::block::Block;
use super::elements::ElementEnd;
use super::fields::{DIMENSIONS, Field, NAME, SOURCE, SOURCES, TARGET_IDS, TARGETS, TOP_K, missing, too_long};
use super::ids::Ids;
use super::matrix::Matrix;
use super::skip::Skipper;
use super::{Head, Limits, Purpose};
use crate::json::{BodyError, Cursor, ErrorKind, Loc, parse_positive, parse_string};
use bytes::Bytes;
use std::collections::HashSet;

/// A token is whole when so many bytes behind it are there: more than any look ahead.
const LOOK_AHEAD: usize = 16;

/// The longest number, key, id or name.
const TOKEN_BYTES_MAX: usize = 1 << 20;

/// Text of a block, about: some dozen microseconds of work.
const BLOCK_BYTES: usize = 128 << 10;

/// Where in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// After `[`.
    First,
    /// After a comma.
    Next,
    /// After an element.
    After,
}

#[derive(Debug)]
enum State {
    Start,
    /// A value that is no object, and whether it is `null`.
    Other(Skipper, bool),
    FirstKey,
    Key,
    Colon(Option<Field>),
    Value(Option<Field>),
    AfterValue,
    Skip(Skipper),
    /// The one source.
    Source,
    Sources(Place),
    /// All sources in one string.
    SourceMatrix,
    Targets(Place),
    /// In the string of all targets.
    Matrix(Box<Matrix>),
    Ids(Place),
    End,
}

#[derive(Debug)]
pub(super) struct JsonBody {
    purpose: Purpose,
    limits: Limits,
    state: State,
    /// What came and was not taken yet, from `at` on.
    rest: Bytes,
    at: usize,
    /// Characters before `rest`.
    characters: usize,
    /// Whether nothing will come after `rest`.
    last: bool,
    /// Whether there has been anything at all.
    any: bool,
    /// Before so many bytes are there, another try makes no sense: tries then take time in proportion to the bytes.
    wanted_bytes: usize,
    element: ElementEnd,
    seen: HashSet<Field>,
    sources: Vec<f32>,
    source_dim: usize,
    source_count: usize,
    rows: usize,
    dimensions: Option<usize>,
    head: Head,
}

/// Whether a step was made; if not, more bytes are needed.
type Stepped = Result<bool, BodyError>;

impl JsonBody {
    pub(super) fn new(purpose: Purpose, limits: Limits) -> Self {
        Self {
            purpose,
            limits,
            state: State::Start,
            rest: Bytes::new(),
            at: 0,
            characters: 0,
            last: false,
            any: false,
            wanted_bytes: 0,
            element: ElementEnd::default(),
            seen: HashSet::new(),
            sources: Vec::new(),
            source_dim: 0,
            source_count: 0,
            rows: 0,
            dimensions: None,
            head: Head::default(),
        }
    }

    pub(super) fn held_bytes(&self) -> usize {
        let matrix = if let State::Matrix(matrix) = &self.state { matrix.held_bytes() } else { 0 };
        let ids = self.head.ids.as_ref().map_or(0, Ids::bytes);
        let sources = self.head.sources.as_ref().map_or(0, |sources| sources.bytes());
        self.rest.len() - self.at + matrix + ids + sources + size_of_val(&*self.sources)
    }

    pub(super) fn feed(&mut self, mut chunk: Bytes, blocks: &mut Vec<Block>) -> Result<(), BodyError> {
        self.any |= !chunk.is_empty();
        if self.at == self.rest.len() {
            self.drop_taken();
            self.rest = chunk;
        } else if matches!(self.state, State::Targets(Place::First | Place::Next)) && !self.element.is_fresh() {
            // The row that the last chunk cut is put together, and the rest of this one is not copied.
            let is_string = self.rest[self.at] == b'"';
            let Some(end) = self.element.find_more(&chunk, is_string) else {
                self.hold(&chunk);
                return self.check_element();
            };
            self.hold(&chunk.split_to(end));
            self.element_done(blocks)?;
            self.drop_taken();
            self.rest = chunk;
        } else {
            self.hold(&chunk);
        }
        if self.rest.len() - self.at < self.wanted_bytes {
            return Ok(());
        }
        self.run(blocks)
    }

    pub(super) fn finish(mut self, blocks: &mut Vec<Block>) -> Result<Head, BodyError> {
        if !self.any {
            return Err(BodyError::new(&[], ErrorKind::Missing, "Field required"));
        }
        self.last = true;
        self.run(blocks)?;
        let Self { purpose, seen, dimensions, mut head, .. } = self;
        let given = |field| seen.contains(&field);
        if purpose == Purpose::Retrieve && !given(Field::Source) && !given(Field::Sources) {
            return Err(missing(SOURCE));
        }
        if !given(Field::Targets) && !given(Field::Name) {
            return Err(missing(TARGETS));
        }
        if head.many && head.sources.is_none() || head.flat && head.sources.is_none() && dimensions.is_none() {
            // A matrix in one string.
            return Err(missing(DIMENSIONS));
        }
        if head.targets.is_some() && head.ids.is_some() {
            let problem = "the targets of a resident set have names of their own";
            return Err(BodyError::value(&[Loc::Key(TARGET_IDS)], problem));
        }
        let of_sources = head.sources.as_ref().map(|sources| sources.dim());
        if let (Some(told), Some(is)) = (dimensions, head.dim.or(of_sources))
            && told != is
        {
            let problem = format_args!("the vectors have {is} components");
            return Err(BodyError::value(&[Loc::Key(DIMENSIONS)], problem));
        }
        head.dim = head.dim.or(dimensions).or(of_sources);
        Ok(head)
    }

    fn run(&mut self, blocks: &mut Vec<Block>) -> Result<(), BodyError> {
        loop {
            let stepped = self.step(blocks)?;
            if matches!(self.state, State::End) && self.at == self.rest.len() {
                return Ok(());
            }
            if !stepped {
                break;
            }
        }
        if self.last {
            // Each step fails at the end itself; this is for a state that has forgotten to.
            return Err(self.malformed_here("more"));
        }
        let incremental = matches!(
            self.state,
            State::Source | State::Sources(_) | State::SourceMatrix | State::Targets(_) | State::Matrix(_)
        );
        self.wanted_bytes = if incremental { 0 } else { 2 * (self.rest.len() - self.at) };
        self.check_element()
    }

    fn step(&mut self, blocks: &mut Vec<Block>) -> Stepped {
        let in_string = matches!(self.state, State::Matrix(_));
        let in_skipped_string =
            matches!(&self.state, State::Skip(skipper) | State::Other(skipper, _) if !skipper.is_between_tokens());
        if !in_string && !in_skipped_string {
            self.skip_whitespace();
            if self.at == self.rest.len() && !self.last {
                return Ok(false);
            }
        }
        match self.state {
            State::Start => self.start(),
            State::Other(skipper, is_null) => self.other(skipper, is_null),
            State::FirstKey if self.peek() == Some(b'}') => {
                self.at += 1;
                self.go(State::End)
            }
            State::FirstKey | State::Key => self.key(),
            State::Colon(field) => match self.peek() {
                Some(b':') => {
                    self.at += 1;
                    self.go(State::Value(field))
                }
                _ => Err(self.malformed_here("':'")),
            },
            State::Value(field) => self.value(field),
            State::AfterValue => match self.peek() {
                Some(b',') => {
                    self.at += 1;
                    self.go(State::Key)
                }
                Some(b'}') => {
                    self.at += 1;
                    self.go(State::End)
                }
                _ => Err(self.malformed_here("',' or '}'")),
            },
            State::Skip(skipper) => {
                let Some(skipper) = self.token(|cursor| skipper.step(cursor))? else { return Ok(false) };
                self.go(if skipper.is_done() { State::AfterValue } else { State::Skip(skipper) })
            }
            State::Source => self.source(),
            State::Sources(place) => self.sources(place),
            State::SourceMatrix => self.source_matrix(),
            State::Targets(place) => self.targets(place, blocks),
            State::Matrix(_) => self.matrix(blocks),
            State::Ids(place) => self.ids(place),
            State::End => match self.peek() {
                Some(_) => Err(self.malformed_here("nothing after the object")),
                None => Ok(false),
            },
        }
    }

    fn go(&mut self, state: State) -> Stepped {
        self.state = state;
        Ok(true)
    }

    fn start(&mut self) -> Stepped {
        if self.peek() != Some(b'{') {
            return self.go(State::Other(Skipper::new(), self.peek() == Some(b'n')));
        }
        self.at += 1;
        self.go(State::FirstKey)
    }

    /// JSON of another type and no JSON at all are different errors.
    fn other(&mut self, skipper: Skipper, is_null: bool) -> Stepped {
        if !skipper.is_done() {
            let Some(skipper) = self.token(|cursor| skipper.step(cursor))? else { return Ok(false) };
            return self.go(State::Other(skipper, is_null));
        }
        if self.at < self.rest.len() {
            return Err(self.malformed_here("nothing after the value"));
        }
        if !self.last {
            return Ok(false);
        }
        if is_null {
            return Err(BodyError::new(&[], ErrorKind::Missing, "Field required"));
        }
        let msg = "Input should be a valid dictionary or object to extract fields from";
        Err(BodyError::new(&[], ErrorKind::ModelAttributesType, msg))
    }

    fn key(&mut self) -> Stepped {
        let purpose = self.purpose;
        let Some(field) = self.token(|cursor| Ok(Field::of(&parse_string(cursor)?, purpose)))? else {
            return Ok(false);
        };
        if let Some(field) = field {
            let loc = [Loc::Key(field.key())];
            if !self.seen.insert(field) {
                return Err(BodyError::value(&loc, "the key is given twice"));
            }
            if let Some(rival) = field.rival().filter(|rival| self.seen.contains(rival)) {
                let problem = format_args!("{} is given, too: only one of the two can be", rival.key());
                return Err(BodyError::value(&loc, problem));
            }
        }
        self.go(State::Colon(field))
    }

    fn value(&mut self, field: Option<Field>) -> Stepped {
        self.element = ElementEnd::default();
        let first = self.peek();
        match field {
            None => self.go(State::Skip(Skipper::new())),
            Some(Field::Source) => self.go(State::Source),
            Some(Field::Sources) if first == Some(b'"') => self.go(State::SourceMatrix),
            Some(Field::Sources) => self.open_list(SOURCES, State::Sources(Place::First)),
            Some(Field::Targets) if first == Some(b'"') => {
                let dim = self.known_dim();
                self.head.flat = dim.is_none();
                self.head.dim = dim;
                self.at += 1;
                self.drop_taken();
                self.go(State::Matrix(Box::new(Matrix::new(dim))))
            }
            Some(Field::Targets) => self.open_list(TARGETS, State::Targets(Place::First)),
            Some(Field::Ids) => {
                if first == Some(b'n') {
                    let Some(()) = self.token(|cursor| cursor.expect_word("null"))? else { return Ok(false) };
                    return self.go(State::AfterValue);
                }
                self.head.ids = Some(Ids::default());
                self.open_list(TARGET_IDS, State::Ids(Place::First))
            }
            Some(Field::Name) => {
                let name = self.token(parse_name)?;
                let Some(name) = name else { return Ok(false) };
                self.head.targets = Some(name);
                self.go(State::AfterValue)
            }
            Some(Field::TopK) => {
                let Some(top_k) = self.token(|cursor| parse_positive(cursor, &[Loc::Key(TOP_K)]))? else {
                    return Ok(false);
                };
                self.head.top_k = Some(top_k);
                self.go(State::AfterValue)
            }
            Some(Field::Dimensions) => {
                let loc = [Loc::Key(DIMENSIONS)];
                let Some(dimensions) = self.token(|cursor| parse_positive(cursor, &loc))? else { return Ok(false) };
                if dimensions > self.limits.dim_max {
                    let msg = format!("Input should be less than or equal to {}", self.limits.dim_max);
                    return Err(BodyError::new(&loc, ErrorKind::LessThanEqual, msg));
                }
                self.dimensions = Some(dimensions);
                self.divide_sources()
            }
        }
    }

    /// What the length of the rows is known to be.
    fn known_dim(&self) -> Option<usize> {
        self.head.sources.as_ref().map(|sources| sources.dim()).or(self.dimensions)
    }

    fn ids(&mut self, place: Place) -> Stepped {
        match (place, self.peek()) {
            (Place::After, Some(b',')) => {
                self.at += 1;
                return self.go(State::Ids(Place::Next));
            }
            (Place::After | Place::First, Some(b']')) => {
                self.at += 1;
                return self.go(State::AfterValue);
            }
            (Place::After, _) => return Err(self.malformed_here("',' or ']'")),
            (Place::First | Place::Next, Some(b'"')) => {}
            (Place::First | Place::Next, Some(b'[' | b'{' | b't' | b'f' | b'n' | b'-' | b'0'..=b'9')) => {
                let loc = [Loc::Key(TARGET_IDS), Loc::Index(self.head.ids.as_ref().map_or(0, Ids::len))];
                return Err(BodyError::new(&loc, ErrorKind::StringType, "Input should be a valid string"));
            }
            _ => return Err(self.malformed_here("a value")),
        }
        let mut ids = self.head.ids.take().unwrap_or_default();
        if ids.len() == self.limits.rows_max {
            return Err(too_long(&[Loc::Key(TARGET_IDS)], "ids", self.limits.rows_max));
        }
        let before = ids.len();
        let taken = self.token(|cursor| {
            ids.push(&parse_string(cursor)?);
            Ok(())
        });
        if matches!(taken, Ok(None)) {
            ids.truncate(before);
        }
        self.head.ids = Some(ids);
        match taken? {
            Some(()) => self.go(State::Ids(Place::After)),
            None => Ok(false),
        }
    }
}

/// The name of a set.
fn parse_name(cursor: &mut Cursor<'_>) -> Result<String, BodyError> {
    match cursor.peek() {
        Some(b'[' | b'{' | b't' | b'f' | b'n' | b'-' | b'0'..=b'9') => {
            Err(BodyError::new(&[Loc::Key(NAME)], ErrorKind::StringType, "Input should be a valid string"))
        }
        Some(b'"') => Ok(parse_string(cursor)?.into_owned()),
        _ => Err(cursor.unexpected("a value")),
    }
}
