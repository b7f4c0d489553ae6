//! A new revision of the embedder takes the old one's place: beside it, or on one replica after another, in the steps in
//! which the loader does it.

use crate::{
    Role,
    loaded::{LoadedModel, ModelCopy},
    queue::Queue,
    replicas::Replicas,
};
use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

/// Steps that the last replica with the old revision waits for who still holds that.
const PATIENCE: usize = 40;

/// Where the replacement on one replica after another stands.
pub(crate) struct Reload {
    old: Weak<LoadedModel>,
    new: Option<Weak<LoadedModel>>,
    followers: VecDeque<usize>,
    at: At,
    patience: usize,
}

enum At {
    Next,
    /// Waits until nothing runs on the old copy.
    Emptying(usize, ModelCopy),
    Loading(usize),
    Over,
}

/// What has to be done by whoever makes models.
pub(crate) enum Wants {
    Nothing,
    /// A new revision, with its first copy on this replica, to serve from now on.
    First(usize),
    /// A copy of the new revision.
    Copy(usize, Arc<LoadedModel>),
}

impl Reload {
    /// Begins it; `None` where there are not two replicas that have the old revision.
    pub(crate) fn begin(replicas: &Replicas, old: &Arc<LoadedModel>) -> Option<Self> {
        let followers: VecDeque<usize> =
            replicas.live().into_iter().map(|live| live.replica).filter(|&replica| old.is_on(replica)).collect();
        if followers.len() < 2 {
            return None;
        }
        replicas.rolls(Role::Retriever);
        Some(Self { old: Arc::downgrade(old), new: None, followers, at: At::Next, patience: PATIENCE })
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.at, At::Over)
    }

    /// The new revision serves.
    pub(crate) fn placed(&mut self, new: &Arc<LoadedModel>) {
        self.new = Some(Arc::downgrade(new));
    }

    pub(crate) fn step(&mut self, replicas: &Replicas, queue: &Queue) -> Wants {
        match std::mem::replace(&mut self.at, At::Next) {
            At::Next => self.next(replicas, queue),
            At::Emptying(replica, copy) => {
                if Arc::strong_count(&copy) > 1 {
                    self.at = At::Emptying(replica, copy);
                } else {
                    queue.sweep();
                    self.at = At::Loading(replica);
                }
                Wants::Nothing
            }
            At::Loading(replica) => {
                replicas.drain(replica, false);
                match &self.new {
                    None if replicas.works(replica) => Wants::First(replica),
                    None => {
                        // It failed meanwhile: the old revision goes on where it is.
                        self.followers.clear();
                        Wants::Nothing
                    }
                    Some(new) => new.upgrade().map_or(Wants::Nothing, |new| Wants::Copy(replica, new)),
                }
            }
            At::Over => unreachable!("it is over"),
        }
    }

    fn next(&mut self, replicas: &Replicas, queue: &Queue) -> Wants {
        let Some(&replica) = self.followers.front() else {
            self.at = At::Over;
            replicas.rolled(queue, Role::Retriever);
            return Wants::Nothing;
        };
        let (old, new) = (self.old.upgrade(), self.new.as_ref().and_then(Weak::upgrade));
        let is_last = old.as_ref().is_some_and(|old| old.replicas() == [replica]);
        if is_last && self.patience > 0 && new.is_some_and(|new| !new.replicas().is_empty()) {
            self.patience -= 1;
            return Wants::Nothing;
        }
        self.followers.pop_front();
        if replicas.works(replica) {
            replicas.drain(replica, true);
            self.at = match old.and_then(|old| old.remove(replica)) {
                Some(copy) => At::Emptying(replica, copy),
                None => At::Loading(replica),
            };
        }
        Wants::Nothing
    }
}
