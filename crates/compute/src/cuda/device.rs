//! A GPU by NVIDIA's libraries, opened at run time.

use super::gpu::{Address, Gpu, Launch, Product};
use crate::{ComputeError, Result};
use std::path::PathBuf;
use thiserror::Error;

/// Why no GPU can be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Absent {
    /// A library is missing, or is not what it should be.
    #[error("{0}")]
    Library(String),
}

/// A GPU that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its number, as `NEXUS_DEVICE=cuda:0` names it.
    pub ordinal: usize,
    /// Its name, by its driver: `NVIDIA A10G`.
    pub name: String,
    /// Compute capability, major and minor: `(8, 6)`.
    pub capability: (u32, u32),
    /// Bytes of its memory.
    pub memory_bytes: u64,
}

impl Found {
    /// Whether the kernels run on it: compute capability 8.0 or newer.
    pub fn is_supported(&self) -> bool {
        self.capability >= (8, 0)
    }
}

/// How a GPU is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Where compiled kernels are kept for the next start; nowhere when `None`.
    pub kernel_cache: Option<PathBuf>,
}

/// Looks for GPUs. Never panics, whatever is installed.
pub fn find() -> Result<Vec<Found>, Absent> {
    Err(Absent::Library("CUDA is not looked for yet".into()))
}

/// An open GPU.
#[derive(Debug)]
pub struct Device(());

impl Device {
    /// Opens the GPU with this number, and compiles the kernels for it where that was not done before: seconds, the first time.
    pub fn open(_: usize, _: &DeviceOptions) -> Result<Self> {
        Err(ComputeError::Device("CUDA is not looked for yet".into()))
    }
}

impl Gpu for Device {
    type Graph = ();

    fn name(&self) -> String {
        String::new()
    }

    fn row_buckets(&self, rows_max: usize) -> Vec<usize> {
        vec![rows_max]
    }

    fn memory_bytes_free(&self) -> Result<u64> {
        Ok(0)
    }

    fn allocate(&self, _: usize) -> Result<Address> {
        Ok(Address::NULL)
    }

    fn free(&self, _: Address) {}

    fn fill(&self, _: Address, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn write(&self, _: Address, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn read(&self, _: Address, _: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn launch(&self, _: &Launch<'_>) -> Result<()> {
        Ok(())
    }

    fn multiply(&self, _: &Product) -> Result<()> {
        Ok(())
    }

    fn record(&self, _: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        Ok(())
    }

    fn replay(&self, (): &()) -> Result<()> {
        Ok(())
    }
}
