//! The memory tier: bounded in bytes, the least recently used entry goes first.
//!
//! One mutex, held for a hash look-up and a few pointer moves: at a few hundred nanoseconds a request against tens of
//! microseconds for the cheapest request that the service answers, shards would buy nothing.

use crate::{CacheKey, CacheStats, EmbeddingCache};
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use lru::LruCache;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What an entry costs beside its components: key, links, table slot, reference counts, the allocator's rounding.
const ENTRY_OVERHEAD_BYTES: usize = 160;

/// Embeddings in memory, up to a number of bytes.
pub struct MemoryCache {
    bytes_max: usize,
    held: Mutex<Held>,
    hits: AtomicU64,
    misses: AtomicU64,
    refused: AtomicU64,
}

struct Held {
    entries: LruCache<CacheKey, Arc<[f32]>, BuildHasherDefault<KeyHasher>>,
    bytes: usize,
}

impl MemoryCache {
    /// A cache of at most `bytes_max` bytes, each entry counted with what it takes beside its components.
    ///
    /// An entry larger than that is not kept; zero keeps nothing.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            held: Mutex::new(Held {
                entries: LruCache::unbounded_with_hasher(BuildHasherDefault::default()),
                bytes: 0,
            }),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// The vector of one key, at once; it becomes the most recently used.
    pub fn get_one(&self, key: &CacheKey) -> Option<Arc<[f32]>> {
        let found = self.lock().entries.get(key).cloned();
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Keeps one vector, at once; it becomes the most recently used.
    pub fn put_one(&self, key: CacheKey, vector: Arc<[f32]>) {
        let cost = cost(&vector);
        if cost > self.bytes_max || !vector.iter().all(|x| x.is_finite()) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // Freed after the lock is released.
        let mut evicted = Vec::new();
        let mut held = self.lock();
        held.bytes += cost;
        if let Some(replaced) = held.entries.put(key, vector) {
            held.bytes -= self::cost(&replaced);
            evicted.push(replaced);
        }
        while held.bytes > self.bytes_max
            && let Some((_, oldest)) = held.entries.pop_lru()
        {
            held.bytes -= self::cost(&oldest);
            evicted.push(oldest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Nothing between lock and unlock panics; and if it did, a cache may go on.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cost(vector: &[f32]) -> usize {
    size_of_val(vector) + ENTRY_OVERHEAD_BYTES
}

impl EmbeddingCache for MemoryCache {
    fn name(&self) -> String {
        format!("memory {} MiB", self.bytes_max >> 20)
    }

    fn get<'a>(&'a self, keys: &'a [CacheKey]) -> BoxFuture<'a, Vec<Option<Arc<[f32]>>>> {
        ready(keys.iter().map(|key| self.get_one(key)).collect()).boxed()
    }

    fn put(&self, entries: Vec<(CacheKey, Arc<[f32]>)>) {
        for (key, vector) in entries {
            self.put_one(key, vector);
        }
    }

    fn flush(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }

    fn stats(&self) -> CacheStats {
        CacheStats {
            entries: Some(self.lock().entries.len() as u64),
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            damaged: 0,
            dropped: self.refused.load(Ordering::Relaxed),
        }
    }
}

/// Keys are digests: any eight of their bytes are a good hash already.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        // A `[u8; 32]` hashes its length by `write_usize`, then its bytes.
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    fn write_usize(&mut self, _length: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{awkward, bits, key, vector};
    use futures::executor::block_on;

    #[test]
    fn a_hit_is_what_was_put() {
        let cache = MemoryCache::new(1 << 20);
        cache.put(vec![(key(1), awkward())]);
        let found = block_on(cache.get(&[key(2), key(1)]));
        assert_eq!(found[0], None);
        assert_eq!(bits(found[1].as_ref().unwrap()), bits(&awkward()));
        assert_eq!(cache.stats(), CacheStats { entries: Some(1), hits: 1, misses: 1, damaged: 0, dropped: 0 });
    }

    #[test]
    fn the_bound_holds() {
        let one = cost(&[0.0; 100]);
        let cache = MemoryCache::new(10 * one + one / 2);
        for i in 0..1000 {
            cache.put_one(key(i), vector(&[1.0; 100]));
            assert!(cache.bytes() <= 10 * one);
            assert_eq!(cache.bytes(), cache.stats().entries.unwrap() as usize * one);
        }
        assert_eq!(cache.stats().entries, Some(10));
        // Replacing counts the difference.
        cache.put_one(key(999), vector(&[1.0; 50]));
        assert_eq!(cache.bytes(), 10 * one - 200);
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let cache = MemoryCache::new(3 * cost(&[0.0]));
        for i in 0..3 {
            cache.put_one(key(i), vector(&[i as f32]));
        }
        assert!(cache.get_one(&key(0)).is_some());
        cache.put_one(key(3), vector(&[3.0]));
        let held: Vec<bool> = (0..4).map(|i| cache.get_one(&key(i)).is_some()).collect();
        assert_eq!(held, [true, false, true, true]);
    }

    #[test]
    fn what_may_not_be_kept_is_counted() {
        let cache = MemoryCache::new(1000);
        cache.put_one(key(1), vector(&[1.0, f32::NAN]));
        cache.put_one(key(2), vector(&[f32::NEG_INFINITY]));
        cache.put_one(key(3), vector(&[1.0; 1000]));
        assert_eq!((cache.stats().entries, cache.stats().dropped, cache.bytes()), (Some(0), 3, 0));
        let nothing = MemoryCache::new(0);
        nothing.put_one(key(1), vector(&[]));
        assert_eq!(nothing.stats().entries, Some(0));
    }

    #[test]
    fn used_from_many_threads() {
        let cache = MemoryCache::new(50 * cost(&[0.0]));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let cache = &cache;
                scope.spawn(move || {
                    for i in 0..5000 {
                        let i = (i * 7 + thread) % 100;
                        match cache.get_one(&key(i)) {
                            Some(found) => assert_eq!(&*found, [i as f32]),
                            None => cache.put_one(key(i), vector(&[i as f32])),
                        }
                    }
                });
            }
        });
        assert!(cache.bytes() <= 50 * cost(&[0.0]));
        let stats = cache.stats();
        assert_eq!(stats.hits + stats.misses, 20_000);
    }
}
