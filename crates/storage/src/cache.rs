//! The contract of an embedding cache.

use crate::{CacheKey, Vector};
use futures::future::BoxFuture;

/// Keeps embeddings by key.
///
/// - A damaged, outdated or unreadable entry is a miss, never an error.
/// - A hit is bit for bit what was put, unless the store was told to round.
/// - Vectors with a non-finite component are refused by [`EmbeddingCache::put`].
pub trait EmbeddingCache: Send + Sync + 'static {
    /// What this cache is, for people: `memory`, `redb /home/me/.cache/nexus/embeddings.redb`.
    fn name(&self) -> String;

    /// The vectors of `keys`, in order; `None` for a miss.
    fn get<'a>(&'a self, keys: &'a [CacheKey]) -> BoxFuture<'a, Vec<Option<Vector>>>;

    /// Those of the vectors of `keys`, in order, that can be had without waiting. `None` says nothing: a slower store may
    /// have it.
    fn get_now(&self, keys: &[CacheKey]) -> Vec<Option<Vector>> {
        vec![None; keys.len()]
    }

    /// Keeps `entries`. Returns at once: slow stores write behind, bounded, and drop (and count) what is beyond the
    /// bound.
    fn put(&self, entries: Vec<(CacheKey, Vector)>);

    /// Waits until everything put so far is as durable as this cache makes it.
    fn flush(&self) -> BoxFuture<'_, ()>;

    /// Counters since the start.
    fn stats(&self) -> CacheStats;

    /// The counters of each tier, the fastest first, by what it is: `memory`, `store`. Empty where nothing is kept.
    fn tiers(&self) -> Vec<(&'static str, CacheStats)> {
        vec![("memory", self.stats())]
    }

    /// Names the model revision that what is put from now on was computed with. The keys cover it already; a store that
    /// people look into writes it beside the vector.
    fn set_revision(&self, revision: &str) {
        let _ = revision;
    }
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
    /// Entries that wait to be written, now.
    pub waiting: u64,
    /// Reads that the store failed to answer, each of one or many keys.
    pub read_failures: u64,
    /// Reads that the store did not answer in time, in part or at all.
    pub read_timeouts: u64,
    /// Reads that the store was not asked, since it had failed before.
    pub read_skips: u64,
    /// Requests to write that the store failed.
    pub write_failures: u64,
    /// Whether the store is asked for reads, now.
    pub reads: Circuit,
    /// Whether the store is asked to write, now.
    pub writes: Circuit,
}

/// Whether a store is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Circuit {
    /// It is.
    #[default]
    Closed,
    /// One request is under way that decides whether it will be.
    HalfOpen,
    /// It is not, since it failed several times in a row; it will be tried again.
    Open,
}
