//! The cache that keeps nothing, for those who turned caching off.

use crate::{CacheKey, CacheStats, EmbeddingCache, Vector};
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use std::sync::atomic::{AtomicU64, Ordering};

/// Misses every read and forgets every write.
#[derive(Debug, Default)]
pub struct NoCache {
    misses: AtomicU64,
}

impl NoCache {
    /// A cache that keeps nothing.
    pub fn new() -> Self {
        Self::default()
    }
}

impl EmbeddingCache for NoCache {
    fn name(&self) -> String {
        "off".to_owned()
    }

    fn get<'a>(&'a self, keys: &'a [CacheKey]) -> BoxFuture<'a, Vec<Option<Vector>>> {
        self.misses.fetch_add(keys.len() as u64, Ordering::Relaxed);
        ready(vec![None; keys.len()]).boxed()
    }

    fn put(&self, _entries: Vec<(CacheKey, Vector)>) {}

    fn flush(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }

    fn tiers(&self) -> Vec<(&'static str, CacheStats)> {
        Vec::new()
    }

    fn stats(&self) -> CacheStats {
        CacheStats { entries: Some(0), misses: self.misses.load(Ordering::Relaxed), ..CacheStats::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;

    #[test]
    fn misses_everything() {
        let cache = NoCache::new();
        let key = CacheKey::from_bytes([1; 32]);
        cache.put(vec![(key, Vector::from([1.0]))]);
        block_on(cache.flush());
        assert_eq!(block_on(cache.get(&[key, key])), [None, None]);
        assert_eq!(cache.stats(), CacheStats { entries: Some(0), misses: 2, ..CacheStats::default() });
    }
}
