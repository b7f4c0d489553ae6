//! What the backend needs of a GPU: memory, kernels, products, recordings. Nothing here names a library.
//!
//! Two implementations exist: [`Device`](super::Device) drives NVIDIA's libraries, and the crate `nexus-emulator` executes
//! the same kernel sources on the CPU, thread by thread, so that everything above this line is tested on machines without
//! a GPU.

use super::kernels::Kernel;
use crate::Result;

/// An address in the memory of a device, aligned to 256 bytes where it is what [`Gpu::allocate`] gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(pub u64);

impl Address {
    /// Where there is nothing: an argument that a kernel takes as absent.
    pub const NULL: Self = Self(0);

    /// The address `bytes` further on.
    pub const fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// How the elements of an activation are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// bfloat16: what products read.
    Bf16,
    /// binary32: the residual stream, and what is small.
    F32,
}

impl Format {
    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// A pointer.
    Address(Address),
    /// An `int`.
    I32(i32),
    /// A `float`.
    F32(f32),
}

/// A kernel with its grid and its arguments, in the order of its signature.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Which kernel; it knows its threads a block and its dynamic shared memory.
    pub kernel: Kernel,
    /// Blocks along x, y and z; none is 0.
    pub grid: [u32; 3],
    /// The arguments.
    pub args: &'a [Arg],
}

/// A matrix product `y = x W^T`, or `y += x W^T`: x of `[rows, in]` and W of `[out, in]` in bf16, all row-major without
/// gaps, accumulated in f32. `in_columns` and `out_columns` are multiples of 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    /// `[rows, in_columns]`, bf16.
    pub x: Address,
    /// `[out_columns, in_columns]`, bf16.
    pub weight: Address,
    /// `[rows, out_columns]`.
    pub y: Address,
    /// Rows of x and y.
    pub rows: usize,
    /// Columns of x and of the weight.
    pub in_columns: usize,
    /// Columns of y, rows of the weight.
    pub out_columns: usize,
    /// How y is stored.
    pub format: Format,
    /// Whether the product is added to what is in y.
    pub accumulate: bool,
}

/// A GPU. Work is done in the order in which it was asked for; calls return before it is done unless they say otherwise.
/// Safe to call from several threads: each call is whole, and what belongs together is kept together by the caller.
///
/// # Errors
///
/// [`ComputeError::OutOfMemory`](crate::ComputeError::OutOfMemory) where memory is missing, and after which the device works
/// on; [`ComputeError::Device`](crate::ComputeError::Device) and [`ComputeError::Process`](crate::ComputeError::Process)
/// where it does not. An error may be that of work that was asked for earlier.
pub trait Gpu: std::fmt::Debug + Send + Sync + 'static {
    /// Work that was recorded, to be done again.
    type Graph: std::fmt::Debug + Send + Sync;

    /// For people: `cuda:0 (NVIDIA A10G, sm_86)`.
    fn name(&self) -> String;

    /// Numbers of rows, rising, up to `rows_max` and with it as the last: after a product with each of them, nothing is left
    /// to be chosen for products of any number of rows up to there.
    fn row_buckets(&self, rows_max: usize) -> Vec<usize>;

    /// Bytes of device memory in all.
    fn memory_bytes(&self) -> Result<u64>;

    /// Bytes of device memory that nobody holds.
    fn memory_bytes_free(&self) -> Result<u64>;

    /// Takes memory, 256-byte aligned; what is in it is undefined. `bytes` is not 0. May wait for the device.
    fn allocate(&self, bytes: usize) -> Result<Address>;

    /// Gives memory back, once all work asked for before is done.
    fn free(&self, address: Address);

    /// Brings weights to the device, beside the work that it does; returns when they are there.
    fn fill(&self, to: Address, bytes: &[u8]) -> Result<()>;

    /// Brings the little that a batch is to the device, in order with its work. `bytes` may be changed afterwards.
    fn write(&self, to: Address, bytes: &[u8]) -> Result<()>;

    /// Brings results to the host, after all work asked for before; waits for them.
    fn read(&self, from: Address, bytes: &mut [u8]) -> Result<()>;

    /// Runs a kernel.
    fn launch(&self, launch: &Launch<'_>) -> Result<()>;

    /// Computes a matrix product.
    fn multiply(&self, product: &Product) -> Result<()>;

    /// Records what `work` asks for by [`Gpu::launch`] and [`Gpu::multiply`], without doing it. `work` calls nothing else of
    /// this trait but [`Gpu::allocate`]. Where it fails, nothing was recorded, and the device works on.
    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Self::Graph>;

    /// Does what was recorded, with what is at the recorded addresses now.
    fn replay(&self, graph: &Self::Graph) -> Result<()>;
}
