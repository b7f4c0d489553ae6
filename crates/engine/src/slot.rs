//! A place for something that loads in the background, and may be replaced while it serves.

use crate::Revision;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Which of the two models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The embedder.
    Retriever,
    /// The cross-encoder.
    Reranker,
}

impl Role {
    /// The name used in the API: `retriever`, `reranker`.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Retriever => "retriever",
            Role::Reranker => "reranker",
        }
    }
}

/// Where a model stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelState {
    /// Not usable yet.
    Loading {
        /// What is being done: `reading weights`.
        stage: &'static str,
        /// How far, in bytes, or 0 where that is not known.
        bytes_done: u64,
        /// Out of how many bytes, or 0 where that is not known.
        bytes_total: u64,
    },
    /// Usable.
    Ready,
    /// Not usable, unless a reload repairs it.
    Failed {
        /// What went wrong, with file and tensor where there is one.
        reason: String,
    },
}

/// Where the last reload of a model stands. Whatever it is, the revision that serves goes on serving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReloadState {
    /// Under way.
    Loading {
        /// What is being done: `reading weights`.
        stage: &'static str,
        /// How far, in bytes, or 0 where that is not known.
        bytes_done: u64,
        /// Out of how many bytes, or 0 where that is not known.
        bytes_total: u64,
    },
    /// A new revision serves.
    Swapped,
    /// There was none.
    Unchanged,
    /// There was one, or may have been, and it can not serve.
    Failed {
        /// What went wrong.
        reason: String,
    },
}

/// The state of one model, as `/ready` reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelStatus {
    /// Which model.
    pub role: Role,
    /// Where it comes from: `built-in`, `/models/qwen`.
    pub source: String,
    /// Where it stands.
    pub state: ModelState,
    /// Which revision serves, if one does.
    pub revision: Option<Revision>,
    /// How the last reload went, if there was one.
    pub reload: Option<ReloadState>,
}

/// Holds a `T` once it is there, and tells how far it is until then.
pub struct Slot<T: ?Sized> {
    inner: RwLock<Inner<T>>,
}

struct Inner<T: ?Sized> {
    state: ModelState,
    value: Option<Arc<T>>,
    reload: Option<ReloadState>,
}

impl<T: ?Sized> std::fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Slot").field(&self.state()).finish()
    }
}

impl<T: ?Sized> Default for Slot<T> {
    fn default() -> Self {
        Self {
            inner: RwLock::new(Inner {
                state: ModelState::Loading { stage: "waiting", bytes_done: 0, bytes_total: 0 },
                value: None,
                reload: None,
            }),
        }
    }
}

impl<T: ?Sized> Slot<T> {
    /// The value, or the state that explains why there is none.
    pub fn get(&self) -> Result<Arc<T>, ModelState> {
        let inner = self.read();
        inner.value.clone().ok_or_else(|| inner.state.clone())
    }

    /// Where it stands.
    pub fn state(&self) -> ModelState {
        self.read().state.clone()
    }

    /// How the last reload went, if there was one.
    pub fn reload(&self) -> Option<ReloadState> {
        self.read().reload.clone()
    }

    /// Reports progress.
    pub fn loading(&self, stage: &'static str, bytes_done: u64, bytes_total: u64) {
        self.set(ModelState::Loading { stage, bytes_done, bytes_total }, None);
    }

    /// The value is there. Who got another one before keeps it; who asks from now on gets this one.
    pub fn ready(&self, value: Arc<T>) {
        self.set(ModelState::Ready, Some(value));
    }

    /// There is no value.
    pub fn failed(&self, reason: String) {
        self.set(ModelState::Failed { reason }, None);
    }

    /// Reports a reload. The value and its state stay what they are.
    pub fn reloading(&self, reload: ReloadState) {
        self.write().reload = Some(reload);
    }

    fn set(&self, state: ModelState, value: Option<Arc<T>>) {
        let mut inner = self.write();
        inner.state = state;
        let old = std::mem::replace(&mut inner.value, value);
        drop(inner);
        // Outside of the lock, whatever it takes.
        drop(old);
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner<T>> {
        // No code panics while it holds the lock, and a state that was written whole is valid whatever happened since.
        self.inner.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner<T>> {
        self.inner.write().unwrap_or_else(|e| e.into_inner())
    }
}
