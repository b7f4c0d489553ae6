//! A new revision on devices without room for a second copy: one replica after another.
//!
//! One replica is drained (it takes no more work for the old revision, and goes on with the other model), its copy is
//! dropped, and the new revision is loaded and checked there. If that fails, the old one is loaded back, from the files that
//! are kept for it, and nothing changed for clients. Otherwise the new revision takes the slot, and the other replicas
//! follow. Requests that hold the old revision end on replicas that still have it; the last one waits for them, for a while.

use crate::{
    BoxError, Progress, Role,
    loaded::{LoadedModel, ModelCopy},
    loader::{Current, LEAVING_PAUSE, LEAVING_TIME_MAX, Loader},
    placing::Placed,
    replicas::Live,
};
use nexus_models::ModelFiles;
use std::{
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

/// How often is looked whether a batch is over.
const BATCH_PAUSE: Duration = Duration::from_millis(1);

/// Replicas that have the old revision still.
pub(crate) struct Followers {
    onto: Vec<Live>,
    old: Weak<LoadedModel>,
    /// Gone when the last request that holds the old revision is over, and its weights with it.
    old_alive: Weak<()>,
    new: Weak<LoadedModel>,
    files: Arc<ModelFiles>,
}

impl Loader {
    /// Puts the new revision in the place of the old one on the first of several replicas; refuses with `no_room` where
    /// there is only one.
    pub(crate) fn first_of_several(
        &self,
        role: Role,
        mut onto: Vec<Live>,
        files: &Arc<ModelFiles>,
        current: Current,
        no_room: BoxError,
        progress: Progress<'_>,
    ) -> Result<(Placed, Followers), BoxError> {
        let replicas = &self.models.replicas;
        let Some(old) = replicas.serving(role) else { return Err(no_room) };
        onto.retain(|live| old.is_on(live.replica));
        if onto.len() < 2 {
            return Err(no_room);
        }
        let first = onto.remove(0);
        progress("draining a replica", 0, 0);
        self.empty(&first, &old);
        let placed = self
            .require_room(std::slice::from_ref(&first), files)
            .and_then(|()| self.placing(role, false)?.place(vec![first.clone()], files, progress))
            .and_then(|placed| Self::same_columns(&current, placed));
        let outcome = match placed {
            Ok(placed) => {
                let (old_alive, new) = (old.alive(), Arc::downgrade(&placed.model));
                let old = Arc::downgrade(&old);
                Ok((placed, Followers { onto, old, old_alive, new, files: files.clone() }))
            }
            Err(error) => {
                self.load_back(role, &first, &old, current.files.as_deref(), progress);
                Err(error)
            }
        };
        replicas.drain(first.replica, false);
        outcome
    }

    /// Puts the new revision, which serves, on the replicas that have the old one.
    pub(crate) fn follow(&self, role: Role, followers: Followers) {
        let Followers { onto, old, old_alive, new, files } = followers;
        let replicas = &self.models.replicas;
        for (at, live) in onto.iter().enumerate() {
            let Some(new) = new.upgrade() else { return };
            if at + 1 == onto.len() {
                let started = Instant::now();
                while old_alive.strong_count() > 0 && started.elapsed() < LEAVING_TIME_MAX {
                    thread::sleep(LEAVING_PAUSE);
                }
            }
            match old.upgrade() {
                Some(old) => self.empty(live, &old),
                None => replicas.drain(live.replica, true),
            }
            // What waited longer than that has no replica any more, and is told so.
            self.queue.sweep();
            let copied = self.copy(role, live, &files, &|_, _, _| {});
            if let Err(error) = copied.map(|copy| replicas.add_copy(&new, live.replica, copy)) {
                let reason = format!("the {}, which works elsewhere, can not be loaded: {error}", role.name());
                replicas.take_out(&self.queue, live.replica, &reason, false);
            }
            replicas.drain(live.replica, false);
        }
    }

    fn load_back(
        &self,
        role: Role,
        live: &Live,
        old: &LoadedModel,
        files: Option<&ModelFiles>,
        progress: Progress<'_>,
    ) {
        let copied = files
            .ok_or_else(|| BoxError::from("its files are not kept"))
            .and_then(|files| self.copy(role, live, files, progress))
            .map(|copy| self.models.replicas.add_copy(old, live.replica, copy));
        if let Err(error) = copied {
            let reason = format!("the {} that serves could not be loaded back: {error}", role.name());
            self.models.replicas.take_out(&self.queue, live.replica, &reason, false);
        }
    }

    /// A copy of a model on one replica, checked.
    fn copy(&self, role: Role, live: &Live, files: &ModelFiles, progress: Progress<'_>) -> Result<ModelCopy, BoxError> {
        let placed = self.placing(role, false)?.place(vec![live.clone()], files, progress)?;
        placed.model.remove(live.replica).ok_or_else(|| "its replica was taken out".into())
    }

    /// Takes the copy of a replica away, and waits until what runs on it is done.
    fn empty(&self, live: &Live, model: &LoadedModel) {
        self.models.replicas.drain(live.replica, true);
        let Some(copy) = model.remove(live.replica) else { return };
        while Arc::strong_count(&copy) > 1 {
            thread::sleep(BATCH_PAUSE);
        }
        drop(copy);
    }
}
