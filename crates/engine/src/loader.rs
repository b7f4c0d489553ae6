//! From a source to a model that serves: the first time, and again at each reload.

use crate::{
    BoxError, Digests, EngineOptions, ModelSource, Models, OpenedModel, Outcome, Progress, ReloadState, Reloaded,
    Reranker, RerankerInfo, Retriever, RetrieverInfo, Revision, Role, Slot,
    arrival::with_opened,
    budget::Budget,
    cached::CachedRetriever,
    coming::ComingDigests,
    kept::Kept,
    loaded::{LoadedModel, dismiss},
    local::{LocalReranker, LocalRetriever, Tokens},
    placing::{Placed, Placing},
    queue::Queue,
    replicas::{Live, Replicas},
    rolling::Followers,
};
use nexus_models::{ModelFiles, Weights};
use nexus_storage::{CacheKeyBuilder, EmbeddingCache, error_chain};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    thread,
    time::{Duration, Instant},
};

/// For how long a reload that finds no room waits for a revision that was replaced to be gone: for as long as most
/// requests take.
pub(crate) const LEAVING_TIME_MAX: Duration = Duration::from_secs(30);
pub(crate) const LEAVING_PAUSE: Duration = Duration::from_millis(20);

/// Loads models into their slots, onto all replicas. Whatever stops it, a panic included, is reported and nothing else.
pub(crate) struct Loader {
    pub(crate) options: EngineOptions,
    pub(crate) cache: Arc<dyn EmbeddingCache>,
    pub(crate) models: Arc<Models>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) retriever: ModelSource,
    pub(crate) reranker: ModelSource,
    pub(crate) serving: Mutex<Serving>,
    pub(crate) budget: Mutex<Budget>,
    /// What is known once the devices are open: the size of their batches, or why there are none.
    pub(crate) opened: OnceLock<Result<usize, String>>,
}

/// What serves, and what was replaced and may still have requests to answer.
#[derive(Default)]
pub(crate) struct Serving {
    retriever: Option<Current>,
    reranker: Option<Current>,
    leaving: Vec<Weak<()>>,
}

#[derive(Clone)]
pub(crate) struct Current {
    digests: Digests,
    columns: usize,
    alive: Weak<()>,
    /// What it was loaded from, where a replica may have to be given it again.
    pub(crate) files: Option<Arc<ModelFiles>>,
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
pub(crate) struct Prepared<T: ?Sized> {
    contract: Arc<T>,
    revision: Revision,
    model: Arc<LoadedModel>,
    current: Current,
    /// Replicas that get it once it serves.
    followers: Option<Followers>,
    /// What is to be kept of its weights.
    packed: Option<Kept>,
}

/// One of the two models: its place, and how to get it there.
struct Part<'a, T: ?Sized> {
    role: Role,
    slot: &'a Slot<T>,
    source: &'a ModelSource,
    contract: Contract<T>,
}

/// What answers requests by a model that was placed.
type Contract<T> = fn(&Loader, Placed, &Digests) -> (Arc<T>, Revision);

impl Loader {
    /// The first loading, once the devices are open.
    pub(crate) fn load(&self, role: Role) {
        match role {
            Role::Retriever => self.first(&self.retriever_part()),
            Role::Reranker => self.first(&self.reranker_part()),
        }
    }

    /// Another one, while what is in the slot serves.
    pub(crate) fn reload(&self, role: Role) -> Reloaded {
        match role {
            Role::Retriever => self.again(&self.retriever_part()),
            Role::Reranker => self.again(&self.reranker_part()),
        }
    }

    fn retriever_part(&self) -> Part<'_, dyn Retriever> {
        let (slot, source) = (&self.models.retriever, &self.retriever);
        Part { role: Role::Retriever, slot, source, contract: Self::retriever_contract }
    }

    fn reranker_part(&self) -> Part<'_, dyn Reranker> {
        let (slot, source) = (&self.models.reranker, &self.reranker);
        Part { role: Role::Reranker, slot, source, contract: Self::reranker_contract }
    }

    fn first<T: ?Sized + Send + Sync>(&self, part: &Part<'_, T>) {
        let progress = |stage, done, total| part.slot.loading(stage, done, total);
        let loaded =
            guarded(|| with_opened(part.source, &progress, |opened, progress| self.prepare(part, opened, progress)));
        let model = part.role.name();
        match loaded {
            Ok(prepared) => {
                let (revision, _) = self.put(part, prepared);
                tracing::info!(model, %revision, "ready");
            }
            Err(reason) => {
                self.forget_need(part.role);
                tracing::error!(model, reason, "loading failed");
                part.slot.failed(reason);
            }
        }
    }

    fn again<T: ?Sized + Send + Sync>(&self, part: &Part<'_, T>) -> Reloaded {
        let (role, model) = (part.role, part.role.name());
        let (outcome, detail) = match guarded(|| self.renew(part)) {
            Ok(Some(prepared)) => {
                let (revision, followers) = self.put(part, prepared);
                tracing::info!(model, %revision, "reloaded: a new revision serves");
                if let Some(followers) = followers {
                    self.follow(role, followers);
                }
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
                    self.forget_need(role);
                    part.slot.failed(reason.clone());
                }
                (Outcome::Failed, Some(reason))
            }
        };
        let status = self.models.status().into_iter().find(|status| status.role == role);
        Reloaded { role, outcome, revision: status.and_then(|status| status.revision), detail }
    }

    /// The revision that is there now, checked against the one that serves; `None` if it is the same.
    fn renew<T: ?Sized + Send + Sync>(&self, part: &Part<'_, T>) -> Result<Option<Prepared<T>>, BoxError> {
        let progress = |stage, bytes_done, bytes_total| {
            part.slot.reloading(ReloadState::Loading { stage, bytes_done, bytes_total });
        };
        with_opened(part.source, &progress, |opened, progress| self.renew_by(part, opened, progress))
    }

    fn renew_by<T: ?Sized + Send + Sync>(
        &self,
        part: &Part<'_, T>,
        opened: OpenedModel,
        progress: Progress<'_>,
    ) -> Result<Option<Prepared<T>>, BoxError> {
        let Some(current) = self.serving().of(part.role).clone() else {
            return self.prepare(part, opened, progress).map(Some);
        };
        progress("computing digests", 0, 0);
        let digests = (opened.digests)()?;
        if digests == current.digests {
            return Ok(None);
        }
        let files = Arc::new(opened.files);
        let onto = self.live()?;
        let (placed, followers, packed) = match self.require_room(&onto, &files) {
            Ok(()) => {
                let mut packed = self.packed_weights(&onto, &files);
                if let Some(packed) = &mut packed {
                    packed.look_for(&digests);
                }
                let kept = packed.as_ref().map(Kept::weights);
                let placed = self.placing(part.role, false)?.place(onto, &files, kept, progress)?;
                (Self::same_columns(&current, placed)?, None, packed)
            }
            Err(no_room) => {
                let (placed, followers) = self.first_of_several(part.role, onto, &files, current, no_room, progress)?;
                (placed, Some(followers), None)
            }
        };
        Ok(Some(Prepared { packed, ..self.finish(part, placed, digests, files, followers) }))
    }

    /// A model that gives as many floats as the one that it replaces.
    pub(crate) fn same_columns(old: &Current, placed: Placed) -> Result<Placed, BoxError> {
        let (old, new) = (old.columns, placed.columns);
        if old != new {
            dismiss(placed.model);
            return Err(format!(
                "the new revision gives {new} dimensions, the one that serves {old}: vectors that clients and resident \
                 target sets hold could not be compared with its own; start a service of its own for it"
            )
            .into());
        }
        Ok(placed)
    }

    /// Flips: requests that come from now on are answered by this model.
    fn put<T: ?Sized + Send + Sync>(&self, part: &Part<'_, T>, prepared: Prepared<T>) -> (Revision, Option<Followers>) {
        if let Some(packed) = prepared.packed {
            packed.write(&prepared.current.digests, prepared.current.alive.clone());
        }
        let mut serving = self.serving();
        let old = serving.of(part.role).replace(prepared.current);
        serving.leaving.retain(|alive| alive.strong_count() > 0);
        serving.leaving.extend(old.map(|old| old.alive));
        drop(serving);
        if part.role == Role::Retriever {
            self.cache.set_revision(&prepared.revision.to_string());
        }
        self.models.replicas.serves(&prepared.model);
        part.slot.ready(prepared.contract);
        (prepared.revision, prepared.followers)
    }

    /// Whether the weights fit beside all that is there on each replica, as far as its device knows. What is on its way out
    /// is waited for.
    pub(crate) fn require_room(&self, onto: &[Live], files: &ModelFiles) -> Result<(), BoxError> {
        let need = Weights::open(files, &|_, _| {})?.device_bytes()?;
        let started = Instant::now();
        loop {
            let full =
                onto.iter().find_map(|live| Some((live, live.device.memory_bytes_free().filter(|&free| free < need)?)));
            let Some((live, free)) = full else { return Ok(()) };
            let leaving = self.serving().leaving.iter().any(|alive| alive.strong_count() > 0);
            if !leaving || started.elapsed() > LEAVING_TIME_MAX {
                return Err(format!(
                    "there is no room for the new revision beside the one that serves: its weights take about {need} bytes, \
                     and {} has {free} bytes of memory left; start a service with the new revision, and stop this one when \
                     that is ready",
                    live.device.name()
                )
                .into());
            }
            thread::sleep(LEAVING_PAUSE);
        }
    }

    /// Loads what was opened onto all replicas, where no revision serves.
    fn prepare<T: ?Sized>(
        &self,
        part: &Part<'_, T>,
        opened: OpenedModel,
        progress: Progress<'_>,
    ) -> Result<Prepared<T>, BoxError> {
        let files = Arc::new(opened.files);
        let onto = self.live()?;
        let mut packed = self.packed_weights(&onto, &files);
        let mut digests = ComingDigests::new(opened.digests, files.may_arrive());
        // Where they are not remembered they take as long as the weights, which are prepared meanwhile; they are waited for
        // where they may spare the preparing.
        if let Some(packed) = packed.as_mut().filter(|packed| packed.is_there() && !files.may_arrive()) {
            progress("computing digests", 0, 0);
            packed.look_for(&digests.get()?);
        }
        let kept = packed.as_ref().map(Kept::weights);
        let placed = self.placing(part.role, true)?.place(onto, &files, kept, progress)?;
        progress("computing digests", 0, 0);
        let digests = digests.get()?;
        Ok(Prepared { packed, ..self.finish(part, placed, digests, files, None) })
    }

    fn finish<T: ?Sized>(
        &self,
        part: &Part<'_, T>,
        placed: Placed,
        digests: Digests,
        files: Arc<ModelFiles>,
        followers: Option<Followers>,
    ) -> Prepared<T> {
        let (model, columns) = (placed.model.clone(), placed.columns);
        // One replica is never emptied: what it was loaded from need not be kept.
        let files = (self.models.replicas.status().len() > 1).then_some(files);
        let current = Current { digests, columns, alive: model.alive(), files };
        let (contract, revision) = (part.contract)(self, placed, &digests);
        Prepared { contract, revision, model, current, followers, packed: None }
    }

    fn retriever_contract(&self, placed: Placed, digests: &Digests) -> (Arc<dyn Retriever>, Revision) {
        let Placed { model, tokenizer, pooling, instruct, columns } = placed;
        let (window_tokens, format) = (tokenizer.window_tokens(), self.numeric_format());
        let revision = Revision::of(digests, pooling, window_tokens, format);
        let name = self.retriever.name.clone();
        let info = RetrieverInfo { model: name, revision: revision.clone(), dimensions: columns, window_tokens };
        let replicas = model.replicas().len();
        tracing::info!(model = info.model, %revision, dimensions = columns, window_tokens, replicas, "retriever loaded");
        let keys = CacheKeyBuilder::new(&digests.model, &digests.tokenizer, pooling, window_tokens, format);
        let tokens = Tokens::new(Arc::new(tokenizer), model, self.queue.clone());
        let local = LocalRetriever { info, instruct, tokens };
        (
            Arc::new(
                CachedRetriever::new(Arc::new(local), self.cache.clone(), keys).observed(self.queue.observer().clone()),
            ),
            revision,
        )
    }

    fn reranker_contract(&self, placed: Placed, digests: &Digests) -> (Arc<dyn Reranker>, Revision) {
        let Placed { model, tokenizer, pooling, .. } = placed;
        let window_tokens = tokenizer.window_tokens();
        let revision = Revision::of(digests, pooling, window_tokens, self.numeric_format());
        let info = RerankerInfo { model: self.reranker.name.clone(), revision: revision.clone(), window_tokens };
        let replicas = model.replicas().len();
        tracing::info!(model = info.model, %revision, window_tokens, replicas, "reranker loaded");
        let tokens = Tokens::new(Arc::new(tokenizer), model, self.queue.clone());
        (Arc::new(LocalReranker { info, tokens }), revision)
    }

    /// All devices of a process are of one kind.
    fn numeric_format(&self) -> &'static str {
        self.models.replicas.numeric_format()
    }

    /// The replicas that work.
    pub(crate) fn live(&self) -> Result<Vec<Live>, BoxError> {
        let live = self.models.replicas.live();
        if live.is_empty() {
            let nothing = || "no replica is left".to_owned();
            return Err(self.models.replicas.failure().unwrap_or_else(nothing).into());
        }
        Ok(live)
    }

    pub(crate) fn placing(&self, role: Role, first: bool) -> Result<Placing<'_>, BoxError> {
        let opened = self.opened.get().ok_or("the devices are not open yet")?;
        let batch_tokens_max = opened.clone()?;
        let replicas: &Replicas = &self.models.replicas;
        let (queue, budget, text_tokens_max) = (&*self.queue, &self.budget, self.options.text_tokens_max);
        Ok(Placing { replicas, queue, budget, role, batch_tokens_max, text_tokens_max, first })
    }

    fn forget_need(&self, role: Role) {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).forget(role);
    }

    fn serving(&self) -> MutexGuard<'_, Serving> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `work`; what stops it, a panic included, in one line.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T, BoxError>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("loading panicked; the log has the place".into()))
        .map_err(|error| error_chain(error.as_ref()))
}
