//! Embeddings in a DynamoDB table, shared by all replicas.
//!
//! | | |
//! |---|---|
//! | [`item`] | how an embedding lies in an item, and how a damaged one is told |
//! | [`read`] | many keys within one time limit |
//! | [`write`](mod@write) | the bounded queue and the task that empties it |
//! | [`pace`] | how fast it is emptied |
//! | [`breaker`] | whether a table that failed is asked again |
//! | [`trouble`] | what went wrong, in words, once a minute |
//! | [`table`] | what people do with a table: create it, look at it, purge it |
//!
//! The table is a soft dependency. A read waits for nothing longer than its time limit, whatever hangs: looking for
//! credentials, names, connections, the service; what has not arrived by then is a miss. After a few failures in a row nothing is asked for
//! a while. Writes wait in a bounded queue; what does not fit, or fails for too long, is dropped and counted.
//!
//! Deliberately absent: creating the table by itself, strongly consistent reads (a vector that is not there yet is
//! computed; it never changes), and a lock across replicas (two that compute the same text write the same bytes).

mod breaker;
mod item;
mod jitter;
mod pace;
mod read;
mod table;
#[cfg(test)]
mod tests;
mod trouble;
mod write;

pub use table::{Created, EmbeddingTable, ItemKind, Purged, Sample, TableError, TableStats, Ttl};

use super::AwsConfig;
use crate::{CacheKey, CacheStats, EmbeddingCache, Vector};
use aws_sdk_dynamodb::Client;
use breaker::{Breaker, BreakerOptions};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use trouble::{Complaints, Doing, Failure};

/// How the components of new items are stored. Items of either are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemDtype {
    /// As they are: 17 write units and 2.5 read units for 4096 components.
    F32,
    /// Rounded to bf16: 9 write units and 1.5 read units for 4096 components.
    Bf16,
}

impl ItemDtype {
    const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// Its name in items.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Bytes of a component.
    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// How a [`DynamoCache`] uses its table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DynamoOptions {
    /// The table.
    pub table: String,
    /// How vectors are written.
    pub dtype: ItemDtype,
    /// How long an item is good for; `None` for ever.
    pub ttl: Option<Duration>,
    /// Time for one [`EmbeddingCache::get`]: what has not arrived by then is a miss. A list of more than 100 keys has it
    /// for each 100 of them, but only while answers come: none is waited for longer than this.
    pub read_timeout: Duration,
    /// Time for one request to write.
    pub write_timeout: Duration,
    /// Entries that may wait to be written; beyond, they are dropped.
    pub queue_entries_max: usize,
    /// Bytes of the entries that may wait to be written.
    pub queue_bytes_max: usize,
}

impl DynamoOptions {
    /// The usual ones, for this table: vectors as they are, kept for ever.
    pub fn new(table: impl Into<String>) -> Self {
        Self {
            table: table.into(),
            dtype: ItemDtype::F32,
            ttl: None,
            read_timeout: Duration::from_millis(50),
            write_timeout: Duration::from_secs(2),
            queue_entries_max: 8192,
            queue_bytes_max: 128 << 20,
        }
    }
}

/// Longer than anybody waits for a cache, and short enough to reckon with.
const READ_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// What nobody has had to set so far, but tests.
#[derive(Clone, Debug, Default)]
struct Tuning {
    breaker: BreakerOptions,
    write: write::WriteTuning,
    /// Leaves out the first request, which is made in advance.
    cold: bool,
}

/// An [`EmbeddingCache`] in a DynamoDB table.
///
/// What was put and not written when it is dropped is still tried, as long as the runtime lives; at an orderly end, wait
/// for [`EmbeddingCache::flush`].
pub struct DynamoCache {
    shared: Arc<Shared>,
    writer: write::Writer,
}

/// What readers and the writer share.
struct Shared {
    client: Client,
    options: DynamoOptions,
    tuning: Tuning,
    region: String,
    runtime: Handle,
    reads: Breaker,
    writes: Breaker,
    complaints: Complaints,
    /// Requests to read that may be under way at once.
    calls: Semaphore,
    revision: RwLock<Arc<str>>,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    damaged: AtomicU64,
    dropped: AtomicU64,
    read_failures: AtomicU64,
    read_timeouts: AtomicU64,
    read_skips: AtomicU64,
    write_failures: AtomicU64,
}

impl DynamoCache {
    /// A cache in a table that may or may not be there: nothing is asked before this returns. To be called on a tokio
    /// runtime with its timer and I/O, on which the cache then works, and on which it has to be used.
    ///
    /// One small read is made at once, beside: credentials are looked up and a connection is open before the first text
    /// comes, and trouble is in the log before anybody waits for it.
    pub fn open(config: &AwsConfig, options: DynamoOptions) -> Self {
        Self::with(config.dynamodb(), config.region(), options, Tuning::default())
    }

    fn with(client: Client, region: &str, mut options: DynamoOptions, tuning: Tuning) -> Self {
        options.read_timeout = options.read_timeout.min(READ_TIMEOUT_MAX);
        let shared = Arc::new(Shared {
            client,
            tuning: tuning.clone(),
            region: region.to_owned(),
            runtime: Handle::current(),
            reads: Breaker::new(tuning.breaker.clone()),
            // Fewer, as a failed write may have taken two seconds, and an orderly end waits for it.
            writes: Breaker::new(BreakerOptions { failures_max: 3, ..tuning.breaker }),
            complaints: Complaints::new(&options.table, region),
            calls: Semaphore::new(read::CALLS_MAX),
            revision: RwLock::new("".into()),
            counters: Counters::default(),
            options,
        });
        if !tuning.cold {
            shared.runtime.spawn(read::warm_up(Arc::clone(&shared)));
        }
        let writer = write::Writer::start(Arc::clone(&shared));
        Self { shared, writer }
    }
}

impl EmbeddingCache for DynamoCache {
    fn name(&self) -> String {
        format!("dynamodb {} in {}", self.shared.options.table, self.shared.region)
    }

    fn get<'a>(&'a self, keys: &'a [CacheKey]) -> BoxFuture<'a, Vec<Option<Vector>>> {
        read::read(&self.shared, keys).boxed()
    }

    fn put(&self, entries: Vec<(CacheKey, Vector)>) {
        self.writer.put(entries);
    }

    /// Waits until what was put is written or given up, but no longer than 20 s.
    fn flush(&self) -> BoxFuture<'_, ()> {
        self.writer.flush()
    }

    fn stats(&self) -> CacheStats {
        let Counters { hits, misses, damaged, dropped, .. } = &self.shared.counters;
        let Counters { read_failures, read_timeouts, read_skips, write_failures, .. } = &self.shared.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheStats {
            entries: None,
            hits: get(hits),
            misses: get(misses),
            damaged: get(damaged),
            dropped: get(dropped),
            waiting: self.writer.waiting(),
            read_failures: get(read_failures),
            read_timeouts: get(read_timeouts),
            read_skips: get(read_skips),
            write_failures: get(write_failures),
            reads: self.shared.reads.circuit(),
            writes: self.shared.writes.circuit(),
        }
    }

    /// At most 128 bytes of it are kept.
    fn set_revision(&self, revision: &str) {
        let mut end = revision.len().min(item::REVISION_BYTES_MAX);
        while !revision.is_char_boundary(end) {
            end -= 1;
        }
        *self.shared.revision.write().unwrap_or_else(PoisonError::into_inner) = revision[..end].into();
    }
}

impl Shared {
    fn revision(&self) -> Arc<str> {
        Arc::clone(&self.revision.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A read that failed when nobody waited for it any more, which still says what is wrong.
    fn failed_late(&self, failure: &Failure) {
        self.complaints.complain(Doing::Read, failure);
        if failure.lasts() {
            self.reads.trip();
        }
    }
}

fn count(counter: &AtomicU64, more: usize) {
    counter.fetch_add(more as u64, Ordering::Relaxed);
}

/// Seconds since 1970.
fn epoch_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
