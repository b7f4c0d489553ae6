//! Where things are kept: embeddings that were computed once, sets of targets, and model folders.
//!
//! [`EmbeddingCache`], [`TargetStore`] and [`ModelStore`] are the contracts; each implementation is one file. A cache is a soft
//! dependency: whatever happens to it, a request is still answered, so its reads have misses and no errors, and its
//! writes happen off the request's path.
//!
//! | | |
//! |---|---|
//! | [`MemoryCache`] | bounded, least recently used goes first |
//! | [`RedbCache`] | a file on this machine, bounded, oldest goes first |
//! | `DynamoCache` | a table of DynamoDB, shared by replicas (feature `aws`) |
//! | [`TieredCache`] | memory in front of a slower store |
//! | [`NoCache`] | keeps nothing |
//! | [`TargetSets`] | sets of target embeddings that clients named, each a mapped file |
//! | `SharedTargets` | the same in S3, for all replicas, with copies on this machine |
//! | [`Vector`] | what is cached: floats, and the bytes that they are sent as |
//! | [`LocalModels`] | model folders under a root folder |
//! | `HubModels` | model folders of a model hub, downloaded (feature `hub`) |
//! | `S3Models` | models in a bucket of S3, kept in a folder (feature `aws`) |
//! | [`DigestMemo`] | content digests of large files, computed once |
//!
//! Deliberately absent: HTTP, model formats, and any idea of what an embedding means.

#![deny(unsafe_code)]

#[cfg(feature = "aws")]
mod aws;
mod cache;
mod chain;
mod digest;
#[cfg(feature = "hub")]
mod hub;
mod key;
mod local;
mod memory;
mod model_store;
mod off;
pub mod record;
mod redb_store;
mod targets;
#[cfg(test)]
mod testing;
mod tiered;
mod vector;
mod waiting;

#[cfg(feature = "aws")]
pub use aws::{
    Arriving, AwsConfig, Created, DynamoCache, DynamoOptions, EmbeddingTable, Fetched, ItemDtype, ItemKind, Purged,
    S3Models, S3Options, Sample, SharedTargets, TableError, TableStats, Ttl, aws_config,
};
pub use cache::{CacheStats, Circuit, EmbeddingCache};
pub use chain::error_chain;
pub use digest::{DigestMemo, digest_bytes};
#[cfg(feature = "hub")]
pub use hub::{HUB_ENDPOINT, HubModels, HubName, HubOptions};
pub use key::{CacheKey, CacheKeyBuilder};
pub use local::LocalModels;
pub use memory::MemoryCache;
pub use model_store::{FetchProgress, ModelStore, ModelStoreError, Progress};
pub use off::NoCache;
pub use redb_store::{OpenError, RedbCache, RedbOptions};
#[cfg(feature = "fuzz")]
pub use targets::fuzz;
pub use targets::{
    SetDtype, SetInfo, SetList, SetName, SetNameError, SetWriter, TargetError, TargetOptions, TargetSet, TargetSets,
    TargetStore,
};
pub use tiered::TieredCache;
pub use vector::{FORMS, Vector};
