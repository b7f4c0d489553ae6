//! What is held back of a body: the beginning of something whose end has not come. Tokens and the texts of vectors are
//! taken out of it when they are whole.

use super::{JsonBody, LOOK_AHEAD, State, Stepped, TOKEN_BYTES_MAX};
use crate::body::elements::TEXT_BYTES_MAX;
use crate::body::fields::{SOURCE, SOURCES, TARGETS};
use crate::json::{BodyError, Cursor, ErrorKind, Loc, character_position, in_characters, invalid, malformed};
use bytes::{Buf as _, BytesMut};

impl JsonBody {
    /// Appends to what is held back.
    pub(super) fn hold(&mut self, more: &[u8]) {
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
    pub(super) fn drop_taken(&mut self) {
        // Rows have no bytes but characters; where they do, that is an error before any other that could be told.
        let rows = matches!(self.state, State::Targets(_));
        self.characters += if rows { self.at } else { character_position(&self.rest, self.at) };
        self.rest.advance(self.at);
        self.at = 0;
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.rest.get(self.at).copied()
    }

    pub(super) fn skip_whitespace(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    #[cold]
    pub(super) fn malformed_here(&self, expected: &str) -> BodyError {
        self.placed(malformed(&self.rest, self.at, expected), 0)
    }

    /// `error`, whose place is told in bytes from `from` in `rest`, with a place in characters of the body.
    #[cold]
    pub(super) fn placed(&self, error: BodyError, from: usize) -> BodyError {
        let before = self.characters + character_position(&self.rest, from);
        in_characters(error, &self.rest[from..], before)
    }

    /// Takes what `parse` reads, if it is there as a whole; `None` if more bytes are needed to know.
    pub(super) fn token<T>(
        &mut self,
        parse: impl FnOnce(&mut Cursor<'_>) -> Result<T, BodyError>,
    ) -> Result<Option<T>, BodyError> {
        let bytes = &self.rest[self.at..];
        let mut cursor = Cursor::new(bytes);
        let too_long = |body: &Self| {
            let problem = format_args!("a number or string of more than {TOKEN_BYTES_MAX} bytes");
            Err(body.placed(invalid(0, problem), body.at))
        };
        match parse(&mut cursor) {
            // However long, it is refused whatever the chunks are.
            Ok(_) if cursor.at > TOKEN_BYTES_MAX => too_long(self),
            Ok(value) if self.last || cursor.at + LOOK_AHEAD <= bytes.len() => {
                self.at += cursor.at;
                Ok(Some(value))
            }
            Err(error) if self.last => Err(self.placed(error, self.at)),
            result if bytes.len() > 2 * TOKEN_BYTES_MAX => match result {
                Err(error) if !is_at_end(&error, bytes.len()) => Err(self.placed(error, self.at)),
                _ => too_long(self),
            },
            _ => Ok(None),
        }
    }

    /// Steps into a list.
    pub(super) fn open_list(&mut self, key: &'static str, state: State) -> Stepped {
        let mut cursor = Cursor { bytes: &self.rest, at: self.at };
        crate::json::open_list(&mut cursor, &[Loc::Key(key)]).map_err(|error| self.placed(error, 0))?;
        self.at += 1;
        // Characters are counted up to here.
        self.drop_taken();
        self.go(state)
    }

    /// Takes the whole text of the vector here. Without an end, it is what is there, if nothing more can come.
    pub(super) fn element(&mut self) -> Option<usize> {
        match self.element.find(&self.rest[self.at..]) {
            Some(len) => Some(self.at + len),
            None if self.last => Some(self.rest.len()),
            None => None,
        }
    }

    /// Neither a list nor a string is told at once, as pydantic does, and nothing at all as malformed.
    pub(super) fn check_is_vector(&self, loc: &[Loc]) -> Result<(), BodyError> {
        if self.peek() == Some(b'"') {
            return Ok(());
        }
        let mut cursor = Cursor { bytes: &self.rest, at: self.at };
        crate::json::open_list(&mut cursor, loc).map_err(|error| self.placed(error, 0))
    }

    /// A vector whose end does not come is refused.
    pub(super) fn check_element(&self) -> Result<(), BodyError> {
        if !self.element.is_fresh() && self.rest.len() - self.at > TEXT_BYTES_MAX {
            let msg = format!("The text of a vector should have at most {TEXT_BYTES_MAX} bytes");
            return Err(BodyError::new(&self.vector_loc(), ErrorKind::TooLong, msg));
        }
        Ok(())
    }

    pub(super) fn vector_loc(&self) -> Vec<Loc> {
        match self.state {
            State::Source => vec![Loc::Key(SOURCE)],
            State::SourceMatrix => vec![Loc::Key(SOURCES)],
            State::Sources(_) => vec![Loc::Key(SOURCES), Loc::Index(self.source_count)],
            _ => vec![Loc::Key(TARGETS), Loc::Index(self.rows)],
        }
    }
}

/// Whether an error may come of the bytes ending where they do.
fn is_at_end(error: &BodyError, end: usize) -> bool {
    matches!(error.loc.last(), Some(Loc::Index(at)) if error.kind == ErrorKind::JsonInvalid && at + LOOK_AHEAD > end)
}
