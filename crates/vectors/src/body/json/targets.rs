//! The rows: a list of them, or all in one string, handed out as blocks.

use super::{BLOCK_BYTES, JsonBody, Place, State, Stepped};
use crate::body::block::{Block, Content, Job, in_row, parse_vector};
use crate::body::elements::ElementEnd;
use crate::body::fields::{TARGETS, check_row};
use crate::json::{BodyError, Cursor, Length, Loc};
use bytes::Bytes;
use memchr::memchr2;

impl JsonBody {
    pub(super) fn job(&self) -> Job {
        Job { purpose: self.purpose, sources: self.head.sources.clone(), k: self.head.top_k }
    }

    /// Rows up to the last one that is whole, as blocks.
    pub(super) fn targets(&mut self, mut place: Place, blocks: &mut Vec<Block>) -> Stepped {
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
                        return Err(in_row(self.malformed_here("',' or ']'"), self.rows - 1));
                    }
                    let loc = [Loc::Key(TARGETS), Loc::Index(self.rows)];
                    let error = self.check_is_vector(&loc).err();
                    return Err(in_row(error.unwrap_or_else(|| self.malformed_here("a value")), self.rows));
                }
            }
        }
        self.emit(start, end, count, blocks);
        self.state = State::Targets(place);
        Ok(false)
    }

    /// Counts the row that ends at `end`, and learns the length of all rows from the first.
    pub(super) fn take_element(&mut self, end: usize) -> Result<(), BodyError> {
        if self.rows == 0 && self.known_dim().is_none() {
            let mut row = Vec::new();
            let mut cursor = Cursor { bytes: &self.rest[..end], at: self.at };
            let loc = [Loc::Key(TARGETS), Loc::Index(0)];
            let length = Length::AtMost(self.limits.dim_max);
            let parsed = parse_vector(&mut cursor, &loc, length, &mut row);
            parsed.map_err(|error| self.placed(in_row(error, 0), 0))?;
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
    pub(super) fn emit(&self, start: usize, end: usize, count: usize, blocks: &mut Vec<Block>) {
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
    pub(super) fn element_done(&mut self, blocks: &mut Vec<Block>) -> Result<(), BodyError> {
        let (start, end) = (self.at, self.rest.len());
        self.take_element(end)?;
        self.emit(start, end, 1, blocks);
        self.state = State::Targets(Place::After);
        Ok(())
    }

    pub(super) fn matrix(&mut self, blocks: &mut Vec<Block>) -> Stepped {
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
}
