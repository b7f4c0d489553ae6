//! From texts to vectors and scores: tokenization, packing, queueing, replicas, background loading.
//!
//! [`Retriever`] and [`Reranker`] are the seams: whatever can embed or score can stand behind them. [`Engine`] loads
//! models in the background and hands out the ones that are ready; its [`Reloader`] puts new revisions in their place.
//!
//! Deliberately absent: HTTP and its schemas, environment variables, where models come from (the caller gives
//! [`ModelSource`]s), and what a device does.

#![forbid(unsafe_code)]

mod arrival;
mod budget;
mod cached;
mod caller;
mod coming;
mod contract;
mod devices;
mod engine;
mod kept;
mod loaded;
mod loader;
mod local;
mod models;
mod observer;
mod packer;
mod placing;
mod probe;
mod queue;
mod reload;
mod replica;
mod replicas;
mod revision;
mod rolling;
mod slot;
mod source;
mod waits;

pub use arrival::Arrival;
pub use caller::{on_behalf_of, within};
pub use contract::{EmbedItem, Embedding, EngineError, Reranker, RerankerInfo, Retriever, RetrieverInfo};
pub use devices::Devices;
pub use engine::{Engine, EngineOptions};
pub use models::Models;
pub use observer::{Observer, RanBatch, Stage, Unobserved};
pub use queue::QueueView;
pub use reload::{Outcome, ReloadRefused, Reloaded, Reloader};
pub use replicas::{DeviceMemory, ReplicaCounts, ReplicaState, ReplicaStatus, Replicas};
pub use revision::{Digests, Revision};
pub use slot::{ModelState, ModelStatus, ReloadState, Role, Slot};
pub use source::{BoxError, ComputeDigests, ModelSource, OpenModel, OpenedModel, Progress};
pub use waits::QueueWaits;

#[cfg(test)]
#[path = "../tests/simulation/mod.rs"]
mod simulation;
