//! One array of numbers, straight into `f32`: the loop that nearly all of a body's bytes go through.

use super::cursor::Cursor;
use super::error::{BodyError, ErrorKind, Loc, malformed};
use super::number::{NumberFault, parse_f32, parse_run};

/// Components that are parsed at once, at most. Their places are zeroed before, in the nearest cache.
const RUN_COMPONENTS: usize = 512;

/// Components that are parsed one by one after a run of fewer than [`RUN_COMPONENTS_MIN`]: a body of integers, or one with
/// an integer after each fraction, is not to pay for an attempt with each.
const RUN_PAUSE: usize = 16;
const RUN_COMPONENTS_MIN: usize = 4;

/// How long a vector should be, and who says so.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Length {
    AtMost(usize),
    OfSource(usize),
    OfRowsBefore(usize),
    OfDimensions(usize),
}

impl Length {
    /// The length, where it is a certain one.
    pub(crate) fn exact(self) -> Option<usize> {
        match self {
            Self::AtMost(_) => None,
            Self::OfSource(length) | Self::OfRowsBefore(length) | Self::OfDimensions(length) => Some(length),
        }
    }

    fn max(self) -> usize {
        let (Self::AtMost(length) | Self::OfSource(length) | Self::OfRowsBefore(length) | Self::OfDimensions(length)) =
            self;
        length
    }

    fn allows(self, actual: usize) -> bool {
        self.exact().map_or(actual <= self.max(), |length| actual == length)
    }

    /// Whether `vector`, which is at `loc`, has the right length and a direction.
    pub(crate) fn check(self, vector: &[f32], loc: &[Loc]) -> Result<(), BodyError> {
        if !self.allows(vector.len()) {
            return Err(self.error(vector.len(), loc));
        }
        if vector.iter().all(|&x| x == 0.0) {
            let problem = if vector.is_empty() { "the vector has no components" } else { "the vector is zero" };
            return Err(BodyError::value(loc, problem));
        }
        Ok(())
    }

    /// A vector has `actual` components instead.
    pub(crate) fn error(self, actual: usize, loc: &[Loc]) -> BodyError {
        match self {
            Self::AtMost(max) => {
                let msg = format!("List should have at most {max} items after validation, not {actual}");
                BodyError::new(loc, ErrorKind::TooLong, msg)
            }
            Self::OfSource(length) => {
                BodyError::value(loc, format_args!("the vector has {actual} components, source_embedding has {length}"))
            }
            Self::OfDimensions(length) => {
                BodyError::value(loc, format_args!("the vector has {actual} components, dimensions is {length}"))
            }
            Self::OfRowsBefore(length) => BodyError::value(
                loc,
                format_args!("the vector has {actual} components, the rows before it have {length}"),
            ),
        }
    }
}

/// Parses the vector whose `[` is just behind the cursor.
pub(crate) struct VectorParser<'c, 'a> {
    pub(crate) cursor: &'c mut Cursor<'a>,
    /// The vector's place.
    pub(crate) loc: &'c [Loc],
    pub(crate) length: Length,
}

impl VectorParser<'_, '_> {
    /// Appends the vector to `out`. On an error, `out` holds part of it.
    pub(crate) fn parse(mut self, out: &mut Vec<f32>) -> Result<(), BodyError> {
        let first = out.len();
        let bytes = self.cursor.bytes;
        let mut more = !self.cursor.take(b']');
        let mut run_in = 0;
        while more {
            if run_in == 0 && self.parse_run(out, first) < RUN_COMPONENTS_MIN {
                run_in = RUN_PAUSE;
            }
            run_in = run_in.saturating_sub(1);
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
            more = bytes.get(end) == Some(&b',');
            self.cursor.at = end + 1;
            if !more && bytes.get(end) != Some(&b']') {
                self.cursor.at = end;
                more = self.cursor.another(b']')?;
            }
        }
        self.length.check(&out[first..], self.loc)
    }

    /// Parses what it can at once of the vector that begins at `first` in `out`. How many components that was.
    fn parse_run(&mut self, out: &mut Vec<f32>, first: usize) -> usize {
        let before = out.len();
        let room = (self.length.max() - (before - first)).min(RUN_COMPONENTS);
        out.resize(before + room, 0.0);
        self.cursor.skip_whitespace();
        let (at, count) = parse_run(self.cursor.bytes, self.cursor.at, &mut out[before..]);
        self.cursor.at = at;
        out.truncate(before + count);
        count
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
