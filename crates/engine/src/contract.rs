//! The two seams: embed texts, score candidates.

use crate::Revision;
use futures::future::BoxFuture;
use nexus_storage::Vector;
use std::sync::Arc;
use thiserror::Error;

/// Why the engine did not answer. `Overloaded`, `ShuttingDown` and `Device` are worth another try, later or elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EngineError {
    /// The request itself can not be answered; the message says why, `field` and `index` where.
    #[error("{message}")]
    Invalid {
        /// Name of the offending field, as in the API: `dimensions`, `candidates`.
        field: &'static str,
        /// Position of the item or candidate at fault; `None` when it is not one of many.
        index: Option<usize>,
        /// What is wrong with it and what would be right.
        message: String,
    },
    /// The queue is full.
    #[error("{}; try again in {retry_after_s} s", full(.by_client))]
    Overloaded {
        /// Whether it is full for this client alone, which has its part of it.
        by_client: bool,
        /// When to try again, in seconds.
        retry_after_s: u64,
    },
    /// Its time was over before it was its turn.
    #[error("there was no time left when it was its turn")]
    Expired,
    /// The process is shutting down.
    #[error("the service is shutting down")]
    ShuttingDown,
    /// Its device failed, and so did another, or there is none left.
    #[error("{0}")]
    Device(String),
    /// The model or its device failed on this input: a non-finite output, a device error.
    #[error("{0}")]
    Model(String),
}

fn full(by_client: &bool) -> &'static str {
    if *by_client { "this client has too many tokens in the queue" } else { "the queue is full" }
}

/// One text to embed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbedItem {
    /// The text; never empty.
    pub text: String,
    /// A task description for queries, wrapped around the text the way the model expects.
    pub instruction: Option<Arc<str>>,
    /// Matryoshka: keep this many leading components, then normalize. `None` keeps all.
    pub dimensions: Option<usize>,
}

/// One embedded text.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// Unit length, finite.
    pub vector: Vector,
    /// Whether the vector came from the cache. A request that waited for an identical one in flight reports `false`.
    pub cache_hit: bool,
}

/// What a retriever is, for people and for validation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetrieverInfo {
    /// Name of the model.
    pub model: String,
    /// Which revision of it.
    pub revision: Revision,
    /// Floats in a full vector.
    pub dimensions: usize,
    /// Tokens beyond which a text is truncated.
    pub window_tokens: usize,
}

/// What a reranker is, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RerankerInfo {
    /// Name of the model.
    pub model: String,
    /// Which revision of it.
    pub revision: Revision,
    /// Tokens beyond which a pair is truncated.
    pub window_tokens: usize,
}

/// Turns texts into vectors.
pub trait Retriever: Send + Sync + 'static {
    /// What this retriever is.
    fn info(&self) -> &RetrieverInfo;

    /// Embeds `items`, in order. Dropping the future gives up the work that has not started.
    fn embed(&self, items: Vec<EmbedItem>) -> BoxFuture<'_, Result<Vec<Embedding>, EngineError>>;
}

/// Scores candidates against a source.
pub trait Reranker: Send + Sync + 'static {
    /// What this reranker is.
    fn info(&self) -> &RerankerInfo;

    /// The score of each candidate, in order: `sigmoid(logit)`, in 0..=1. Dropping the future gives up the work that
    /// has not started.
    fn score(&self, source: String, candidates: Vec<String>) -> BoxFuture<'_, Result<Vec<f32>, EngineError>>;
}
