//! One array of numbers, straight into `f32`: the loop that nearly all of a body's bytes go through.

use super::cursor::Cursor;
use super::error::{BodyError, ErrorKind, Loc, malformed};
use super::number::{NumberFault, parse_f32};

/// How long a vector should be, and who says so.
#[derive(Clone, Copy, Debug)]
pub(super) enum Length {
    AtMost(usize),
    OfSource(usize),
    OfRowsBefore(usize),
}

impl Length {
    fn max(self) -> usize {
        let (Self::AtMost(length) | Self::OfSource(length) | Self::OfRowsBefore(length)) = self;
        length
    }

    fn allows(self, actual: usize) -> bool {
        match self {
            Self::AtMost(max) => actual <= max,
            Self::OfSource(length) | Self::OfRowsBefore(length) => actual == length,
        }
    }

    /// A vector has `actual` components instead.
    pub(super) fn error(self, actual: usize, loc: &[Loc]) -> BodyError {
        match self {
            Self::AtMost(max) => {
                let msg = format!("List should have at most {max} items after validation, not {actual}");
                BodyError::new(loc, ErrorKind::TooLong, msg)
            }
            Self::OfSource(length) => {
                BodyError::value(loc, format_args!("the vector has {actual} components, source_embedding has {length}"))
            }
            Self::OfRowsBefore(length) => BodyError::value(
                loc,
                format_args!("the vector has {actual} components, the rows before it have {length}"),
            ),
        }
    }
}

/// Parses the vector whose `[` is just behind the cursor.
pub(super) struct VectorParser<'c, 'a> {
    pub(super) cursor: &'c mut Cursor<'a>,
    /// The vector's place.
    pub(super) loc: &'c [Loc],
    pub(super) length: Length,
}

impl VectorParser<'_, '_> {
    /// Appends the vector to `out`. On an error, `out` holds part of it.
    pub(super) fn parse(mut self, out: &mut Vec<f32>) -> Result<(), BodyError> {
        let first = out.len();
        let bytes = self.cursor.bytes;
        let mut any_bits = 0;
        let mut more = !self.cursor.take(b']');
        while more {
            if out.len() - first == self.length.max() {
                return Err(self.too_long());
            }
            // White space by the two forms that writers produce (`1,2` and `1, 2`) before the general one.
            let mut at = self.cursor.at;
            if bytes.get(at) == Some(&b' ') {
                at += 1;
            }
            if bytes.get(at).is_some_and(|&b| b <= b' ') {
                self.cursor.at = at;
                self.cursor.skip_whitespace();
                at = self.cursor.at;
            }
            let (value, end) =
                parse_f32(bytes, at).map_err(|fault| self.component_error(at, out.len() - first, fault))?;
            out.push(value);
            any_bits |= value.to_bits() << 1;
            more = bytes.get(end) == Some(&b',');
            self.cursor.at = end + 1;
            if !more && bytes.get(end) != Some(&b']') {
                self.cursor.at = end;
                more = self.cursor.another(b']')?;
            }
        }
        let length = out.len() - first;
        if !self.length.allows(length) {
            return Err(self.length.error(length, self.loc));
        }
        if any_bits == 0 {
            let problem = if length == 0 { "the vector has no components" } else { "the vector is zero" };
            return Err(BodyError::value(self.loc, problem));
        }
        Ok(())
    }

    /// One more component than allowed: counts how many there are, so that the error can say it.
    #[cold]
    fn too_long(&mut self) -> BodyError {
        let mut length = self.length.max();
        loop {
            self.cursor.skip_whitespace();
            let at = self.cursor.at;
            match parse_f32(self.cursor.bytes, at) {
                Ok((_, end)) => self.cursor.at = end,
                Err(fault) => return self.component_error(at, length, fault),
            }
            length += 1;
            match self.cursor.another(b']') {
                Ok(true) => {}
                Ok(false) => return self.length.error(length, self.loc),
                Err(error) => return error,
            }
        }
    }

    #[cold]
    fn component_error(&self, at: usize, component: usize, fault: NumberFault) -> BodyError {
        let loc = || [self.loc, &[Loc::Index(component)]].concat();
        match fault {
            NumberFault::Malformed { at, expected } => malformed(self.cursor.bytes, at, expected),
            NumberFault::NonFiniteLiteral => {
                BodyError::new(&loc(), ErrorKind::FiniteNumber, "Input should be a finite number")
            }
            NumberFault::Overflow => BodyError::new(
                &loc(),
                ErrorKind::FiniteNumber,
                "Input should be a finite number: this one is beyond the range of 32-bit floats",
            ),
            NumberFault::NotANumber => match self.cursor.bytes.get(at) {
                Some(b'[' | b'{' | b'"' | b't' | b'f' | b'n') => {
                    BodyError::new(&loc(), ErrorKind::FloatType, "Input should be a valid number")
                }
                _ => malformed(self.cursor.bytes, at, "a number"),
            },
        }
    }
}
