//! What the engine tells of its work while it does it, for whoever counts and measures.
//!
//! Deliberately absent: what comes of it. States that can be asked for (what waits, which replicas work) are not told.

use crate::Role;
use std::time::Duration;

/// A part of the way from a text to its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// A request's look into the cache.
    Cache,
    /// The texts of a request, or a piece of them, turned into tokens, the wait for a thread included.
    Tokenize,
    /// The wait of one text for a device.
    Queue,
    /// The pass of one batch through a model.
    Compute,
}

impl Stage {
    /// `cache`, `tokenize`, `queue` or `compute`.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Cache => "cache",
            Stage::Tokenize => "tokenize",
            Stage::Queue => "queue",
            Stage::Compute => "compute",
        }
    }
}

/// A batch that was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RanBatch {
    /// Of which model.
    pub role: Role,
    /// Its texts, or pairs of texts.
    pub sequences: usize,
    /// Tokens of all of them.
    pub tokens: usize,
    /// Tokens that the replica takes at once; a longer text runs alone.
    pub tokens_max: usize,
}

/// Is told. Its methods are called on the engine's own threads, and must be quick.
pub trait Observer: Send + Sync + 'static {
    /// A stage took this long.
    fn stage(&self, role: Role, stage: Stage, took: Duration);

    /// A batch was run.
    fn ran(&self, batch: RanBatch);
}

/// Nobody looks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn stage(&self, _: Role, _: Stage, _: Duration) {}

    fn ran(&self, _: RanBatch) {}
}
