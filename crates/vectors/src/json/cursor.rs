//! A place in the body, and the few steps that everything else is made of.
//!
//! All its state is the position: a parser that is fed chunks can keep the bytes from the last whole token on and go on
//! from there.

use super::error::{BodyError, ErrorKind, Loc, malformed};

pub(crate) struct Cursor<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(crate) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    pub(crate) fn skip_whitespace(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    /// Steps over white space and then `byte`, if it is there.
    pub(crate) fn take(&mut self, byte: u8) -> bool {
        self.skip_whitespace();
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    /// Steps over white space and then `byte`, which must be there.
    pub(crate) fn expect(&mut self, byte: u8, expected: &str) -> Result<(), BodyError> {
        if self.take(byte) { Ok(()) } else { Err(self.unexpected(expected)) }
    }

    /// Steps over `word` (`true`, `null`), which must be there.
    pub(crate) fn expect_word(&mut self, word: &str) -> Result<(), BodyError> {
        for expected in word.bytes() {
            if self.peek() != Some(expected) {
                return Err(self.unexpected(word));
            }
            self.at += 1;
        }
        Ok(())
    }

    /// After an element of an array or an object: whether another one follows (`,`) or it ends (`close`).
    pub(crate) fn another(&mut self, close: u8) -> Result<bool, BodyError> {
        self.skip_whitespace();
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(false)
            }
            _ => Err(self.unexpected(if close == b']' { "',' or ']'" } else { "',' or '}'" })),
        }
    }

    #[cold]
    pub(crate) fn unexpected(&self, expected: &str) -> BodyError {
        malformed(self.bytes, self.at, expected)
    }
}

/// Steps over the `[` of an array.
pub(crate) fn open_list(cursor: &mut Cursor<'_>, loc: &[Loc]) -> Result<(), BodyError> {
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
