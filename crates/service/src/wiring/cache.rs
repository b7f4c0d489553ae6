//! The embedding cache that the settings ask for.

use super::cache_folder;
use crate::settings::{CacheKind, Settings};
use nexus_storage::{EmbeddingCache, MemoryCache, NoCache, RedbCache, RedbOptions, TieredCache};
use std::sync::Arc;

/// The cache that the settings ask for. A store that can not be used costs its hits, never the service; one that takes
/// long to open (it is repaired after a crash) does not hold the start up.
pub(super) fn open(all: &Settings) -> Arc<dyn EmbeddingCache> {
    let (kind, settings) = (all.cache_kind(), &all.cache);
    if kind == CacheKind::Off {
        return Arc::new(NoCache::new());
    }
    let cache = Arc::new(TieredCache::new(MemoryCache::new(settings.memory_bytes_max.as_usize()), None));
    if kind == CacheKind::Redb
        && let Some(folder) = cache_folder(settings)
    {
        let options = RedbOptions { bytes_max: settings.store_bytes_max.get(), ..RedbOptions::default() };
        let tiers = cache.clone();
        tokio::task::spawn_blocking(move || match RedbCache::open(folder.join("embeddings.redb"), options) {
            Ok(store) => {
                tracing::info!(store = store.name(), "embeddings are kept");
                tiers.attach(Arc::new(store));
            }
            Err(error) => tracing::warn!(%error, "embeddings are kept in memory only"),
        });
    }
    cache
}
