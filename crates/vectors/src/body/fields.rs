//! The fields' names, and what is wrong with them in the words of the body.

use super::{Limits, Purpose};
use crate::TopKError;
use crate::json::{BodyError, ErrorKind, Loc};

pub(super) const SOURCE: &str = "source_embedding";
pub(super) const SOURCES: &str = "source_embeddings";
pub(super) const TARGETS: &str = "target_embeddings";
pub(super) const NAME: &str = "targets";
pub(super) const TARGET_IDS: &str = "target_ids";
pub(super) const TOP_K: &str = "top_k";
pub(super) const DIMENSIONS: &str = "dimensions";

/// A field that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Field {
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

    pub(super) fn key(self) -> &'static str {
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
    pub(super) fn rival(self) -> Option<Self> {
        match self {
            Self::Source => Some(Self::Sources),
            Self::Sources => Some(Self::Source),
            Self::Targets => Some(Self::Name),
            Self::Name => Some(Self::Targets),
            Self::TopK | Self::Ids | Self::Dimensions => None,
        }
    }

    pub(super) fn of(key: &str, purpose: Purpose) -> Option<Self> {
        let known = match purpose {
            Purpose::Retrieve => &Self::ALL[..],
            Purpose::Keep => &[Self::Targets, Self::Ids, Self::Dimensions],
        };
        known.iter().copied().find(|field| field.key() == key)
    }
}

pub(super) fn missing(key: &'static str) -> BodyError {
    BodyError::new(&[Loc::Key(key)], ErrorKind::Missing, "Field required")
}

/// What scoring finds wrong with a body's vectors, at the fields' places.
pub fn refusal(error: TopKError) -> BodyError {
    match error {
        TopKError::Dimensions { source_dim, rows_dim } => of_source(rows_dim, source_dim, 0),
        TopKError::Shape(error) => BodyError::value(&[Loc::Key(TARGETS)], error),
        TopKError::ZeroSource { index } => BodyError::value(&source_loc(index), "the vector is zero"),
        TopKError::NonFiniteSource { index, component } => not_finite(&source_loc(index), component),
        TopKError::ZeroRow { row } => BodyError::value(&row_loc(row), "the vector is zero"),
        TopKError::NonFiniteRow { row, component } => not_finite(&row_loc(row), component),
    }
}

/// A row has another length than the source.
pub(super) fn of_source(row_dim: usize, source_dim: usize, row: usize) -> BodyError {
    let problem = format_args!("the vector has {row_dim} components, {SOURCE} has {source_dim}");
    BodyError::value(&row_loc(row), problem)
}

fn row_loc(row: usize) -> [Loc; 2] {
    [Loc::Key(TARGETS), Loc::Index(row)]
}

fn source_loc(source: usize) -> [Loc; 2] {
    [Loc::Key(SOURCES), Loc::Index(source)]
}

pub(super) fn not_finite(loc: &[Loc], component: usize) -> BodyError {
    let loc = [loc, &[Loc::Index(component)]].concat();
    BodyError::new(&loc, ErrorKind::FiniteNumber, "Input should be a finite number")
}

pub(super) fn too_long(loc: &[Loc], what: &str, limit: usize) -> BodyError {
    BodyError::new(loc, ErrorKind::TooLong, format!("List should have at most {limit} {what}"))
}

/// Whether there may be a row number `row` (from 0) of `dim` components.
pub(super) fn check_row(row: usize, dim: usize, limits: &Limits) -> Result<(), BodyError> {
    let list = [Loc::Key(TARGETS)];
    if row >= limits.rows_max {
        return Err(too_long(&list, "rows", limits.rows_max));
    }
    if (row + 1).saturating_mul(dim) > limits.components_max {
        return Err(too_long(&list, "components", limits.components_max));
    }
    Ok(())
}

/// Whether there may be `count` sources of `dim` components.
pub(super) fn check_sources(count: usize, dim: usize, limits: &Limits) -> Result<(), BodyError> {
    let list = [Loc::Key(SOURCES)];
    if count > limits.sources_max {
        return Err(too_long(&list, "vectors", limits.sources_max));
    }
    if count.saturating_mul(dim) > limits.source_components_max {
        return Err(too_long(&list, "components", limits.source_components_max));
    }
    Ok(())
}
