//! Values that nobody asked for: validated to the last byte, in pieces, and thrown away.
//!
//! Nothing here recurses: nesting is a row of bits, bounded, so a million brackets end at bracket [`NESTING_MAX`] with
//! an error.

use crate::json::{BodyError, Cursor, invalid, number_error, parse_escape, parse_string, plain_text, skip_number};

/// The deepest nesting of a value that is stepped over.
const NESTING_MAX: u32 = u128::BITS;

/// A string's text is stepped over in pieces of at most so many bytes.
const PIECE_BYTES_MAX: usize = 64 << 10;

/// Where in a value the cursor stands. Each [`Skipper::step`] takes one token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Skipper {
    /// One bit for each level, the innermost lowest: 1 for an object.
    objects: u128,
    depth: u32,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Value,
    /// After `[`.
    ValueOrEnd,
    /// After `{`.
    KeyOrEnd,
    Key,
    Colon,
    Text,
    AfterValue,
}

impl Skipper {
    /// Before a value, with no white space in front of it.
    pub(super) fn new() -> Self {
        Self { objects: 0, depth: 0, place: Place::Value }
    }

    /// Whether the value is over.
    pub(super) fn is_done(&self) -> bool {
        self.depth == 0 && self.place == Place::AfterValue
    }

    /// Whether white space may stand here; it is not stepped over by [`Skipper::step`].
    pub(super) fn is_between_tokens(&self) -> bool {
        self.place != Place::Text
    }

    /// Steps over the token at the cursor.
    pub(super) fn step(mut self, cursor: &mut Cursor<'_>) -> Result<Self, BodyError> {
        match self.place {
            Place::Value => self.value(cursor)?,
            Place::ValueOrEnd => match cursor.peek() {
                Some(b']') => self.close(cursor),
                _ => self.value(cursor)?,
            },
            Place::KeyOrEnd => match cursor.peek() {
                Some(b'}') => self.close(cursor),
                _ => self.key(cursor)?,
            },
            Place::Key => self.key(cursor)?,
            Place::Colon => {
                cursor.expect(b':', "':'")?;
                self.place = Place::Value;
            }
            Place::Text => self.text(cursor)?,
            Place::AfterValue => {
                let is_object = self.objects & 1 == 1;
                if cursor.another(if is_object { b'}' } else { b']' })? {
                    self.place = if is_object { Place::Key } else { Place::Value };
                } else {
                    self.leave();
                }
            }
        }
        Ok(self)
    }

    fn value(&mut self, cursor: &mut Cursor<'_>) -> Result<(), BodyError> {
        self.place = Place::AfterValue;
        match cursor.peek() {
            Some(open @ (b'[' | b'{')) => {
                if self.depth == NESTING_MAX {
                    return Err(invalid(cursor.at, format_args!("nested deeper than {NESTING_MAX}")));
                }
                cursor.at += 1;
                self.depth += 1;
                self.objects = self.objects << 1 | u128::from(open == b'{');
                self.place = if open == b'{' { Place::KeyOrEnd } else { Place::ValueOrEnd };
            }
            Some(b'"') => {
                cursor.at += 1;
                self.place = Place::Text;
            }
            Some(b't') => cursor.expect_word("true")?,
            Some(b'f') => cursor.expect_word("false")?,
            Some(b'n') => cursor.expect_word("null")?,
            _ => cursor.at = skip_number(cursor.bytes, cursor.at).map_err(|fault| number_error(cursor, fault))?,
        }
        Ok(())
    }

    fn key(&mut self, cursor: &mut Cursor<'_>) -> Result<(), BodyError> {
        parse_string(cursor)?;
        self.place = Place::Colon;
        Ok(())
    }

    fn close(&mut self, cursor: &mut Cursor<'_>) {
        cursor.at += 1;
        self.leave();
    }

    fn leave(&mut self) {
        self.depth -= 1;
        self.objects >>= 1;
        self.place = Place::AfterValue;
    }

    /// A piece of a string: up to an escape, an escape, or the quote at its end.
    fn text(&mut self, cursor: &mut Cursor<'_>) -> Result<(), BodyError> {
        match cursor.peek() {
            Some(b'"') => {
                cursor.at += 1;
                self.place = Place::AfterValue;
            }
            Some(b'\\') => {
                cursor.at += 1;
                parse_escape(cursor)?;
            }
            Some(byte) if byte < 0x20 => {
                return Err(invalid(cursor.at, format_args!("unescaped control character 0x{byte:02x}")));
            }
            Some(_) => {
                let end = (cursor.at + PIECE_BYTES_MAX).min(cursor.bytes.len());
                let mut piece = Cursor { bytes: &cursor.bytes[..end], at: cursor.at };
                match plain_text(&mut piece) {
                    Ok(_) => cursor.at = piece.at,
                    // A character that the piece's end has cut is the next piece's.
                    Err(error) => match whole_characters(&cursor.bytes[cursor.at..end]) {
                        Some(len) if end < cursor.bytes.len() => cursor.at += len,
                        _ => return Err(error),
                    },
                }
            }
            None => return Err(cursor.unexpected("'\"'")),
        }
        Ok(())
    }
}

/// The length of `bytes` without the character that is cut at their end, where nothing else is wrong with them.
fn whole_characters(bytes: &[u8]) -> Option<usize> {
    let error = str::from_utf8(bytes).err()?;
    (error.error_len().is_none() && error.valid_up_to() > 0).then_some(error.valid_up_to())
}
