//! The embedding cache that the settings ask for.

use super::cache_folder;
use crate::settings::{CacheKind, Settings};
use nexus_storage::{EmbeddingCache, MemoryCache, NoCache, RedbCache, RedbOptions, TieredCache, error_chain};
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
            Err(error) => {
                let reason = error_chain(&error);
                tracing::warn!(reason, "embeddings are kept in memory only; NEXUS_CACHE_DIR names another folder");
            }
        });
    }
    #[cfg(feature = "aws")]
    if kind == CacheKind::Dynamodb {
        attach_table(&cache, all);
    }
    cache
}

/// Puts the table behind the memory, once the SDK has read its files. Nothing is asked of AWS for that, and whether there
/// is a table is found out later.
#[cfg(feature = "aws")]
fn attach_table(cache: &Arc<TieredCache>, all: &Settings) {
    use crate::settings::CacheDtype;
    use nexus_storage::{DynamoCache, DynamoOptions, ItemDtype, aws_config};
    use std::time::Duration;

    let table = &all.cache.table;
    let options = DynamoOptions {
        dtype: match table.dtype {
            CacheDtype::F32 => ItemDtype::F32,
            CacheDtype::Bf16 => ItemDtype::Bf16,
        },
        ttl: (table.ttl_days > 0).then(|| Duration::from_secs(u64::from(table.ttl_days) * 86_400)),
        read_timeout: table.read_timeout(),
        ..DynamoOptions::new(table.name())
    };
    let (tiers, region) = (cache.clone(), all.models.aws_region.clone());
    tokio::spawn(async move {
        let store = DynamoCache::open(&aws_config(&region).await, options);
        tracing::info!(store = store.name(), "embeddings are kept");
        tiers.attach(Arc::new(store));
    });
}
