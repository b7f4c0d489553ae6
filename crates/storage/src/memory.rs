//! The memory tier: bounded in bytes, the least recently used entry goes first.
//!
//! One mutex, held for a hash look-up and a few pointer moves: at a few hundred nanoseconds a request against tens of
//! microseconds for the cheapest request that the service answers, shards would buy nothing.
//!
//! What vectors were rendered to (see [`Vector::rendered`]) lies with their entries and counts against the same bound.
//! It is kept from the first hit on: a long list that is embedded once, and never asked for again, would otherwise take
//! four times the room. It has at most half of the memory, and goes first where that is too little: to render again
//! costs far less than to compute again.

use crate::vector::Place;
use crate::{CacheKey, CacheStats, EmbeddingCache, Vector};
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use lru::LruCache;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What an entry costs beside its components: key, links, table slot, the place for its rendered bytes, reference
/// counts, the allocator's rounding.
const ENTRY_OVERHEAD_BYTES: usize = 336;

/// What rendered bytes cost beside themselves: key, links, table slot, reference counts, the allocator's rounding.
const RENDERED_OVERHEAD_BYTES: usize = 160;

/// The part of the memory that rendered bytes may have: one in this many bytes.
const RENDERED_PART: usize = 2;

/// Embeddings in memory, up to a number of bytes.
pub struct MemoryCache {
    shared: Arc<Shared>,
    hits: AtomicU64,
    misses: AtomicU64,
    refused: AtomicU64,
}

/// The entries, which the places of their vectors refer back to.
pub(crate) struct Shared {
    bytes_max: usize,
    held: Mutex<Held>,
}

type Lru<T> = LruCache<CacheKey, T, BuildHasherDefault<KeyHasher>>;

struct Held {
    entries: Lru<Entry>,
    /// The keys of entries whose rendered bytes are counted.
    rendered: Lru<()>,
    /// What both cost.
    bytes: usize,
    rendered_bytes: usize,
}

struct Entry {
    vector: Vector,
    /// What its rendered bytes, in all forms, were counted with: zero until they were.
    rendered_cost: usize,
}

impl MemoryCache {
    /// A cache of at most `bytes_max` bytes, each entry counted with what it takes beside its components.
    ///
    /// An entry larger than that is not kept; zero keeps nothing.
    pub fn new(bytes_max: usize) -> Self {
        let held = Held {
            entries: LruCache::unbounded_with_hasher(BuildHasherDefault::default()),
            rendered: LruCache::unbounded_with_hasher(BuildHasherDefault::default()),
            bytes: 0,
            rendered_bytes: 0,
        };
        Self {
            shared: Arc::new(Shared { bytes_max, held: Mutex::new(held) }),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Bytes held now, rendered ones included.
    pub fn bytes(&self) -> usize {
        self.shared.lock().bytes
    }

    /// Bytes held now for what vectors were rendered to.
    pub fn rendered_bytes(&self) -> usize {
        self.shared.lock().rendered_bytes
    }

    /// The vector of one key, at once; it becomes the most recently used.
    pub fn get_one(&self, key: &CacheKey) -> Option<Vector> {
        let found = self.shared.lock().get(key);
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Keeps one vector, at once; it becomes the most recently used. Answers the vector as it is held, with a place for
    /// its rendered bytes, or as it was given where it may not be kept.
    pub fn put_one(&self, key: CacheKey, vector: Vector) -> Vector {
        let Shared { bytes_max, .. } = *self.shared;
        if cost(&vector) > bytes_max || !vector.iter().all(|x| x.is_finite()) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return vector;
        }
        let placed = vector.placed(key, &self.shared);
        // Freed after the lock is released.
        let mut freed = Vec::new();
        let mut held = self.shared.lock();
        freed.extend(held.remove(&key));
        held.bytes += cost(&placed);
        held.entries.put(key, Entry { vector: placed.clone(), rendered_cost: 0 });
        held.fit(bytes_max, &self.shared, &mut freed);
        placed
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Held> {
        // Nothing between lock and unlock panics; and if it did, a cache may go on.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts `bytes` that `place` was filled with a moment ago; each form once. Where its entry has left or was replaced in the
    /// meantime, they live as long as those who hold the vector, and are not the cache's.
    pub(crate) fn count_rendered(self: &Arc<Self>, place: &Arc<Place>, bytes: usize) {
        let mut freed = Vec::new();
        let mut held = self.lock();
        let cost = bytes + RENDERED_OVERHEAD_BYTES;
        match held.entries.peek_mut(&place.key) {
            Some(entry) if entry.vector.has_place(place) => entry.rendered_cost += cost,
            _ => return,
        }
        held.bytes += cost;
        held.rendered_bytes += cost;
        held.rendered.put(place.key, ());
        held.fit(self.bytes_max, self, &mut freed);
    }
}

impl Held {
    fn get(&mut self, key: &CacheKey) -> Option<Vector> {
        let entry = self.entries.get(key)?;
        if entry.rendered_cost > 0 {
            self.rendered.promote(key);
        }
        Some(entry.vector.clone())
    }

    /// Takes an entry out, with all that it was counted with.
    fn remove(&mut self, key: &CacheKey) -> Option<Vector> {
        let Entry { vector, rendered_cost } = self.entries.pop(key)?;
        self.bytes -= cost(&vector) + rendered_cost;
        if rendered_cost > 0 {
            self.rendered_bytes -= rendered_cost;
            self.rendered.pop(key);
        }
        Some(vector)
    }

    /// Makes everything fit into its bounds.
    fn fit(&mut self, bytes_max: usize, shared: &Arc<Shared>, freed: &mut Vec<Vector>) {
        while self.rendered_bytes > bytes_max / RENDERED_PART
            && let Some((key, ())) = self.rendered.pop_lru()
        {
            if let Some(entry) = self.entries.peek_mut(&key) {
                // Who holds the old place keeps its bytes; the entry starts anew.
                let anew = entry.vector.placed(key, shared);
                freed.push(std::mem::replace(&mut entry.vector, anew));
                let cost = std::mem::take(&mut entry.rendered_cost);
                self.bytes -= cost;
                self.rendered_bytes -= cost;
            }
        }
        while self.bytes > bytes_max
            && let Some((&key, _)) = self.entries.peek_lru()
        {
            freed.extend(self.remove(&key));
        }
    }
}

fn cost(vector: &[f32]) -> usize {
    size_of_val(vector) + ENTRY_OVERHEAD_BYTES
}

impl EmbeddingCache for MemoryCache {
    fn name(&self) -> String {
        format!("memory {} MiB", self.shared.bytes_max >> 20)
    }

    fn get<'a>(&'a self, keys: &'a [CacheKey]) -> BoxFuture<'a, Vec<Option<Vector>>> {
        ready(keys.iter().map(|key| self.get_one(key)).collect()).boxed()
    }

    fn get_now(&self, keys: &[CacheKey]) -> Vec<Option<Vector>> {
        keys.iter().map(|key| self.get_one(key)).collect()
    }

    fn put(&self, entries: Vec<(CacheKey, Vector)>) {
        for (key, vector) in entries {
            self.put_one(key, vector);
        }
    }

    fn flush(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }

    fn stats(&self) -> CacheStats {
        CacheStats {
            entries: Some(self.shared.lock().entries.len() as u64),
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            dropped: self.refused.load(Ordering::Relaxed),
            ..CacheStats::default()
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
mod tests;
