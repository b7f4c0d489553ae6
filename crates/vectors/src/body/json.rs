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

use super::block::{Block, Content, Job, parse_base64, parse_vector};
use super::elements::{ElementEnd, TEXT_BYTES_MAX};
use super::fields::{
    DIMENSIONS, NAME, SOURCE, SOURCES, TARGET_IDS, TARGETS, TOP_K, check_row, missing, refusal, too_long,
};
use super::ids::Ids;
use super::matrix::Matrix;
use super::skip::Skipper;
use super::{Head, Limits, Purpose};
use crate::Sources;
use crate::json::{
    BodyError, Cursor, ErrorKind, Length, Loc, character_position, in_characters, invalid, malformed, parse_positive,
    parse_string,
};
use bytes::{Buf as _, Bytes, BytesMut};
use memchr::memchr2;
use std::collections::HashSet;
use std::sync::Arc;

/// A token is whole when so many bytes behind it are there: more than any look ahead.
const LOOK_AHEAD: usize = 16;

/// The longest number, key, id or name.
const TOKEN_BYTES_MAX: usize = 1 << 20;

/// Text of a block, about: some dozen microseconds of work.
const BLOCK_BYTES: usize = 192 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Field {
    Source,
    Sources,
    Targets,
    Name,
    TopK,
    Ids,
    Dimensions,
}

impl Field {
    const ALL: [Self; 7] =
        [Self::Source, Self::Sources, Self::Targets, Self::Name, Self::TopK, Self::Ids, Self::Dimensions];

    fn key(self) -> &'static str {
        match self {
            Self::Source => SOURCE,
            Self::Sources => SOURCES,
            Self::Targets => TARGETS,
            Self::Name => NAME,
            Self::TopK => TOP_K,
            Self::Ids => TARGET_IDS,
            Self::Dimensions => DIMENSIONS,
        }
    }

    /// The field that can not be given beside this one.
    fn rival(self) -> Option<Self> {
        match self {
            Self::Source => Some(Self::Sources),
            Self::Sources => Some(Self::Source),
            Self::Targets => Some(Self::Name),
            Self::Name => Some(Self::Targets),
            Self::TopK | Self::Ids | Self::Dimensions => None,
        }
    }

    fn of(key: &str, purpose: Purpose) -> Option<Self> {
        let known = match purpose {
            Purpose::Retrieve => &Self::ALL[..],
            Purpose::Keep => &[Self::Targets, Self::Ids, Self::Dimensions],
        };
        known.iter().copied().find(|field| field.key() == key)
    }
}

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
        self.rest.len() - self.at + matrix + ids + size_of_val(&*self.sources)
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

    /// Appends to what is held back.
    fn hold(&mut self, more: &[u8]) {
        self.drop_taken();
        // Without a copy where nobody else holds a part of it, which is so from the second time on.
        let mut held = std::mem::take(&mut self.rest).try_into_mut().unwrap_or_else(|rest| {
            let mut held = BytesMut::with_capacity(2 * (rest.len() + more.len()));
            held.extend_from_slice(&rest);
            held
        });
        held.extend_from_slice(more);
        self.rest = held.freeze();
    }

    /// Forgets what was taken.
    fn drop_taken(&mut self) {
        // Rows have no bytes but characters; where they do, that is an error before any other that could be told.
        let rows = matches!(self.state, State::Targets(_) | State::Matrix(_));
        self.characters += if rows { self.at } else { character_position(&self.rest, self.at) };
        self.rest.advance(self.at);
        self.at = 0;
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

    /// A vector whose end does not come is refused.
    fn check_element(&self) -> Result<(), BodyError> {
        if !self.element.is_fresh() && self.rest.len() - self.at > TEXT_BYTES_MAX {
            let msg = format!("The text of a vector should have at most {TEXT_BYTES_MAX} bytes");
            return Err(BodyError::new(&self.vector_loc(), ErrorKind::TooLong, msg));
        }
        Ok(())
    }

    fn vector_loc(&self) -> Vec<Loc> {
        match self.state {
            State::Source => vec![Loc::Key(SOURCE)],
            State::SourceMatrix => vec![Loc::Key(SOURCES)],
            State::Sources(_) => vec![Loc::Key(SOURCES), Loc::Index(self.source_count)],
            _ => vec![Loc::Key(TARGETS), Loc::Index(self.rows)],
        }
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

    fn peek(&self) -> Option<u8> {
        self.rest.get(self.at).copied()
    }

    fn skip_whitespace(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    #[cold]
    fn malformed_here(&self, expected: &str) -> BodyError {
        self.placed(malformed(&self.rest, self.at, expected), 0)
    }

    /// `error`, whose place is told in bytes from `from` in `rest`, with a place in characters of the body.
    #[cold]
    fn placed(&self, error: BodyError, from: usize) -> BodyError {
        let before = self.characters + character_position(&self.rest, from);
        in_characters(error, &self.rest[from..], before)
    }

    /// Takes what `parse` reads, if it is there as a whole; `None` if more bytes are needed to know.
    fn token<T>(
        &mut self,
        parse: impl FnOnce(&mut Cursor<'_>) -> Result<T, BodyError>,
    ) -> Result<Option<T>, BodyError> {
        let bytes = &self.rest[self.at..];
        let mut cursor = Cursor::new(bytes);
        match parse(&mut cursor) {
            Ok(value) if self.last || cursor.at + LOOK_AHEAD <= bytes.len() => {
                self.at += cursor.at;
                Ok(Some(value))
            }
            Err(error) if self.last => Err(self.placed(error, self.at)),
            result if bytes.len() > 2 * TOKEN_BYTES_MAX => match result {
                Err(error) if error.loc.last() != Some(&Loc::Index(bytes.len())) => Err(self.placed(error, self.at)),
                _ => {
                    let problem = format_args!("a number or string of more than {TOKEN_BYTES_MAX} bytes");
                    Err(self.placed(invalid(0, problem), self.at))
                }
            },
            _ => Ok(None),
        }
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

    /// Steps into a list.
    fn open_list(&mut self, key: &'static str, state: State) -> Stepped {
        let mut cursor = Cursor { bytes: &self.rest, at: self.at };
        crate::json::open_list(&mut cursor, &[Loc::Key(key)]).map_err(|error| self.placed(error, 0))?;
        self.at += 1;
        // Characters are counted up to here.
        self.drop_taken();
        self.go(state)
    }

    /// What the length of the rows is known to be.
    fn known_dim(&self) -> Option<usize> {
        self.head.sources.as_ref().map(|sources| sources.dim()).or(self.dimensions)
    }

    /// Takes the whole text of the vector here. Without an end, it is what is there, if nothing more can come.
    fn element(&mut self) -> Option<usize> {
        match self.element.find(&self.rest[self.at..]) {
            Some(len) => Some(self.at + len),
            None if self.last => Some(self.rest.len()),
            None => None,
        }
    }

    fn source(&mut self) -> Stepped {
        let loc = [Loc::Key(SOURCE)];
        self.check_is_vector(&loc)?;
        let Some(end) = self.element() else { return Ok(false) };
        let length = Length::AtMost(self.limits.dim_max);
        let mut source = Vec::new();
        let mut cursor = Cursor { bytes: &self.rest[..end], at: self.at };
        parse_vector(&mut cursor, &loc, length, &mut source).map_err(|error| self.placed(error, 0))?;
        self.at = end;
        let dim = source.len();
        self.head.sources = Some(Arc::new(Sources::new(&source, dim).map_err(refusal)?));
        self.go(State::AfterValue)
    }

    /// Neither a list nor a string is told at once, as pydantic does, and nothing at all as malformed.
    fn check_is_vector(&self, loc: &[Loc]) -> Result<(), BodyError> {
        if self.peek() == Some(b'"') {
            return Ok(());
        }
        let mut cursor = Cursor { bytes: &self.rest, at: self.at };
        crate::json::open_list(&mut cursor, loc).map_err(|error| self.placed(error, 0))
    }

    fn sources(&mut self, place: Place) -> Stepped {
        match (place, self.peek()) {
            (Place::After, Some(b',')) => {
                self.at += 1;
                return self.go(State::Sources(Place::Next));
            }
            (Place::First | Place::After, Some(b']')) => {
                self.at += 1;
                return self.sources_done();
            }
            (Place::After, _) => return Err(self.malformed_here("',' or ']'")),
            (Place::First | Place::Next, _) => {}
        }
        let loc = [Loc::Key(SOURCES), Loc::Index(self.source_count)];
        self.check_is_vector(&loc)?;
        let Some(end) = self.element() else { return Ok(false) };
        let length = match self.source_count {
            0 => Length::AtMost(self.limits.dim_max),
            _ => Length::OfRowsBefore(self.source_dim),
        };
        let mut cursor = Cursor { bytes: &self.rest[..end], at: self.at };
        let parsed = parse_vector(&mut cursor, &loc, length, &mut self.sources);
        parsed.map_err(|error| self.placed(error, 0))?;
        self.at = end;
        self.element = ElementEnd::default();
        if self.source_count == 0 {
            self.source_dim = self.sources.len();
        }
        self.source_count += 1;
        self.check_sources()?;
        self.go(State::Sources(Place::After))
    }

    fn check_sources(&self) -> Result<(), BodyError> {
        let list = [Loc::Key(SOURCES)];
        if self.source_count == 0 {
            return Err(BodyError::value(&list, "there are no vectors"));
        }
        if self.source_count > self.limits.sources_max {
            return Err(too_long(&list, "vectors", self.limits.sources_max));
        }
        Ok(())
    }

    fn sources_done(&mut self) -> Stepped {
        self.check_sources()?;
        let sources = std::mem::take(&mut self.sources);
        self.head.sources = Some(Arc::new(Sources::new(&sources, self.source_dim).map_err(refusal)?));
        self.head.many = true;
        self.go(State::AfterValue)
    }

    fn source_matrix(&mut self) -> Stepped {
        let Some(end) = self.element() else { return Ok(false) };
        let mut cursor = Cursor { bytes: &self.rest[..end], at: self.at };
        let parsed = parse_base64(&mut cursor, &[Loc::Key(SOURCES)], &mut self.sources);
        parsed.map_err(|error| self.placed(error, 0))?;
        self.at = end;
        self.head.many = true;
        self.divide_sources()
    }

    /// Makes sources of the components of one string, once it is known how long each is.
    fn divide_sources(&mut self) -> Stepped {
        if let Some(dim) = self.dimensions
            && self.head.many
            && self.head.sources.is_none()
        {
            if !self.sources.len().is_multiple_of(dim) {
                let problem =
                    format_args!("{} components are not a whole number of vectors of {dim}", self.sources.len());
                return Err(BodyError::value(&[Loc::Key(SOURCES)], problem));
            }
            (self.source_dim, self.source_count) = (dim, self.sources.len() / dim);
            return self.sources_done();
        }
        self.go(State::AfterValue)
    }

    fn job(&self) -> Job {
        Job { purpose: self.purpose, sources: self.head.sources.clone(), k: self.head.top_k }
    }

    /// Rows up to the last one that is whole, as blocks.
    fn targets(&mut self, mut place: Place, blocks: &mut Vec<Block>) -> Stepped {
        let (mut start, mut end, mut count) = (self.at, self.at, 0);
        loop {
            self.skip_whitespace();
            match (place, self.peek()) {
                (Place::After, Some(b',')) => {
                    self.at += 1;
                    place = Place::Next;
                }
                (Place::After | Place::First, Some(b']')) => {
                    self.emit(start, end, count, blocks);
                    self.at += 1;
                    self.drop_taken();
                    return self.go(State::AfterValue);
                }
                (Place::First | Place::Next, Some(b'[' | b'"')) => {
                    let Some(element_end) = self.element() else { break };
                    if count == 0 {
                        start = self.at;
                    }
                    // Blocks hold the rows before.
                    let checked = self.take_element(element_end);
                    if let Err(error) = checked {
                        self.emit(start, end, count, blocks);
                        return Err(error);
                    }
                    (end, count, place) = (self.at, count + 1, Place::After);
                    if end - start >= BLOCK_BYTES {
                        self.emit(start, end, count, blocks);
                        count = 0;
                    }
                }
                (_, None) if !self.last => break,
                (place, _) => {
                    self.emit(start, end, count, blocks);
                    if place == Place::After {
                        return Err(self.malformed_here("',' or ']'"));
                    }
                    let loc = [Loc::Key(TARGETS), Loc::Index(self.rows)];
                    let error = self.check_is_vector(&loc).err();
                    return Err(error.unwrap_or_else(|| self.malformed_here("a value")));
                }
            }
        }
        self.emit(start, end, count, blocks);
        self.state = State::Targets(place);
        Ok(false)
    }

    /// Counts the row that ends at `end`, and learns the length of all rows from the first.
    fn take_element(&mut self, end: usize) -> Result<(), BodyError> {
        if self.rows == 0 && self.known_dim().is_none() {
            let mut row = Vec::new();
            let mut cursor = Cursor { bytes: &self.rest[..end], at: self.at };
            let loc = [Loc::Key(TARGETS), Loc::Index(0)];
            let length = Length::AtMost(self.limits.dim_max);
            parse_vector(&mut cursor, &loc, length, &mut row).map_err(|error| self.placed(error, 0))?;
            self.head.dim = Some(row.len());
        } else if self.rows == 0 {
            self.head.dim = self.known_dim();
        }
        check_row(self.rows, self.head.dim.unwrap_or(0), &self.limits)?;
        self.at = end;
        self.element = ElementEnd::default();
        self.rows += 1;
        Ok(())
    }

    /// Hands out the `count` rows in `start..end`, the last of all so far.
    fn emit(&self, start: usize, end: usize, count: usize, blocks: &mut Vec<Block>) {
        if count == 0 {
            return;
        }
        let dim = self.head.dim.unwrap_or(0);
        let length = match (&self.head.sources, self.dimensions) {
            (Some(sources), _) => Length::OfSource(sources.dim()),
            (None, Some(dimensions)) => Length::OfDimensions(dimensions),
            (None, None) => Length::OfRowsBefore(dim),
        };
        let content = Content::Elements {
            text: self.rest.slice(start..end),
            length,
            characters_before: self.characters + start,
            count,
        };
        blocks.push(Block { content, first_row: self.rows - count, job: self.job() });
    }

    /// The row that was put together is whole.
    fn element_done(&mut self, blocks: &mut Vec<Block>) -> Result<(), BodyError> {
        let (start, end) = (self.at, self.rest.len());
        self.take_element(end)?;
        self.emit(start, end, 1, blocks);
        self.state = State::Targets(Place::After);
        Ok(())
    }

    fn matrix(&mut self, blocks: &mut Vec<Block>) -> Stepped {
        let job = self.job();
        let found = memchr2(b'"', b'\\', &self.rest[self.at..]);
        let run = self.rest.slice(self.at..found.map_or(self.rest.len(), |len| self.at + len));
        self.at += run.len();
        let State::Matrix(matrix) = &mut self.state else { return Ok(false) };
        matrix.push(run, &job, blocks);
        let components = matrix.components();
        if let Some(last) =
            components.checked_div(self.head.dim.unwrap_or(components.max(1))).and_then(|n| n.checked_sub(1))
        {
            check_row(last, self.head.dim.unwrap_or(components), &self.limits)?;
        }
        match self.peek() {
            None if self.last => Err(self.malformed_here("'\"'")),
            None => Ok(false),
            Some(b'"') => {
                self.at += 1;
                if let State::Matrix(mut matrix) = std::mem::replace(&mut self.state, State::AfterValue) {
                    matrix.finish(&job, blocks);
                }
                Ok(true)
            }
            // Some writers escape the slash, some the plus sign.
            Some(_) => {
                let parsed = self.token(|cursor| {
                    cursor.at += 1;
                    crate::json::parse_escape(cursor)
                })?;
                let Some(character) = parsed else { return Ok(false) };
                if let State::Matrix(matrix) = &mut self.state {
                    matrix.push(Bytes::from(character.to_string()), &job, blocks);
                }
                Ok(true)
            }
        }
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
