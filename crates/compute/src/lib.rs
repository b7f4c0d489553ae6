//! Numerical building blocks of the transformer encoders, and the devices that run them.
//!
//! A model is written once, over [`Backend`]; a device implements [`Backend`] once, for every model.
//! Sequences are packed end to end ([`PackedBatch`]): there is no padding and no padding mask anywhere.
//!
//! Three implementations are planned by the architecture: [`mod@reference`] (plain scalar f32, the judge of the
//! others), [`cpu`] (SIMD picked at run time, weights prepacked at load) and, in time, CUDA. All of them pass the same
//! [`conformance`] cases.
//!
//! Deliberately absent: model names and configurations (crate `nexus-models`), tokenization, queues, files, HTTP.

#![deny(unsafe_code)]

mod backend;
mod batch;
mod check;
pub mod conformance;
pub mod cpu;
pub mod cuda;
mod packed;
pub mod reference;
mod rope;
mod tensor;

pub use backend::{Activation, Backend, ComputeError, HeadNorms, Heads, Mask, Norm, NormKind, Pooling, Result};
pub use batch::{BatchError, PackedBatch};
pub use packed::{PACKED_ALIGNMENT_BYTES, Packed, SharedBytes};
pub use tensor::{DType, TensorView};
