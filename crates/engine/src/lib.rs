//! From texts to vectors and scores: tokenization, packing, queueing, replicas, background loading.
//!
//! [`Retriever`] and [`Reranker`] are the seams: whatever can embed or score can stand behind them. [`Engine`] loads
//! models in the background and hands out the ones that are ready.
//!
//! Deliberately absent: HTTP and its schemas, environment variables, where models come from (the caller gives
//! [`ModelSource`]s), and what a device does.

#![forbid(unsafe_code)]

mod cached;
mod contract;
mod engine;
mod local;
mod models;
mod packer;
mod queue;
mod replica;
mod slot;

pub use contract::{EmbedItem, Embedding, EngineError, Reranker, RerankerInfo, Retriever, RetrieverInfo};
pub use engine::{BoxError, Engine, EngineOptions, ModelSource, OpenModel, OpenedModel, Progress};
pub use models::Models;
pub use slot::{ModelState, ModelStatus, Role, Slot};
