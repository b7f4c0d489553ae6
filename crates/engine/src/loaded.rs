//! A loaded model: what a revision of a model is while it serves, with a copy of the weights on each replica.
//!
//! Whoever may still cause work on a revision holds it: the contract's implementation that was handed out, and each job.
//! When the last of them is gone, so are the weights.

use crate::Role;
use nexus_models::PackedModel;
use std::{
    fmt,
    sync::{Arc, Weak},
    thread,
};

/// One revision of a model, ready to run.
pub(crate) struct LoadedModel {
    role: Role,
    copies: Copies,
}

/// The weights, and a token that goes right after them (fields are dropped in order).
#[derive(Default)]
struct Copies {
    models: Vec<Box<dyn PackedModel>>,
    alive: Arc<()>,
}

impl LoadedModel {
    /// A model with one prepared copy a replica.
    pub(crate) fn new(role: Role, copies: Vec<Box<dyn PackedModel>>) -> Self {
        Self { role, copies: Copies { models: copies, alive: Arc::default() } }
    }

    /// Which of the two it is.
    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// The copy of a replica.
    pub(crate) fn on(&self, replica: usize) -> Option<&dyn PackedModel> {
        self.copies.models.get(replica).map(AsRef::as_ref)
    }

    /// All copies.
    pub(crate) fn copies(&self) -> impl Iterator<Item = &dyn PackedModel> {
        self.copies.models.iter().map(AsRef::as_ref)
    }

    /// Something that is gone once the memory of the weights has been given back.
    pub(crate) fn alive(&self) -> Weak<()> {
        Arc::downgrade(&self.copies.alive)
    }
}

impl Drop for LoadedModel {
    fn drop(&mut self) {
        let copies = std::mem::take(&mut self.copies);
        // The last to hold it may be a thread that serves sockets, and to give gigabytes back takes a second. Where no
        // thread is to be had, they are given back here, with the closure.
        let _ = thread::Builder::new().name("free-model".into()).spawn(move || drop(copies));
    }
}

impl fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedModel")
            .field("role", &self.role)
            .field("copies", &self.copies.models.len())
            .finish_non_exhaustive()
    }
}
