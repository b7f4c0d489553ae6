//! Starts everything: the queue, the replica, and the two models, which load in the background.

use crate::{
    Models, RerankerInfo, RetrieverInfo, Role,
    cached::CachedRetriever,
    local::{LocalReranker, LocalRetriever, Tokens},
    queue::Queue,
    replica::{self, ReplicaModels},
};
use nexus_compute::Backend;
use nexus_models::{LoadOptions, ModelFiles, load_embedder, load_reranker};
use nexus_storage::{CacheKeyBuilder, EmbeddingCache};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

/// Any error that stops a model from loading; its chain is told to people.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Reports what is being done, how many bytes of it are done, and out of how many (0: not known).
pub type Progress<'a> = &'a (dyn Fn(&'static str, u64, u64) + Send + Sync);

/// Brings the files of a model, however long it takes.
pub type OpenModel = Box<dyn FnOnce(Progress<'_>) -> Result<OpenedModel, BoxError> + Send>;

/// Where a model comes from.
pub struct ModelSource {
    /// For people: `built-in`, a folder.
    pub name: String,
    /// Brings the files. Runs on a thread of its own.
    pub open: OpenModel,
}

/// The files of a model, and digests of what is in them.
pub struct OpenedModel {
    /// The files.
    pub files: ModelFiles,
    /// Digest of configuration and weights.
    pub model_digest: [u8; 32],
    /// Digest of the tokenizer.
    pub tokenizer_digest: [u8; 32],
}

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
        let installed = Arc::new(ReplicaModels::default());
        replica::spawn("replica-0", installed.clone(), queue.clone())?;

        let loader = Loader { backend, options, models: models.clone(), queue: queue.clone(), installed };
        let other = loader.clone();
        std::thread::Builder::new()
            .name("load-retriever".into())
            .spawn(move || loader.guarded(Role::Retriever, |l| l.retriever(retriever, cache)))?;
        std::thread::Builder::new()
            .name("load-reranker".into())
            .spawn(move || other.guarded(Role::Reranker, |l| l.reranker(reranker)))?;
        Ok(Self { models, queue })
    }

    /// The models, ready or on the way.
    pub fn models(&self) -> &Arc<Models> {
        &self.models
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

struct Loader<B> {
    backend: Arc<B>,
    options: EngineOptions,
    models: Arc<Models>,
    queue: Arc<Queue>,
    installed: Arc<ReplicaModels>,
}

impl<B> Clone for Loader<B> {
    fn clone(&self) -> Self {
        Self {
            backend: self.backend.clone(),
            options: self.options,
            models: self.models.clone(),
            queue: self.queue.clone(),
            installed: self.installed.clone(),
        }
    }
}

impl<B: Backend> Loader<B> {
    /// Runs one model's loading; whatever stops it, a panic included, becomes the state that `/ready` reports.
    fn guarded(&self, role: Role, load: impl FnOnce(&Self) -> Result<(), BoxError>) {
        let outcome = catch_unwind(AssertUnwindSafe(|| load(self)))
            .unwrap_or_else(|_| Err("loading panicked; the log has the place".into()));
        match outcome {
            Ok(()) => tracing::info!(model = role.name(), "ready"),
            Err(error) => {
                let reason = chain(error.as_ref());
                tracing::error!(model = role.name(), reason, "loading failed");
                match role {
                    Role::Retriever => self.models.retriever.failed(reason),
                    Role::Reranker => self.models.reranker.failed(reason),
                }
            }
        }
    }

    fn retriever(&self, source: ModelSource, cache: Arc<dyn EmbeddingCache>) -> Result<(), BoxError> {
        let slot = &self.models.retriever;
        let OpenedModel { files, model_digest, tokenizer_digest } =
            (source.open)(&|stage, done, total| slot.loading(stage, done, total))?;
        let preparing = |done, total| slot.loading("preparing weights", done, total);
        let loaded = load_embedder(&self.backend, &files, self.load_options(&preparing))?;
        let info = RetrieverInfo {
            model: source.name,
            dimensions: loaded.model.output_columns(),
            window_tokens: loaded.tokenizer.window_tokens(),
        };
        tracing::info!(
            model = info.model,
            dimensions = info.dimensions,
            window_tokens = info.window_tokens,
            device = self.backend.name(),
            "retriever loaded"
        );
        let keys = CacheKeyBuilder::new(
            &model_digest,
            &tokenizer_digest,
            loaded.pooling,
            info.window_tokens,
            self.options.numeric_format,
        );
        self.installed.install(Role::Retriever, loaded.model);
        let tokens = Tokens::new(loaded.tokenizer, self.queue.clone());
        let local = LocalRetriever { info, instruct: loaded.instruct, tokens };
        slot.ready(Arc::new(CachedRetriever::new(Arc::new(local), cache, keys)));
        Ok(())
    }

    fn reranker(&self, source: ModelSource) -> Result<(), BoxError> {
        let slot = &self.models.reranker;
        let opened = (source.open)(&|stage, done, total| slot.loading(stage, done, total))?;
        let preparing = |done, total| slot.loading("preparing weights", done, total);
        let loaded = load_reranker(&self.backend, &opened.files, self.load_options(&preparing))?;
        let info = RerankerInfo { model: source.name, window_tokens: loaded.tokenizer.window_tokens() };
        tracing::info!(
            model = info.model,
            window_tokens = info.window_tokens,
            device = self.backend.name(),
            "reranker loaded"
        );
        self.installed.install(Role::Reranker, loaded.model);
        let tokens = Tokens::new(loaded.tokenizer, self.queue.clone());
        slot.ready(Arc::new(LocalReranker { info, tokens }));
        Ok(())
    }

    fn load_options<'a>(&self, progress: &'a dyn Fn(u64, u64)) -> LoadOptions<'a> {
        LoadOptions { window_limit_tokens: self.options.text_tokens_max, progress }
    }
}

/// An error with its causes, in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors already tell their cause.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
