//! Starts everything: the queue, and in the background the devices, their replicas, and the two models.

use crate::{
    BoxError, Devices, ModelSource, Models, Observer, QueueView, QueueWaits, Reloader, Replicas, Role, Unobserved,
    loader::{Loader, guarded},
    queue::Queue,
    replica,
};
use nexus_storage::EmbeddingCache;
use std::sync::Arc;

/// The engine's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Tokens waiting, at most; requests beyond are refused.
    pub queue_tokens_max: usize,
    /// Truncate texts to this many tokens even if the model could take more; 0 is the model's own window.
    pub text_tokens_max: usize,
    /// Bytes of weights from which on what a device made of them is kept in a file beside the model, where the device can
    /// use one; `None`: never.
    pub packed_bytes_min: Option<u64>,
}

/// What is done before anything else.
const OPENING: &str = "opening devices";

/// A running engine. Dropping it ends it: what is queued is forgotten, and a replica's thread ends after its batch.
pub struct Engine {
    models: Arc<Models>,
    queue: Arc<Queue>,
    reloader: Reloader,
}

impl Engine {
    /// Starts to open the devices, and then to load both models onto them; returns at once. Where there are no devices, both
    /// models fail with the reason.
    ///
    /// # Errors
    ///
    /// When the operating system gives no thread.
    pub fn start(
        open: impl FnOnce() -> Result<Devices, BoxError> + Send + 'static,
        options: EngineOptions,
        cache: Arc<dyn EmbeddingCache>,
        retriever: ModelSource,
        reranker: ModelSource,
    ) -> std::io::Result<Self> {
        Self::start_observed(open, options, Arc::new(Unobserved), cache, retriever, reranker)
    }

    /// As [`Engine::start`], and tells `observer` what is done.
    ///
    /// # Errors
    ///
    /// When the operating system gives no thread.
    pub fn start_observed(
        open: impl FnOnce() -> Result<Devices, BoxError> + Send + 'static,
        options: EngineOptions,
        observer: Arc<dyn Observer>,
        cache: Arc<dyn EmbeddingCache>,
        retriever: ModelSource,
        reranker: ModelSource,
    ) -> std::io::Result<Self> {
        let models = Arc::new(Models {
            retriever_source: retriever.name.clone(),
            reranker_source: reranker.name.clone(),
            ..Models::default()
        });
        let queue = Arc::new(Queue::observed(options.queue_tokens_max, observer));
        models.retriever.loading(OPENING, 0, 0);
        models.reranker.loading(OPENING, 0, 0);
        let loader = Arc::new(Loader {
            options,
            cache,
            models: models.clone(),
            queue: queue.clone(),
            retriever,
            reranker,
            serving: Default::default(),
            budget: Default::default(),
            opened: Default::default(),
        });
        let opener = loader.clone();
        std::thread::Builder::new().name("open-devices".into()).spawn(move || opener.open(open))?;
        let reloader = Reloader::new(loader, models.clone(), queue.clone());
        Ok(Self { models, queue, reloader })
    }

    /// What runs the models.
    pub fn replicas(&self) -> &Arc<Replicas> {
        &self.models.replicas
    }

    /// What waits for the replicas.
    pub fn queue(&self) -> QueueView {
        QueueView(self.queue.clone())
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

impl Loader {
    /// Opens the devices, starts their replicas, and loads both models.
    fn open(self: &Arc<Self>, open: impl FnOnce() -> Result<Devices, BoxError>) {
        let opened = guarded(|| {
            let devices = open()?;
            if devices.list.is_empty() {
                return Err("there is no device to run the models on".into());
            }
            self.models.replicas.open(&devices.list);
            for n in 0..devices.list.len() {
                replica::spawn(n, devices.batch_tokens_max, self.queue.clone(), self.models.replicas.clone())?;
            }
            tracing::info!(?devices, batch_tokens_max = devices.batch_tokens_max, "devices");
            Ok(devices.batch_tokens_max)
        });
        if let Err(reason) = &opened {
            tracing::error!(reason, "no device can be used");
            self.models.retriever.failed(reason.clone());
            self.models.reranker.failed(reason.clone());
        }
        let usable = self.opened.get_or_init(|| opened).is_ok();
        if !usable {
            return;
        }
        for role in [Role::Retriever, Role::Reranker] {
            let loader = self.clone();
            let thread = std::thread::Builder::new().name(format!("load-{}", role.name()));
            if let Err(error) = thread.spawn(move || loader.load(role)) {
                self.failed(role, format!("can not start a thread to load it: {error}"));
            }
        }
    }

    fn failed(&self, role: Role, reason: String) {
        match role {
            Role::Retriever => self.models.retriever.failed(reason),
            Role::Reranker => self.models.reranker.failed(reason),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Nobody waits for the batch that runs: on a slow device, that could take longer than the end of a process may.
        self.queue.abandon();
    }
}
