//! The contract of an embedding cache.

use crate::{CacheKey, Vector};
use futures::future::BoxFuture;

/// Keeps embeddings by key.
///
/// - A damaged, outdated or unreadable entry is a miss, never an error.
/// - A hit is bit for bit what was put.
/// - Vectors with a non-finite component are refused by [`EmbeddingCache::put`].
pub trait EmbeddingCache: Send + Sync + 'static {
    /// What this cache is, for people: `memory`, `redb /home/me/.cache/nexus/embeddings.redb`.
    fn name(&self) -> String;

    /// The vectors of `keys`, in order; `None` for a miss.
    fn get<'a>(&'a self, keys: &'a [CacheKey]) -> BoxFuture<'a, Vec<Option<Vector>>>;

    /// Keeps `entries`. Returns at once: slow stores write behind, bounded, and drop (and count) what is beyond the
    /// bound.
    fn put(&self, entries: Vec<(CacheKey, Vector)>);

    /// Waits until everything put so far is as durable as this cache makes it.
    fn flush(&self) -> BoxFuture<'_, ()>;

    /// Counters since the start.
    fn stats(&self) -> CacheStats;
}

/// Counters of a cache, all since the start of the process but for `entries`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Entries held now, where that is known.
    pub entries: Option<u64>,
    /// Reads answered.
    pub hits: u64,
    /// Reads not answered.
    pub misses: u64,
    /// Entries found damaged or of an unknown format (each of them a miss, too).
    pub damaged: u64,
    /// Writes dropped: too many were waiting, the store failed, or the vector may not be kept (not finite, too large).
    pub dropped: u64,
}
