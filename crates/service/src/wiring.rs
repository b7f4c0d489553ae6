//! Builds models, engine and cache from settings: the one place that knows all concrete types.

#[cfg(feature = "aws")]
pub mod bucket;
mod cache;
mod devices;
pub(crate) mod gpu;
#[cfg(feature = "hub")]
pub mod hub;
mod models;
pub mod search;
pub mod targets;

pub(crate) use devices::CPU_BATCH_TOKENS;

use crate::settings::{CacheSettings, Settings};
use etcetera::BaseStrategy;
use nexus_engine::{Engine, EngineOptions, Models, Observer, QueueView, QueueWaits, Reloader};
use nexus_storage::EmbeddingCache;
use std::path::PathBuf;
use std::sync::Arc;
use thiserror::Error;

/// What runs behind the endpoints.
pub struct Running {
    /// Both models, ready or on the way.
    pub models: Arc<Models>,
    /// The embedding cache.
    pub cache: Arc<dyn EmbeddingCache>,
    engine: Engine,
}

/// Why nothing could be started.
#[derive(Debug, Error)]
pub enum StartError {
    /// The operating system gives no threads.
    #[error("can not start threads: {0}")]
    Threads(#[from] std::io::Error),
}

impl Running {
    /// What puts new revisions in the models' places.
    pub fn reloader(&self) -> &Reloader {
        self.engine.reloader()
    }

    /// How long jobs waited for a device since the last call.
    pub fn take_queue_waits(&self) -> QueueWaits {
        self.engine.take_queue_waits()
    }

    /// What waits for a device.
    pub fn queue(&self) -> QueueView {
        self.engine.queue()
    }

    /// Tokens that wait for a device, now.
    pub fn queued_tokens(&self) -> usize {
        self.engine.queued_tokens()
    }

    /// Refuses new work, and waits until the cache is written.
    pub async fn shutdown(&self) {
        self.engine.close();
        self.cache.flush().await;
    }
}

/// Starts the engine, which opens devices and loads both models in the background; returns at once. What is done is told to
/// `observer`. To be called on a runtime, by none of its threads: what computes would be scheduled as they are (`scheduling`).
pub fn start(settings: &Settings, observer: Arc<dyn Observer>) -> Result<Running, StartError> {
    nexus_vectors::start_threads();
    let options = EngineOptions {
        queue_tokens_max: settings.engine.queue_tokens_max.get(),
        text_tokens_max: settings.engine.text_tokens_max,
        packed_bytes_min: settings.engine.cpu_packed_file.bytes_min(),
    };
    let cache = cache::open(settings);
    let (retriever, reranker) = models::sources(settings);
    let engine_settings = settings.engine.clone();
    let kernel_cache = kernel_cache(settings);
    let open = move || devices::open(&engine_settings, kernel_cache);
    let engine = Engine::start_observed(open, options, observer, cache.clone(), retriever, reranker)?;
    Ok(Running { models: engine.models().clone(), cache, engine })
}

/// Where compiled kernels are kept.
fn kernel_cache(settings: &Settings) -> Option<PathBuf> {
    cache_folder(&settings.cache).map(|folder| folder.join("kernels"))
}

/// The folder of downloaded models.
pub fn models_folder(settings: &Settings) -> Option<PathBuf> {
    settings.models.models_dir.clone().or_else(|| Some(cache_folder(&settings.cache)?.join("models")))
}

/// The folder that everything which is kept on this machine is under.
fn cache_folder(settings: &CacheSettings) -> Option<PathBuf> {
    let home_cache = || match etcetera::choose_base_strategy() {
        Ok(strategy) => Some(strategy.cache_dir().join("nexus")),
        Err(error) => {
            tracing::warn!(%error, "no cache folder: embeddings are kept in memory only; NEXUS_CACHE_DIR names one");
            None
        }
    };
    settings.dir.clone().or_else(home_cache)
}
