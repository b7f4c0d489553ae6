//! Starts everything: the queue, the replica, and the two models, which load in the background.

use crate::{
    ModelSource, Models, QueueWaits, Reloader, Role,
    loader::{Load, Loader},
    queue::Queue,
    replica,
};
use nexus_compute::Backend;
use nexus_storage::EmbeddingCache;
use std::sync::Arc;

/// The engine's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Tokens in a packed batch, at most; a longer text runs alone.
    pub batch_tokens_max: usize,
    /// Tokens waiting, at most; requests beyond are refused.
    pub queue_tokens_max: usize,
    /// Truncate texts to this many tokens even if the model could take more; 0 is the model's own window.
    pub text_tokens_max: usize,
    /// The format in which the backend computes (`f32`, `bf16`); part of the cache's keys.
    pub numeric_format: &'static str,
}

/// A running engine. Dropping it ends it: what is queued is forgotten, and a replica's thread ends after its batch.
pub struct Engine {
    models: Arc<Models>,
    queue: Arc<Queue>,
    reloader: Reloader,
}

impl Engine {
    /// Starts the replica and the loading of both models; returns at once.
    pub fn start<B: Backend>(
        backend: Arc<B>,
        options: EngineOptions,
        cache: Arc<dyn EmbeddingCache>,
        retriever: ModelSource,
        reranker: ModelSource,
    ) -> std::io::Result<Self> {
        let models = Arc::new(Models {
            retriever_source: retriever.name.clone(),
            reranker_source: reranker.name.clone(),
            ..Models::default()
        });
        let queue = Arc::new(Queue::new(options.queue_tokens_max, options.batch_tokens_max));
        replica::spawn(0, queue.clone())?;

        let (for_models, for_queue) = (models.clone(), queue.clone());
        let loader: Arc<dyn Load> = Arc::new(Loader {
            backend,
            options,
            cache,
            models: for_models,
            queue: for_queue,
            retriever,
            reranker,
            serving: Default::default(),
        });
        for role in [Role::Retriever, Role::Reranker] {
            let loader = loader.clone();
            std::thread::Builder::new().name(format!("load-{}", role.name())).spawn(move || loader.load(role))?;
        }
        let reloader = Reloader::new(loader, models.clone(), queue.clone());
        Ok(Self { models, queue, reloader })
    }

    /// The models, ready or on the way.
    pub fn models(&self) -> &Arc<Models> {
        &self.models
    }

    /// What puts new revisions in the models' places.
    pub fn reloader(&self) -> &Reloader {
        &self.reloader
    }

    /// How long texts and pairs waited for a device that got to it since the last call.
    pub fn take_queue_waits(&self) -> QueueWaits {
        self.queue.take_waits()
    }

    /// Tokens that wait for a device, now.
    pub fn queued_tokens(&self) -> usize {
        self.queue.queued_tokens()
    }

    /// Refuses new work. What is queued is still answered.
    pub fn close(&self) {
        self.queue.close();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Nobody waits for the batch that runs: on a slow device, that could take longer than the end of a process may.
        self.queue.abandon();
    }
}
