//! Builds models, engine and cache from settings: the one place that knows all concrete types.

#[cfg(feature = "aws")]
pub mod bucket;
mod cache;
#[cfg(feature = "hub")]
pub mod hub;
mod models;
pub mod targets;

use crate::settings::{CacheSettings, Device, Settings};
use etcetera::BaseStrategy;
use nexus_compute::cpu::{Cpu, CpuOptions};
use nexus_engine::{Engine, EngineOptions, Models, QueueWaits, Reloader};
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
    /// The device is not usable.
    #[error("the device can not be used: {0}")]
    Device(#[from] nexus_compute::ComputeError),
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

/// Starts the engine, and the loading of both models in the background; returns at once. To be called on a runtime.
pub fn start(settings: &Settings) -> Result<Running, StartError> {
    let (Device::Auto | Device::Cpu) = settings.engine.device;
    let threads = Some(settings.engine.cpu_threads).filter(|&threads| threads > 0);
    let backend = Arc::new(Cpu::new(CpuOptions { isa: None, threads })?);
    let options = EngineOptions {
        batch_tokens_max: settings.engine.batch_tokens_max.get(),
        queue_tokens_max: settings.engine.queue_tokens_max.get(),
        text_tokens_max: settings.engine.text_tokens_max,
        numeric_format: "f32",
    };
    let cache = cache::open(settings);
    let (retriever, reranker) = models::sources(settings);
    let engine = Engine::start(backend, options, cache.clone(), retriever, reranker)?;
    Ok(Running { models: engine.models().clone(), cache, engine })
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
