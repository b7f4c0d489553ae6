//! A loaded model: what a revision of a model is while it serves, with a copy of the weights on each replica that has one.
//!
//! Whoever may still cause work on a revision holds it: the contract's implementation that was handed out, and each job.
//! When the last of them is gone, so are the weights. A replica that is taken out, or drained for a reload, loses its copy
//! before that.

use crate::Role;
use nexus_models::PackedModel;
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::{Duration, Instant},
};

/// Giving gigabytes back takes a second; a device that takes longer has failed.
pub(crate) const FREEING_TIME_MAX: Duration = Duration::from_secs(30);

/// The weights of a model on one replica. Whoever runs it holds it for the time of the run, and not longer.
pub(crate) type ModelCopy = Arc<dyn PackedModel>;

/// One revision of a model, ready to run.
pub(crate) struct LoadedModel {
    role: Role,
    /// Token sequences on which a copy shows that it works.
    probes: Vec<Vec<u32>>,
    copies: Copies,
}

/// The weights by number of the replica, and a token that goes right after them (fields are dropped in order).
#[derive(Default)]
struct Copies {
    models: Mutex<Vec<Option<ModelCopy>>>,
    alive: Arc<()>,
}

impl Copies {
    fn lock(&self) -> MutexGuard<'_, Vec<Option<ModelCopy>>> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LoadedModel {
    /// A model with copies by number of their replica.
    pub(crate) fn new(role: Role, probes: Vec<Vec<u32>>, copies: Vec<Option<ModelCopy>>) -> Self {
        Self { role, probes, copies: Copies { models: copies.into(), alive: Arc::default() } }
    }

    /// Which of the two it is.
    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// Token sequences on which a copy shows that it works.
    pub(crate) fn probes(&self) -> &[Vec<u32>] {
        &self.probes
    }

    /// The copy of a replica.
    pub(crate) fn on(&self, replica: usize) -> Option<ModelCopy> {
        self.copies.lock().get(replica)?.clone()
    }

    /// Whether a replica has a copy.
    pub(crate) fn is_on(&self, replica: usize) -> bool {
        self.copies.lock().get(replica).is_some_and(Option::is_some)
    }

    /// The replicas that have a copy.
    pub(crate) fn replicas(&self) -> Vec<usize> {
        self.copies.lock().iter().enumerate().filter_map(|(n, copy)| copy.as_ref().map(|_| n)).collect()
    }

    /// Takes the copy of a replica away; what is running on it holds it until it is done.
    pub(crate) fn remove(&self, replica: usize) -> Option<ModelCopy> {
        self.copies.lock().get_mut(replica)?.take()
    }

    /// Puts a copy on a replica; what was there before is dropped.
    pub(crate) fn insert(&self, replica: usize, copy: ModelCopy) {
        let mut copies = self.copies.lock();
        if copies.len() <= replica {
            copies.resize_with(replica + 1, || None);
        }
        let old = copies[replica].replace(copy);
        drop(copies);
        drop(old);
    }

    /// Something that is gone once the memory of the weights has been given back.
    pub(crate) fn alive(&self) -> Weak<()> {
        Arc::downgrade(&self.copies.alive)
    }
}

/// Gives a model up that nobody else holds, and waits until its memory has been given back: what comes next may need it.
pub(crate) fn dismiss(model: Arc<LoadedModel>) {
    let alive = model.alive();
    drop(model);
    wait_while(FREEING_TIME_MAX, || alive.strong_count() > 0);
}

/// Waits while something holds, for at most `time_max`; whether it holds no more.
pub(crate) fn wait_while(time_max: Duration, holds: impl Fn() -> bool) -> bool {
    let started = Instant::now();
    while holds() {
        if started.elapsed() >= time_max {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}

impl Drop for LoadedModel {
    fn drop(&mut self) {
        free(std::mem::take(&mut self.copies));
    }
}

/// Drops what is on devices, on a thread of its own: the last to hold it may be a thread that serves sockets, and to give
/// gigabytes back takes a second, or for ever on a device that failed. Where no thread is to be had, it is dropped here,
/// with the closure.
pub(crate) fn free(what: impl Send + 'static) {
    let _ = thread::Builder::new().name("free-model".into()).spawn(move || {
        // A device that failed may fail again at this; its memory is lost either way.
        let _ = catch_unwind(AssertUnwindSafe(move || drop(what)));
    });
}

impl fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedModel")
            .field("role", &self.role)
            .field("replicas", &self.replicas())
            .finish_non_exhaustive()
    }
}
