//! A new revision in the place of the one that serves, without a request noticing.
//!
//! A reload opens the source again. Where the content is the same, nothing happens. Otherwise the new revision is loaded
//! beside the old one and has to do what a model does (`probe`); then it takes the old one's place in the slot, in one
//! step. A request holds, from its beginning, the contract's implementation that it was given, and with it tokenizer,
//! weights and cache keys of one revision; jobs hold the weights. So requests that began before the flip end on the old
//! revision, and its memory is free when the last of them is done. Whatever goes wrong before the flip, the old revision
//! stays, and the reason is told to who asked, in the log, and on `/ready`.
//!
//! Roles are reloaded one after another: what is there twice at a time is one model, not both.
//!
//! On devices without room for a second copy, replicas follow one another (`rolling`); with a single replica a reload is
//! refused then, since to make room would be to stop serving.

use crate::{Models, Revision, Role, loader::Loader, queue::Queue, slot::ModelState, slot::ReloadState};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use thiserror::Error;
use tokio::sync::oneshot;

/// What came of one model's reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A new revision serves.
    Swapped,
    /// The content is what it was.
    Unchanged,
    /// What served before, if anything, still does.
    Failed,
}

impl Outcome {
    /// The name used in the API: `swapped`, `unchanged`, `failed`.
    pub const fn name(self) -> &'static str {
        match self {
            Outcome::Swapped => "swapped",
            Outcome::Unchanged => "unchanged",
            Outcome::Failed => "failed",
        }
    }
}

/// What came of one model's reload, and what serves now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reloaded {
    /// Which model.
    pub role: Role,
    /// What came of it.
    pub outcome: Outcome,
    /// The revision that serves now, if one does.
    pub revision: Option<Revision>,
    /// What went wrong, with its causes, where something did.
    pub detail: Option<String>,
}

/// Why a reload did not begin.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReloadRefused {
    /// One is running.
    #[error("a reload is running; /ready tells how far it is")]
    Running,
    /// The models are still loading for the first time.
    #[error("the models are loading for the first time; /ready tells how far they are")]
    Loading,
    /// The process is shutting down.
    #[error("the service is shutting down")]
    ShuttingDown,
    /// The operating system gives no thread.
    #[error("can not start a thread for it: {0}")]
    NoThread(String),
}

/// Reloads the models of an engine. Cheap to clone.
#[derive(Clone)]
pub struct Reloader(Arc<Shared>);

struct Shared {
    loader: Arc<Loader>,
    models: Arc<Models>,
    queue: Arc<Queue>,
    running: AtomicBool,
}

impl Reloader {
    pub(crate) fn new(loader: Arc<Loader>, models: Arc<Models>, queue: Arc<Queue>) -> Self {
        Self(Arc::new(Shared { loader, models, queue, running: AtomicBool::new(false) }))
    }

    /// Reloads both models, one at a time, and tells what came of each, the retriever first. A reload that has begun goes
    /// on when this future is dropped.
    ///
    /// # Errors
    ///
    /// When none can begin: one is running, the first loading is not over, or the engine is closed.
    pub async fn reload(&self) -> Result<[Reloaded; 2], ReloadRefused> {
        let shared = &self.0;
        if shared.queue.is_closed() {
            return Err(ReloadRefused::ShuttingDown);
        }
        // No slot goes back to this state.
        if shared.models.status().iter().any(|model| matches!(model.state, ModelState::Loading { .. })) {
            return Err(ReloadRefused::Loading);
        }
        if shared.running.swap(true, Ordering::SeqCst) {
            return Err(ReloadRefused::Running);
        }
        let permit = Permit(shared.clone());
        let (tell, told) = oneshot::channel();
        let work = move || {
            let waiting = || ReloadState::Loading { stage: "waiting", bytes_done: 0, bytes_total: 0 };
            permit.0.models.retriever.reloading(waiting());
            permit.0.models.reranker.reloading(waiting());
            let reloaded = [Role::Retriever, Role::Reranker].map(|role| permit.0.loader.reload(role));
            // Before the answer: who has it may ask for the next.
            drop(permit);
            // Who asked may have gone away.
            let _ = tell.send(reloaded);
        };
        let no_thread = |detail: String| ReloadRefused::NoThread(detail);
        std::thread::Builder::new().name("reload".into()).spawn(work).map_err(|e| no_thread(e.to_string()))?;
        told.await.map_err(|_| no_thread("it ended early".into()))
    }
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloader").field("running", &self.0.running).finish_non_exhaustive()
    }
}

/// Held while a reload runs.
struct Permit(Arc<Shared>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.running.store(false, Ordering::SeqCst);
    }
}
