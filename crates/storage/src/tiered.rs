//! Memory in front of a slower store.

use crate::{CacheKey, CacheStats, EmbeddingCache, MemoryCache, Vector};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Reads memory, then the store for what memory lacks, and keeps in memory what the store had. Writes go to both.
pub struct TieredCache {
    memory: MemoryCache,
    store: OnceLock<Arc<dyn EmbeddingCache>>,
    /// For a store that comes later.
    revision: Mutex<Option<String>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl TieredCache {
    /// `memory` in front of `store`, or alone.
    pub fn new(memory: MemoryCache, store: Option<Arc<dyn EmbeddingCache>>) -> Self {
        let store = store.map_or_else(OnceLock::new, OnceLock::from);
        Self { memory, store, revision: Mutex::new(None), hits: AtomicU64::new(0), misses: AtomicU64::new(0) }
    }

    /// Puts `store` behind the memory, if there is none yet: opening a large file can take longer than a start should.
    /// What was put before is in memory only. Answers whether it was taken.
    pub fn attach(&self, store: Arc<dyn EmbeddingCache>) -> bool {
        let revision = self.lock_revision();
        if let Some(revision) = &*revision {
            store.set_revision(revision);
        }
        self.store.set(store).is_ok()
    }

    fn lock_revision(&self) -> MutexGuard<'_, Option<String>> {
        // Nothing between lock and unlock panics.
        self.revision.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The memory tier, for answers that need no waiting.
    pub fn memory(&self) -> &MemoryCache {
        &self.memory
    }
}

impl EmbeddingCache for TieredCache {
    fn name(&self) -> String {
        match self.store.get() {
            Some(store) => format!("{}, then {}", self.memory.name(), store.name()),
            None => self.memory.name(),
        }
    }

    fn get<'a>(&'a self, keys: &'a [CacheKey]) -> BoxFuture<'a, Vec<Option<Vector>>> {
        async move {
            let mut found: Vec<_> = keys.iter().map(|key| self.memory.get_one(key)).collect();
            if let Some(store) = self.store.get() {
                let lacking: Vec<usize> = (0..keys.len()).filter(|&i| found[i].is_none()).collect();
                if !lacking.is_empty() {
                    let lacking_keys: Vec<CacheKey> = lacking.iter().map(|&i| keys[i]).collect();
                    for (i, vector) in lacking.into_iter().zip(store.get(&lacking_keys).await) {
                        if let Some(vector) = vector {
                            found[i] = Some(self.memory.put_one(keys[i], vector));
                        }
                    }
                }
            }
            let hits = found.iter().flatten().count() as u64;
            self.hits.fetch_add(hits, Ordering::Relaxed);
            self.misses.fetch_add(found.len() as u64 - hits, Ordering::Relaxed);
            found
        }
        .boxed()
    }

    /// Of the memory. Not counted: it is asked of keys that were counted as misses.
    fn get_now(&self, keys: &[CacheKey]) -> Vec<Option<Vector>> {
        self.memory.get_now(keys)
    }

    fn put(&self, entries: Vec<(CacheKey, Vector)>) {
        for (key, vector) in &entries {
            self.memory.put_one(*key, vector.clone());
        }
        if let Some(store) = self.store.get() {
            store.put(entries);
        }
    }

    fn flush(&self) -> BoxFuture<'_, ()> {
        match self.store.get() {
            Some(store) => store.flush(),
            None => self.memory.flush(),
        }
    }

    /// Hits and misses of the tiers as one; all else of the slowest tier that there is, since that one decides what a later
    /// start finds. [`TieredCache::tiers`] has the rest.
    fn stats(&self) -> CacheStats {
        let lasting = self.store.get().map_or_else(|| self.memory.stats(), |store| store.stats());
        CacheStats { hits: self.hits.load(Ordering::Relaxed), misses: self.misses.load(Ordering::Relaxed), ..lasting }
    }

    fn tiers(&self) -> Vec<(&'static str, CacheStats)> {
        let store = self.store.get().into_iter().map(|store| ("store", store.stats()));
        std::iter::once(("memory", self.memory.stats())).chain(store).collect()
    }

    fn set_revision(&self, revision: &str) {
        let mut known = self.lock_revision();
        if let Some(store) = self.store.get() {
            store.set_revision(revision);
        }
        *known = Some(revision.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{key, vector};
    use futures::executor::block_on;

    fn tiers(memory_bytes: usize) -> (TieredCache, Arc<MemoryCache>) {
        let store = Arc::new(MemoryCache::new(1 << 20));
        (TieredCache::new(MemoryCache::new(memory_bytes), Some(store.clone())), store)
    }

    #[test]
    fn memory_first_then_the_store() {
        let (cache, store) = tiers(1 << 20);
        store.put_one(key(1), vector(&[1.0]));
        cache.put(vec![(key(2), vector(&[2.0]))]);
        assert_eq!(store.get_one(&key(2)).as_deref(), Some(&[2.0f32][..]), "a put goes to both");
        let before = store.stats();
        let found = block_on(cache.get(&[key(1), key(2), key(3)]));
        assert_eq!(found, [Some(vector(&[1.0])), Some(vector(&[2.0])), None]);
        let after = store.stats();
        assert_eq!((after.hits - before.hits, after.misses - before.misses), (1, 1), "memory answers for the second");
        // What the store had is in memory now, with what the first to read it made of it.
        let bytes = found[0].as_ref().unwrap().rendered(0, |_| "one".into());
        assert_eq!(cache.memory().get_one(&key(1)).unwrap().rendered(0, |_| "other".into()), bytes);
        assert_eq!((cache.stats().hits, cache.stats().misses), (2, 1));
    }

    #[test]
    fn without_a_store() {
        let cache = TieredCache::new(MemoryCache::new(1 << 20), None);
        cache.put(vec![(key(1), vector(&[1.0]))]);
        block_on(cache.flush());
        assert_eq!(block_on(cache.get(&[key(1), key(2)])), [Some(vector(&[1.0])), None]);
        assert_eq!(cache.name(), "memory 1 MiB");
        assert_eq!(cache.tiers().len(), 1);
    }

    #[test]
    fn a_store_that_comes_later() {
        let cache = TieredCache::new(MemoryCache::new(1 << 20), None);
        let store = Arc::new(MemoryCache::new(1 << 20));
        store.put_one(key(1), vector(&[1.0]));
        assert_eq!(block_on(cache.get(&[key(1)])), [None]);
        assert!(cache.attach(store.clone()));
        assert_eq!(block_on(cache.get(&[key(1)])), [Some(vector(&[1.0]))]);
        assert!(!cache.attach(store), "there is one");
    }

    #[test]
    fn the_revision_reaches_a_store_that_is_there_and_one_that_comes_later() {
        /// Remembers what it is told.
        #[derive(Default)]
        struct Told(Mutex<Vec<String>>);

        impl EmbeddingCache for Told {
            fn name(&self) -> String {
                String::new()
            }

            fn get<'a>(&'a self, keys: &'a [CacheKey]) -> BoxFuture<'a, Vec<Option<Vector>>> {
                std::future::ready(vec![None; keys.len()]).boxed()
            }

            fn put(&self, _entries: Vec<(CacheKey, Vector)>) {}

            fn flush(&self) -> BoxFuture<'_, ()> {
                std::future::ready(()).boxed()
            }

            fn stats(&self) -> CacheStats {
                CacheStats::default()
            }

            fn set_revision(&self, revision: &str) {
                self.0.lock().unwrap().push(revision.to_owned());
            }
        }

        let store = Arc::new(Told::default());
        let cache = TieredCache::new(MemoryCache::new(0), None);
        cache.set_revision("a");
        cache.set_revision("b");
        assert!(cache.attach(store.clone()));
        cache.set_revision("c");
        assert_eq!(*store.0.lock().unwrap(), ["b", "c"]);
    }

    #[test]
    fn the_store_answers_for_what_memory_has_no_room_for() {
        let (cache, _) = tiers(0);
        cache.put(vec![(key(1), vector(&[1.0]))]);
        assert_eq!(block_on(cache.get(&[key(1)])), [Some(vector(&[1.0]))]);
        assert_eq!(cache.name(), "memory 0 MiB, then memory 1 MiB");
        assert_eq!(cache.stats().entries, Some(1));
    }
}
