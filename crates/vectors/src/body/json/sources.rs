//! The sources: one vector, a list of them, or all in one string.

use super::{JsonBody, Place, State, Stepped};
use crate::Sources;
use crate::body::block::{parse_base64, parse_vector};
use crate::body::elements::ElementEnd;
use crate::body::fields::{SOURCE, SOURCES, check_sources, refusal};
use crate::json::{BodyError, Cursor, Length, Loc};
use std::sync::Arc;

impl JsonBody {
    pub(super) fn source(&mut self) -> Stepped {
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

    pub(super) fn sources(&mut self, place: Place) -> Stepped {
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

    pub(super) fn check_sources(&self) -> Result<(), BodyError> {
        let list = [Loc::Key(SOURCES)];
        if self.source_count == 0 {
            return Err(BodyError::value(&list, "there are no vectors"));
        }
        check_sources(self.source_count, self.source_dim, &self.limits)
    }

    pub(super) fn sources_done(&mut self) -> Stepped {
        self.check_sources()?;
        let sources = std::mem::take(&mut self.sources);
        self.head.sources = Some(Arc::new(Sources::new(&sources, self.source_dim).map_err(refusal)?));
        self.head.many = true;
        self.go(State::AfterValue)
    }

    pub(super) fn source_matrix(&mut self) -> Stepped {
        let Some(end) = self.element() else { return Ok(false) };
        let mut cursor = Cursor { bytes: &self.rest[..end], at: self.at };
        let parsed = parse_base64(&mut cursor, &[Loc::Key(SOURCES)], &mut self.sources);
        parsed.map_err(|error| self.placed(error, 0))?;
        self.at = end;
        self.head.many = true;
        self.divide_sources()
    }

    /// Makes sources of the components of one string, once it is known how long each is.
    pub(super) fn divide_sources(&mut self) -> Stepped {
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
}
