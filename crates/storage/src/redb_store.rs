//! The embedded store: one redb file on this machine.
//!
//! - Reads run on the runtime's blocking threads: a page that is not in memory is a disk read, which may take long on a
//!   network volume. The hop costs microseconds, and only after a miss in memory.
//! - Writes go to one thread ([`writer`]) over a bounded queue, in batches, each a durable transaction. What was put in
//!   the last moments before a crash is computed again; the file itself is always whole.
//! - The size is bounded: beyond it, the entries that were put first go first ([`tables`]).
//! - A file that is damaged as a whole is moved aside, when it is opened or when a read stumbles over it ([`open`]).
//!
//! Deliberately absent: sharing the file with another process (the second one is told and goes on without), and use
//! statistics in the file (a read never writes).

pub(crate) mod open;
mod tables;
mod writer;

pub use open::OpenError;

use crate::{CacheKey, CacheStats, EmbeddingCache, Vector, record};
use futures::FutureExt;
use futures::future::BoxFuture;
use redb::Database;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// A full disk fails every write: once in this time is often enough to say so.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// How a [`RedbCache`] bounds itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedbOptions {
    /// Bytes of the file that entries may take, the store's rounding to pages included. The file may be larger for a
    /// while, by what the last transactions wrote.
    pub bytes_max: u64,
    /// The largest file that is checked in full, by reading all of it, each time it is opened.
    pub check_bytes_max: u64,
    /// Bytes of memory for pages of the file.
    pub page_cache_bytes: usize,
    /// Entries that may wait to be written; beyond, they are dropped.
    pub queue_entries_max: usize,
    /// Bytes of the entries that may wait to be written.
    pub queue_bytes_max: usize,
    /// Entries of one transaction.
    pub batch_entries_max: usize,
    /// Bytes of the entries of one transaction. Space that a transaction frees is used again only after the next one, so
    /// large transactions make a large file.
    pub batch_bytes_max: usize,
    /// How long the first entry of a transaction waits for others.
    pub batch_delay: Duration,
}

impl Default for RedbOptions {
    fn default() -> Self {
        Self {
            bytes_max: 4 << 30,
            check_bytes_max: 64 << 20,
            page_cache_bytes: 32 << 20,
            queue_entries_max: 8192,
            queue_bytes_max: 128 << 20,
            batch_entries_max: 1024,
            batch_bytes_max: 8 << 20,
            batch_delay: Duration::from_millis(100),
        }
    }
}

/// An [`EmbeddingCache`] in a file. Dropping it writes what waits.
pub struct RedbCache {
    store: Arc<Store>,
    writer: writer::Writer,
}

/// What the readers and the writer share.
struct Store {
    database: Database,
    path: PathBuf,
    options: RedbOptions,
    /// Set when the file turned out to be damaged: every read is a miss from then on, every write is dropped.
    retired: AtomicBool,
    warned: Mutex<Option<Instant>>,
    entries: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    damaged: AtomicU64,
    dropped: AtomicU64,
}

impl RedbCache {
    /// Opens the store at `path`, a file, or starts one; the folder is created where it is missing.
    ///
    /// A file that is not a store, or a damaged one, is renamed to `<path>.damaged-<unix time>` (the last one such is
    /// kept), logged, and replaced by a new store.
    ///
    /// # Errors
    ///
    /// [`OpenError::AlreadyOpen`] while another process (or another handle of this one) has the store open; the other
    /// errors for what the file system refuses.
    pub fn open(path: impl Into<PathBuf>, options: RedbOptions) -> Result<Self, OpenError> {
        let path = path.into();
        let (database, entries) = open::open(&path, &options)?;
        let store = Arc::new(Store {
            database,
            path,
            options,
            retired: AtomicBool::new(false),
            warned: Mutex::new(None),
            entries: AtomicU64::new(entries),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        let writer = writer::Writer::start(Arc::clone(&store))
            .map_err(|source| OpenError::Thread { path: store.path.clone(), source })?;
        Ok(Self { store, writer })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.store.path
    }
}

impl EmbeddingCache for RedbCache {
    fn name(&self) -> String {
        format!("redb {}", self.store.path.display())
    }

    fn get<'a>(&'a self, keys: &'a [CacheKey]) -> BoxFuture<'a, Vec<Option<Vector>>> {
        async move {
            let Ok(runtime) = Handle::try_current() else {
                return self.store.read(keys);
            };
            let (store, keys, count) = (Arc::clone(&self.store), keys.to_vec(), keys.len());
            // An error means that the runtime is shutting down.
            runtime.spawn_blocking(move || store.read(&keys)).await.unwrap_or_else(|_| vec![None; count])
        }
        .boxed()
    }

    fn put(&self, entries: Vec<(CacheKey, Vector)>) {
        self.writer.put(entries);
    }

    fn flush(&self) -> BoxFuture<'_, ()> {
        self.writer.flush()
    }

    fn stats(&self) -> CacheStats {
        CacheStats {
            entries: Some(self.store.entries.load(Ordering::Relaxed)),
            hits: self.store.hits.load(Ordering::Relaxed),
            misses: self.store.misses.load(Ordering::Relaxed),
            damaged: self.store.damaged.load(Ordering::Relaxed),
            dropped: self.store.dropped.load(Ordering::Relaxed),
            ..CacheStats::default()
        }
    }
}

impl Store {
    fn read(&self, keys: &[CacheKey]) -> Vec<Option<Vector>> {
        let found = self.try_read(keys).unwrap_or_else(|| vec![None; keys.len()]);
        let hits = found.iter().flatten().count() as u64;
        self.hits.fetch_add(hits, Ordering::Relaxed);
        self.misses.fetch_add(keys.len() as u64 - hits, Ordering::Relaxed);
        found
    }

    fn try_read(&self, keys: &[CacheKey]) -> Option<Vec<Option<Vector>>> {
        if self.retired.load(Ordering::Relaxed) {
            return None;
        }
        self.guard("read", || {
            let table = tables::Reader::new(&self.database)?;
            keys.iter()
                .map(|key| {
                    let Some(bytes) = table.get(key)? else { return Ok(None) };
                    let decoded = record::decode(key, bytes.value());
                    if let Err(damage) = decoded {
                        self.damaged.fetch_add(1, Ordering::Relaxed);
                        tracing::debug!(?key, ?damage, "a damaged entry in the embedding cache; it is computed again");
                    }
                    Ok(decoded.ok())
                })
                .collect()
        })
    }

    /// Runs `work` on the database; `None` when it fails, which is logged. A damaged file is retired.
    fn guard<T>(&self, doing: &str, work: impl FnOnce() -> Result<T, redb::Error>) -> Option<T> {
        // redb trusts a file that was closed cleanly, and may panic on one that was damaged since.
        let outcome = catch_unwind(AssertUnwindSafe(work));
        let damage = match outcome {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(error)) if open::means_damage(&error) => error.to_string(),
            Ok(Err(error)) => {
                self.warn(doing, &error);
                return None;
            }
            Err(_) => "it made the store's code panic".to_owned(),
        };
        if !self.retired.swap(true, Ordering::Relaxed) {
            open::move_aside(&self.path, &damage).ok();
        }
        None
    }

    fn warn(&self, doing: &str, error: &redb::Error) {
        let now = Instant::now();
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|last| now - last >= WARN_EVERY) {
            *warned = Some(now);
            tracing::warn!(path = %self.path.display(), %error, "cannot {doing} the embedding cache; going on without");
        }
    }
}

#[cfg(test)]
mod tests;
