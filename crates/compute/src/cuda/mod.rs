//! NVIDIA GPUs as a [`Backend`](crate::Backend): weights and activations in bf16, everything accumulated in f32, the residual
//! stream in f32.
//!
//! Nothing of CUDA is needed to build or to start: driver, compiler (NVRTC) and products (cuBLASLt) are opened at run time
//! where they are found. Kernels are this project's own, in `kernels/`, and are compiled for the device that is found.
//!
//! Deliberately absent: which device a process uses, and what happens when one fails; those who own devices decide.

mod backend;
mod device;
mod gpu;
pub mod kernels;
mod search;

pub use backend::{Batch, Cuda, CudaOptions, Linear, Matrix, Recording, Rope, Tensor, Vector};
pub use device::{Absent, Compiled, Compiler, Device, DeviceOptions, Found, Graph, Usage, find, row_buckets};
pub use gpu::{Address, Arg, Format, Gpu, Launch, Product};
pub use search::{Candidates, DeviceRows};
