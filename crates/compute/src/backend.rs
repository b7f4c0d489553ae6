//! The contract between models and devices.

use crate::{Packed, PackedBatch, TensorView};
use thiserror::Error;

/// Result of a device operation.
pub type Result<T, E = ComputeError> = std::result::Result<T, E>;

/// What can go wrong on a device.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ComputeError {
    /// Shapes that do not fit together: a mistake of the caller, never of the data.
    #[error("{op}: {detail}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// What does not fit.
        detail: String,
    },
    /// A token id at or beyond the number of rows of the embedding table.
    #[error("token id {id} is outside the embedding table of {rows} rows")]
    TokenOutOfRange {
        /// The offending id.
        id: u32,
        /// Rows of the table.
        rows: usize,
    },
    /// A sequence longer than the rotary table that was prepared.
    #[error("a sequence of {tokens} tokens is longer than the {positions} positions prepared")]
    SequenceTooLong {
        /// Length of the sequence.
        tokens: usize,
        /// Positions prepared.
        positions: usize,
    },
    /// The device has too little memory for the operation.
    #[error("out of device memory: {0}")]
    OutOfMemory(String),
    /// The device failed; it can not be expected to work again.
    #[error("device failure: {0}")]
    Device(String),
    /// The device failed in a way that its vendor documents as fatal to the whole process: other devices may go on, and
    /// may not.
    #[error("device failure that may be of the whole process: {0}")]
    Process(String),
}

impl ComputeError {
    /// Whether the device is at fault, and can not be expected to work again.
    pub fn is_device_failure(&self) -> bool {
        matches!(self, Self::Device(_) | Self::Process(_))
    }
}

/// Shape of multi-head attention. Grouped-query attention has fewer key/value heads than query heads.
///
/// A fused projection has rows of `(query + 2 * key_value) * dim` floats: all query heads, then all key heads, then all
/// value heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key heads, as many as value heads; divides `query`.
    pub key_value: usize,
    /// Floats per head.
    pub dim: usize,
}

impl Heads {
    /// Columns of the fused query-key-value projection.
    pub const fn fused_columns(&self) -> usize {
        (self.query + 2 * self.key_value) * self.dim
    }

    /// Columns of the attention output.
    pub const fn output_columns(&self) -> usize {
        self.query * self.dim
    }
}

/// Which keys a query may attend to, within its own sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Keys at or before the query.
    Causal,
    /// Every key.
    Full,
    /// Keys `j` with `|i - j| <= n` for a query at `i`.
    Window(usize),
}

/// Which normalization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x^2) + eps)` (Zhang and Sennrich 2019, <https://arxiv.org/abs/1910.07467>).
    Rms,
    /// `(x - mean(x)) / sqrt(var(x) + eps)`, variance over n (Ba et al. 2016, <https://arxiv.org/abs/1607.06450>).
    Layer,
}

/// A normalization over rows with its learned scale and optional shift; `V` is the backend's prepared vector.
#[derive(Clone, Debug)]
pub struct Norm<V> {
    /// RMS or layer norm.
    pub kind: NormKind,
    /// Scale, one float a column.
    pub weight: V,
    /// Shift, one float a column.
    pub bias: Option<V>,
    /// Added to the mean square or variance.
    pub eps: f32,
}

/// The norms of query heads and of key heads.
pub type HeadNorms<'a, V> = (&'a Norm<V>, &'a Norm<V>);

/// Nonlinearities, exact as the reference implementations define them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `0.5 x (1 + erf(x / sqrt 2))`: the exact form, not the tanh approximation.
    Gelu,
}

/// How the rows of a sequence become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first row (`cls`).
    First,
    /// The last row.
    Last,
    /// The mean over all rows, accumulated in f32 or wider.
    Mean,
}

/// A device: how weights are stored on it and how packed activations flow through it.
///
/// Activations ([`Backend::Tensor`]) are matrices of `[rows, columns]`, one row a token of the packed batch. Weights
/// keep the dtype of their file (bf16 or f32; f16 is widened) and every product accumulates in f32.
///
/// There are no default bodies on purpose: a backend that lacks an op does not compile. An op is added only with all its
/// implementations and its conformance cases; past about 20 ops, think again.
///
/// Shapes that do not fit are [`ComputeError::Shape`]; implementations never panic on them.
pub trait Backend: Send + Sync + 'static {
    /// Prepared weight of a linear layer, bias included.
    type Linear: Send + Sync;
    /// Prepared embedding table.
    type Table: Send + Sync;
    /// Prepared f32 vector: norm scales and shifts.
    type Vector: Send + Sync;
    /// Prepared rotary table.
    type Rope: Send + Sync;
    /// A packed batch on the device.
    type Batch: Send;
    /// Activations on the device, `[rows, columns]`.
    type Tensor: Send;
    /// What [`Backend::run`] remembers of a model's forward passes; a model has one, and it goes with the model.
    type Recording: Default + Send + Sync;

    /// What this device is, for people: `cpu (avx512, 2 threads)`.
    fn name(&self) -> String;

    /// The format in which activations are stored and multiplied: `f32`, `bf16`. Vectors computed in another are others.
    fn numeric_format(&self) -> &'static str;

    /// Numbers of tokens, at most `tokens_max` each, with which a model has to be run once before it serves, so that
    /// whatever is chosen or allocated by size is there. Empty where nothing is.
    fn warm_up_tokens(&self, tokens_max: usize) -> Vec<usize>;

    /// Bytes of memory that this device has in all; `None` where it has none of its own.
    fn memory_bytes(&self) -> Option<u64>;

    /// Bytes of memory that further weights could take on this device now; `None` where that is not known.
    fn memory_bytes_free(&self) -> Option<u64>;

    /// Prepares a linear layer `y = x W^T + b`. Each part is a weight of `[out_i, in]`; the parts are stacked along
    /// `out`, so that several projections of one input are one product. `bias` is empty, or has one vector of
    /// `[out_i]` a part.
    fn prepare_linear(&self, parts: &[TensorView<'_>], bias: &[TensorView<'_>]) -> Result<Self::Linear>;

    /// Prepares an embedding table of `[vocabulary, columns]`.
    fn prepare_table(&self, table: &TensorView<'_>) -> Result<Self::Table>;

    /// The name of the layout in which this device keeps linear layers and tables, where what it keeps can lie in a file:
    /// another layout has another name. `None` where weights are only prepared from tensors.
    fn packed_layout(&self) -> Option<String>;

    /// A prepared linear layer without its bias as bytes. `None` where there is no layout.
    fn packed_linear(&self, weight: &Self::Linear) -> Option<Packed>;

    /// A prepared table as bytes. `None` where there is no layout.
    fn packed_table(&self, table: &Self::Table) -> Option<Packed>;

    /// The linear layer that [`Backend::packed_linear`] gave, of a device of the same layout, with `bias` as in
    /// [`Backend::prepare_linear`]. The bytes are used where they are.
    fn linear_from(&self, packed: &Packed, bias: &[TensorView<'_>]) -> Result<Self::Linear>;

    /// The table that [`Backend::packed_table`] gave, of a device of the same layout. The bytes are used where they are.
    fn table_from(&self, packed: &Packed) -> Result<Self::Table>;

    /// Prepares a one-dimensional vector.
    fn prepare_vector(&self, vector: &TensorView<'_>) -> Result<Self::Vector>;

    /// Prepares the angles of rotary position embedding (Su et al. 2021, <https://arxiv.org/abs/2104.09864>):
    /// `position * theta^(-2i / dim)` for `i < dim / 2`, positions below `positions`, computed in f32 or wider as the
    /// reference implementation does.
    fn prepare_rope(&self, theta: f32, dim: usize, positions: usize) -> Result<Self::Rope>;

    /// Brings a packed batch to the device.
    fn upload(&self, batch: &PackedBatch) -> Result<Self::Batch>;

    /// Runs `forward` on `batch` and brings what it gives to the host, as [`Backend::download`] does.
    ///
    /// `forward` computes one row a sequence, of sequences that do not see each other, and depends on nothing but the
    /// batch it is given and what `recording` belongs to. So a device may give it a batch with more sequences than
    /// `batch` has, whose rows it drops, and may replay what it recorded of a batch of the same size.
    fn run(
        &self,
        recording: &Self::Recording,
        batch: &PackedBatch,
        forward: &(dyn Fn(&Self::Batch) -> Result<Self::Tensor> + Sync),
    ) -> Result<Vec<f32>>;

    /// Rows of `table` for the tokens of the batch, each normalized if there is a norm: `[rows, columns]`, what a residual
    /// stream begins with.
    fn embed(
        &self,
        table: &Self::Table,
        norm: Option<&Norm<Self::Vector>>,
        batch: &Self::Batch,
    ) -> Result<Self::Tensor>;

    /// `x W^T + b`: `[rows, in]` to `[rows, out]`.
    fn linear(&self, x: &Self::Tensor, weight: &Self::Linear) -> Result<Self::Tensor>;

    /// `residual += x W^T + b`.
    fn linear_add(&self, x: &Self::Tensor, weight: &Self::Linear, residual: &mut Self::Tensor) -> Result<()>;

    /// Normalizes each row.
    fn norm(&self, x: &Self::Tensor, norm: &Norm<Self::Vector>) -> Result<Self::Tensor>;

    /// In the fused projection `qkv` of `[rows, heads.fused_columns()]`: optionally normalizes every query head by
    /// `norms.0` and every key head by `norms.1` (RMS over `heads.dim`), then rotates both by the position of the
    /// row within its sequence, halves paired (`x[i]`, `x[i + dim/2]`). Values are left alone.
    fn qk_norm_rope(
        &self,
        qkv: &mut Self::Tensor,
        heads: Heads,
        norms: Option<HeadNorms<'_, Self::Vector>>,
        rope: &Self::Rope,
        batch: &Self::Batch,
    ) -> Result<()>;

    /// Scaled dot-product attention (scale `1 / sqrt(heads.dim)`) within each sequence:
    /// `[rows, heads.fused_columns()]` to `[rows, heads.output_columns()]`. Query head `h` reads key/value head
    /// `h / (heads.query / heads.key_value)`.
    fn attention(&self, qkv: &Self::Tensor, heads: Heads, mask: Mask, batch: &Self::Batch) -> Result<Self::Tensor>;

    /// Gated activation: `[rows, 2n]` to `[rows, n]`, `activation(first half) * second half`.
    fn gated_act(&self, x: &Self::Tensor, activation: Activation) -> Result<Self::Tensor>;

    /// Applies `activation` to every element.
    fn activation(&self, x: &mut Self::Tensor, activation: Activation) -> Result<()>;

    /// One row a sequence: `[rows, columns]` to `[sequences, columns]`.
    fn pool(&self, x: &Self::Tensor, pooling: Pooling, batch: &Self::Batch) -> Result<Self::Tensor>;

    /// Brings a tensor to the host as f32, row-major.
    fn download(&self, x: &Self::Tensor) -> Result<Vec<f32>>;
}
