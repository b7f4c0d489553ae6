//! A new revision on devices without room for a second copy: one replica after another.
//!
//! One replica is drained (it takes no more work for the old revision, and goes on with the other model), its copy is
//! dropped, and the new revision is loaded and checked there. If that fails, the old one is loaded back, from the files that
//! are kept for it, and nothing changed for clients. Otherwise the new revision takes the slot, and the other replicas
//! follow. Requests that hold the old revision end on replicas that still have it; the last one waits for them, for a while.
//!
//! A replica whose device fails meanwhile is left out. A model that lost its only replica by that is given the next one at
//! once.

use crate::{
    BoxError, Progress, Role,
    loaded::{FREEING_TIME_MAX, LoadedModel, ModelCopy, free, wait_while},
    loader::{Current, LEAVING_TIME_MAX, Loader},
    models::Models,
    placing::Placed,
    queue::Queue,
    replicas::Live,
};
use nexus_models::ModelFiles;
use std::{
    sync::{Arc, Weak},
    time::Duration,
};

/// No batch takes so long on a device that works.
const BATCH_TIME_MAX: Duration = Duration::from_secs(300);

/// Replicas that have the old revision still.
pub(crate) struct Followers {
    onto: Vec<Live>,
    old: Weak<LoadedModel>,
    /// Gone when the last request that holds the old revision is over, and its weights with it.
    old_alive: Weak<()>,
    new: Weak<LoadedModel>,
    files: Arc<ModelFiles>,
    rolling: Rolling,
}

/// Held while replicas are given a model one after another.
struct Rolling {
    models: Arc<Models>,
    queue: Arc<Queue>,
    role: Role,
}

impl Rolling {
    fn start(loader: &Loader, role: Role) -> Self {
        loader.models.replicas.rolls(role);
        Self { models: loader.models.clone(), queue: loader.queue.clone(), role }
    }
}

impl Drop for Rolling {
    fn drop(&mut self) {
        self.models.replicas.rolled(&self.queue, self.role);
    }
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
        let rolling = Rolling::start(self, role);
        progress("draining a replica", 0, 0);
        let placed = self
            .empty(&first, &old)
            .and_then(|()| self.require_room(std::slice::from_ref(&first), files))
            .and_then(|()| self.placing(role, false)?.place(vec![first.clone()], files, None, progress))
            .and_then(|placed| Self::same_columns(&current, placed));
        let outcome = match placed {
            Ok(placed) => {
                let (old_alive, new) = (old.alive(), Arc::downgrade(&placed.model));
                let old = Arc::downgrade(&old);
                Ok((placed, Followers { onto, old, old_alive, new, files: files.clone(), rolling }))
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
        let Followers { onto, old, old_alive, new, files, rolling: _rolling } = followers;
        let replicas = &self.models.replicas;
        for live in onto.iter().filter(|live| replicas.works(live.replica)) {
            let Some(new) = new.upgrade() else { return };
            if old.upgrade().is_some_and(|old| old.replicas() == [live.replica]) {
                wait_while(LEAVING_TIME_MAX, || old_alive.strong_count() > 0 && !new.replicas().is_empty());
            }
            let emptied = match old.upgrade() {
                Some(old) => self.empty(live, &old),
                None => {
                    replicas.drain(live.replica, true);
                    // Its weights are being given back, on another thread.
                    wait_while(FREEING_TIME_MAX, || old_alive.strong_count() > 0);
                    Ok(())
                }
            };
            // What waited longer than that has no replica any more, and is told so.
            self.queue.sweep();
            let copied = emptied.and_then(|()| self.copy(role, live, &files, &|_, _, _| {}));
            if let Err(error) = copied.map(|copy| self.add(&new, live, copy)) {
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
        if !self.models.replicas.works(live.replica) {
            return;
        }
        let copied = files
            .ok_or_else(|| BoxError::from("its files are not kept"))
            .and_then(|files| self.copy(role, live, files, progress))
            .map(|copy| self.add(old, live, copy));
        if let Err(error) = copied {
            let reason = format!("the {} that serves could not be loaded back: {error}", role.name());
            self.models.replicas.take_out(&self.queue, live.replica, &reason, false);
        }
    }

    /// A copy of a model on one replica, checked.
    fn copy(&self, role: Role, live: &Live, files: &ModelFiles, progress: Progress<'_>) -> Result<ModelCopy, BoxError> {
        let placed = self.placing(role, false)?.place(vec![live.clone()], files, None, progress)?;
        placed.model.remove(live.replica).ok_or_else(|| "its replica was taken out".into())
    }

    fn add(&self, model: &LoadedModel, live: &Live, copy: ModelCopy) {
        self.models.replicas.add_copy(model, live.replica, copy);
        // Work may have waited for it, and nothing else wakes the replica.
        self.queue.sweep();
    }

    /// Takes the copy of a replica away, and waits until what runs on it is done.
    fn empty(&self, live: &Live, model: &LoadedModel) -> Result<(), BoxError> {
        let replicas = &self.models.replicas;
        replicas.drain(live.replica, true);
        let Some(copy) = model.remove(live.replica) else { return Ok(()) };
        if wait_while(BATCH_TIME_MAX, || Arc::strong_count(&copy) > 1) {
            drop(copy);
            return Ok(());
        }
        free(copy);
        let reason = format!("a batch has not ended in {} s: the device hangs", BATCH_TIME_MAX.as_secs());
        replicas.take_out(&self.queue, live.replica, &reason, false);
        Err(format!("{}: {reason}", live.device.name()).into())
    }
}
