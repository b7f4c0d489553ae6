//! CUDA kernels executed on the CPU, thread by thread, for tests on machines without a GPU.
//!
//! [`Emulated`] is a [`Gpu`](nexus_compute::cuda::Gpu) whose kernels are this project's sources, compiled as C++ with another
//! prelude: the threads of a block are fibers that wait for each other at barriers, and matrix instructions exchange registers
//! between lanes as the PTX ISA lays them out. A launch fails where a barrier is not reached by all, where lanes are missing,
//! and where shared memory is left; an access outside of an allocation ends the process with the kernel's name. Fresh memory
//! is NaN, asynchronous copies happen when they are waited for, and blocks run from the last to the first.
//!
//! Deliberately absent: time. What is fast here says nothing about a GPU. Nor is this a judge of races that only happen when
//! warps run at once.

#![deny(unsafe_code)]

mod emulated;
mod launch;
mod memory;
mod product;

pub use emulated::{Counts, Emulated, Graph};
