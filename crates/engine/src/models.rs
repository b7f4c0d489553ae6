//! Both models of a process, ready or on the way.

use crate::{ModelStatus, Replicas, Reranker, Retriever, Role, Slot};
use std::sync::Arc;

/// The two models that a process serves. Shared between the loader, which fills the slots, and whoever answers requests.
#[derive(Debug, Default)]
pub struct Models {
    /// The embedder.
    pub retriever: Slot<dyn Retriever>,
    /// The cross-encoder.
    pub reranker: Slot<dyn Reranker>,
    /// Where the embedder comes from, for people: `built-in`, a folder.
    pub retriever_source: String,
    /// Where the cross-encoder comes from, for people.
    pub reranker_source: String,
    /// What runs them.
    pub replicas: Arc<Replicas>,
}

impl Models {
    /// Where both models stand, the embedder first.
    pub fn status(&self) -> [ModelStatus; 2] {
        [
            ModelStatus {
                role: Role::Retriever,
                source: self.retriever_source.clone(),
                state: self.retriever.state(),
                revision: self.retriever.get().ok().map(|retriever| retriever.info().revision.clone()),
                reload: self.retriever.reload(),
            },
            ModelStatus {
                role: Role::Reranker,
                source: self.reranker_source.clone(),
                state: self.reranker.state(),
                revision: self.reranker.get().ok().map(|reranker| reranker.info().revision.clone()),
                reload: self.reranker.reload(),
            },
        ]
    }
}
