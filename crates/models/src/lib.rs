//! The model families, written once over [`nexus_compute::Backend`], and everything needed to load them exactly:
//! files, weights, configurations, tokenizers.
//!
//! One file per architecture ([`qwen3`], [`modernbert`]); [`registry`] picks it by `config.json`. Whatever does not fit
//! (a missing tensor, another shape, an unknown variant of the architecture) stops the load with an error that names
//! file and tensor: nothing is replaced by a default.
//!
//! Deliberately absent: devices (crate `nexus-compute`), queues and threads (crate `nexus-engine`), downloading.

#![deny(unsafe_code)]

pub mod config;
mod error;
mod files;
pub mod modernbert;
mod packed_weights;
pub mod qwen3;
pub mod registry;
mod tokenizer;
mod weights;

pub use error::LoadError;
pub use files::{ModelFiles, WaitForFile};
pub use packed_weights::{PackedFileError, PackedWeights, PackedWriter};
pub use registry::{
    LoadOptions, LoadedEmbedder, LoadedReranker, MemoryNeed, embedder_memory, load_embedder, load_reranker,
    reranker_memory,
};
pub use tokenizer::{EncodeError, TextTokenizer};
pub use weights::Weights;

use nexus_compute::{ComputeError, PackedBatch};

/// A model on a device: packed token sequences in, one row of floats a sequence out.
///
/// For an embedder the row is the pooled hidden state, not yet normalized; for a reranker it is one logit.
pub trait PackedModel: Send + Sync {
    /// Floats per sequence.
    fn output_columns(&self) -> usize;

    /// Runs the model. Returns `[sequences, output_columns]`, row-major.
    fn forward(&self, batch: &PackedBatch) -> Result<Vec<f32>, ComputeError>;
}
