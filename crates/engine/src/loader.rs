//! From a source to a model that serves: the first time, and again at each reload.

use crate::{
    BoxError, Digests, EngineOptions, ModelSource, Models, OpenedModel, Outcome, Progress, ReloadState, Reloaded,
    Reranker, RerankerInfo, Retriever, RetrieverInfo, Revision, Role, Slot,
    arrival::with_opened,
    cached::CachedRetriever,
    loaded::LoadedModel,
    local::{LocalReranker, LocalRetriever, Tokens},
    probe,
    queue::Queue,
};
use nexus_compute::Backend;
use nexus_models::{LoadOptions, ModelFiles, Weights, load_embedder, load_reranker};
use nexus_storage::{CacheKeyBuilder, EmbeddingCache, error_chain};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::{Duration, Instant},
};

/// For how long a reload that finds no room waits for a revision that was replaced to be gone: for as long as most
/// requests take.
const LEAVING_TIME_MAX: Duration = Duration::from_secs(30);
const LEAVING_PAUSE: Duration = Duration::from_millis(20);

/// Loads models into their slots. Whatever stops it, a panic included, is reported and nothing else.
pub(crate) trait Load: Send + Sync {
    /// The first loading.
    fn load(&self, role: Role);

    /// Another one, while what is in the slot serves.
    fn reload(&self, role: Role) -> Reloaded;
}

/// Loads models onto one device.
pub(crate) struct Loader<B> {
    pub(crate) backend: Arc<B>,
    pub(crate) options: EngineOptions,
    pub(crate) cache: Arc<dyn EmbeddingCache>,
    pub(crate) models: Arc<Models>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) retriever: ModelSource,
    pub(crate) reranker: ModelSource,
    pub(crate) serving: Mutex<Serving>,
}

/// What serves, and what was replaced and may still have requests to answer.
#[derive(Default)]
pub(crate) struct Serving {
    retriever: Option<Current>,
    reranker: Option<Current>,
    leaving: Vec<Weak<()>>,
}

#[derive(Clone)]
struct Current {
    digests: Digests,
    columns: usize,
    alive: Weak<()>,
}

impl Serving {
    fn of(&mut self, role: Role) -> &mut Option<Current> {
        match role {
            Role::Retriever => &mut self.retriever,
            Role::Reranker => &mut self.reranker,
        }
    }
}

/// A model that is ready to serve.
struct Prepared<T: ?Sized> {
    contract: Arc<T>,
    revision: Revision,
    current: Current,
}

/// One of the two models: its place, and how to get it there.
struct Part<'a, B, T: ?Sized> {
    role: Role,
    slot: &'a Slot<T>,
    source: &'a ModelSource,
    prepare: Prepare<B, T>,
}

type Prepare<B, T> = fn(&Loader<B>, OpenedModel, Progress<'_>) -> Result<Prepared<T>, BoxError>;

impl<B: Backend> Load for Loader<B> {
    fn load(&self, role: Role) {
        match role {
            Role::Retriever => self.first(&self.retriever_part()),
            Role::Reranker => self.first(&self.reranker_part()),
        }
    }

    fn reload(&self, role: Role) -> Reloaded {
        match role {
            Role::Retriever => self.again(&self.retriever_part()),
            Role::Reranker => self.again(&self.reranker_part()),
        }
    }
}

impl<B: Backend> Loader<B> {
    fn retriever_part(&self) -> Part<'_, B, dyn Retriever> {
        let (slot, source) = (&self.models.retriever, &self.retriever);
        Part { role: Role::Retriever, slot, source, prepare: Self::prepare_retriever }
    }

    fn reranker_part(&self) -> Part<'_, B, dyn Reranker> {
        let (slot, source) = (&self.models.reranker, &self.reranker);
        Part { role: Role::Reranker, slot, source, prepare: Self::prepare_reranker }
    }

    fn first<T: ?Sized + Send + Sync>(&self, part: &Part<'_, B, T>) {
        let progress = |stage, done, total| part.slot.loading(stage, done, total);
        let loaded =
            guarded(|| with_opened(part.source, &progress, |opened, progress| (part.prepare)(self, opened, progress)));
        let model = part.role.name();
        match loaded {
            Ok(prepared) => {
                let revision = self.put(part, prepared);
                tracing::info!(model, %revision, "ready");
            }
            Err(reason) => {
                tracing::error!(model, reason, "loading failed");
                part.slot.failed(reason);
            }
        }
    }

    fn again<T: ?Sized + Send + Sync>(&self, part: &Part<'_, B, T>) -> Reloaded {
        let (role, model) = (part.role, part.role.name());
        let (outcome, detail) = match guarded(|| self.renew(part)) {
            Ok(Some(prepared)) => {
                let revision = self.put(part, prepared);
                tracing::info!(model, %revision, "reloaded: a new revision serves");
                part.slot.reloading(ReloadState::Swapped);
                (Outcome::Swapped, None)
            }
            Ok(None) => {
                tracing::info!(model, "reloaded: unchanged");
                part.slot.reloading(ReloadState::Unchanged);
                (Outcome::Unchanged, None)
            }
            Err(reason) => {
                tracing::error!(model, reason, "the reload failed; what served before still does");
                part.slot.reloading(ReloadState::Failed { reason: reason.clone() });
                if part.slot.get().is_err() {
                    part.slot.failed(reason.clone());
                }
                (Outcome::Failed, Some(reason))
            }
        };
        let status = self.models.status().into_iter().find(|status| status.role == role);
        Reloaded { role, outcome, revision: status.and_then(|status| status.revision), detail }
    }

    /// The revision that is there now, checked against the one that serves; `None` if it is the same.
    fn renew<T: ?Sized + Send + Sync>(&self, part: &Part<'_, B, T>) -> Result<Option<Prepared<T>>, BoxError> {
        let progress = |stage, bytes_done, bytes_total| {
            part.slot.reloading(ReloadState::Loading { stage, bytes_done, bytes_total });
        };
        with_opened(part.source, &progress, |opened, progress| self.renew_by(part, opened, progress))
    }

    fn renew_by<T: ?Sized + Send + Sync>(
        &self,
        part: &Part<'_, B, T>,
        opened: OpenedModel,
        progress: Progress<'_>,
    ) -> Result<Option<Prepared<T>>, BoxError> {
        let Some(current) = self.serving().of(part.role).clone() else {
            return (part.prepare)(self, opened, progress).map(Some);
        };
        progress("computing digests", 0, 0);
        let digests = (opened.digests)()?;
        if digests == current.digests {
            return Ok(None);
        }
        self.require_room(&opened.files)?;
        let opened = OpenedModel { files: opened.files, digests: Box::new(move || Ok(digests)), arrival: None };
        let prepared = (part.prepare)(self, opened, progress)?;
        let (old, new) = (current.columns, prepared.current.columns);
        if old != new {
            return Err(format!(
                "the new revision gives {new} dimensions, the one that serves {old}: vectors that clients and resident \
                 target sets hold could not be compared with its own; start a service of its own for it"
            )
            .into());
        }
        Ok(Some(prepared))
    }

    /// Flips: requests that come from now on are answered by this model.
    fn put<T: ?Sized + Send + Sync>(&self, part: &Part<'_, B, T>, prepared: Prepared<T>) -> Revision {
        let mut serving = self.serving();
        let old = serving.of(part.role).replace(prepared.current);
        serving.leaving.retain(|alive| alive.strong_count() > 0);
        serving.leaving.extend(old.map(|old| old.alive));
        drop(serving);
        if part.role == Role::Retriever {
            self.cache.set_revision(&prepared.revision.to_string());
        }
        part.slot.ready(prepared.contract);
        prepared.revision
    }

    /// Whether the weights fit beside all that is there, as far as the device knows. What is on its way out is waited for.
    fn require_room(&self, files: &ModelFiles) -> Result<(), BoxError> {
        let need = Weights::open(files, &|_, _| {})?.device_bytes()?;
        let started = Instant::now();
        loop {
            let Some(free) = self.backend.memory_bytes_free().filter(|&free| free < need) else { return Ok(()) };
            let leaving = self.serving().leaving.iter().any(|alive| alive.strong_count() > 0);
            if !leaving || started.elapsed() > LEAVING_TIME_MAX {
                return Err(format!(
                    "there is no room for the new revision beside the one that serves: its weights take about {need} bytes, \
                     and {} has {free} bytes of memory left; start a service with the new revision, and stop this one when \
                     that is ready",
                    self.backend.name()
                )
                .into());
            }
            thread::sleep(LEAVING_PAUSE);
        }
    }

    fn prepare_retriever(
        &self,
        opened: OpenedModel,
        progress: Progress<'_>,
    ) -> Result<Prepared<dyn Retriever>, BoxError> {
        let preparing = |done, total| progress("preparing weights", done, total);
        let loaded = load_embedder(&self.backend, &opened.files, self.load_options(&preparing))?;
        let (columns, window_tokens) = (loaded.model.output_columns(), loaded.tokenizer.window_tokens());
        let model = Arc::new(LoadedModel::new(Role::Retriever, vec![loaded.model]));
        progress("checking", 0, 0);
        probe::embedder(&loaded.tokenizer, &model)?;
        progress("computing digests", 0, 0);
        let digests = (opened.digests)()?;
        let format = self.options.numeric_format;
        let revision = Revision::of(&digests, loaded.pooling, window_tokens, format);
        let name = self.retriever.name.clone();
        let info = RetrieverInfo { model: name, revision: revision.clone(), dimensions: columns, window_tokens };
        tracing::info!(
            model = info.model,
            %revision,
            dimensions = columns,
            window_tokens,
            device = self.backend.name(),
            "retriever loaded"
        );
        let keys = CacheKeyBuilder::new(&digests.model, &digests.tokenizer, loaded.pooling, window_tokens, format);
        let current = Current { digests, columns, alive: model.alive() };
        let tokens = Tokens::new(loaded.tokenizer, model, self.queue.clone());
        let local = LocalRetriever { info, instruct: loaded.instruct, tokens };
        let contract = Arc::new(CachedRetriever::new(Arc::new(local), self.cache.clone(), keys));
        Ok(Prepared { contract, revision, current })
    }

    fn prepare_reranker(
        &self,
        opened: OpenedModel,
        progress: Progress<'_>,
    ) -> Result<Prepared<dyn Reranker>, BoxError> {
        let preparing = |done, total| progress("preparing weights", done, total);
        let loaded = load_reranker(&self.backend, &opened.files, self.load_options(&preparing))?;
        let (columns, window_tokens) = (loaded.model.output_columns(), loaded.tokenizer.window_tokens());
        let model = Arc::new(LoadedModel::new(Role::Reranker, vec![loaded.model]));
        progress("checking", 0, 0);
        probe::reranker(&loaded.tokenizer, &model)?;
        progress("computing digests", 0, 0);
        let digests = (opened.digests)()?;
        // Pooling is in the configuration, and with it in the digest.
        let revision = Revision::of(&digests, "", window_tokens, self.options.numeric_format);
        let info = RerankerInfo { model: self.reranker.name.clone(), revision: revision.clone(), window_tokens };
        tracing::info!(model = info.model, %revision, window_tokens, device = self.backend.name(), "reranker loaded");
        let current = Current { digests, columns, alive: model.alive() };
        let tokens = Tokens::new(loaded.tokenizer, model, self.queue.clone());
        Ok(Prepared { contract: Arc::new(LocalReranker { info, tokens }), revision, current })
    }

    fn load_options<'a>(&self, progress: &'a dyn Fn(u64, u64)) -> LoadOptions<'a> {
        LoadOptions { window_limit_tokens: self.options.text_tokens_max, progress }
    }

    fn serving(&self) -> MutexGuard<'_, Serving> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `work`; what stops it, a panic included, in one line.
fn guarded<T>(work: impl FnOnce() -> Result<T, BoxError>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("loading panicked; the log has the place".into()))
        .map_err(|error| error_chain(error.as_ref()))
}
