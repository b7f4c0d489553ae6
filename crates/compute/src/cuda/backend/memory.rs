//! Memory of a device: what weights own, and the workspace that activations are leased from.
//!
//! A buffer that is given back serves the next lease that fits it, so that a device allocates while it is warmed up and not
//! while it serves. Work is done in order, so a buffer may be leased again while the work that wrote it is still to come.

use crate::cuda::gpu::{Address, Gpu};
use crate::{ComputeError, Result};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Device memory that is given back when this is dropped.
#[derive(Debug)]
pub(in crate::cuda) struct Owned<G: Gpu> {
    gpu: Arc<G>,
    address: Address,
}

impl<G: Gpu> Owned<G> {
    pub(in crate::cuda) fn new(gpu: &Arc<G>, bytes: usize) -> Result<Self> {
        Ok(Self { gpu: gpu.clone(), address: gpu.allocate(bytes)? })
    }

    pub(in crate::cuda) fn address(&self) -> Address {
        self.address
    }
}

impl<G: Gpu> Drop for Owned<G> {
    fn drop(&mut self) {
        self.gpu.free(self.address);
    }
}

/// Buffers for activations.
#[derive(Debug)]
pub(in crate::cuda) struct Workspace<G: Gpu> {
    gpu: Arc<G>,
    /// By bytes.
    idle: Mutex<BTreeMap<usize, Vec<Address>>>,
    /// Rises whenever idle buffers are given back to the device: addresses that were recorded before may be stale.
    epoch: AtomicU64,
}

/// A buffer of the workspace, until it is dropped.
#[derive(Debug)]
pub(in crate::cuda) struct Leased<G: Gpu> {
    workspace: Arc<Workspace<G>>,
    address: Address,
    bytes: usize,
}

impl<G: Gpu> Workspace<G> {
    pub(in crate::cuda) fn new(gpu: Arc<G>) -> Arc<Self> {
        Arc::new(Self { gpu, idle: Mutex::default(), epoch: AtomicU64::new(0) })
    }

    /// A buffer of at least `bytes`: the smallest idle one that fits, else a new one.
    pub(in crate::cuda) fn lease(self: &Arc<Self>, bytes: usize) -> Result<Leased<G>> {
        let bytes = rounded(bytes);
        let found = {
            let mut idle = self.idle();
            let found = idle.range_mut(bytes..).find_map(|(&bytes, buffers)| Some((buffers.pop()?, bytes)));
            if let Some((_, bytes)) = found
                && idle.get(&bytes).is_some_and(Vec::is_empty)
            {
                idle.remove(&bytes);
            }
            found
        };
        let (address, bytes) = match found {
            Some(found) => found,
            None => (self.allocate(bytes)?, bytes),
        };
        Ok(Leased { workspace: self.clone(), address, bytes })
    }

    /// What it was when [`Workspace::lease`] gave a buffer whose address is remembered.
    pub(in crate::cuda) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        match self.gpu.allocate(bytes) {
            Err(ComputeError::OutOfMemory(_)) if self.trim() => self.gpu.allocate(bytes),
            allocated => allocated,
        }
    }

    /// Gives idle buffers back to the device: they may be of sizes that are asked for no more. False where there is none.
    fn trim(&self) -> bool {
        let idle = std::mem::take(&mut *self.idle());
        if idle.is_empty() {
            return false;
        }
        self.epoch.fetch_add(1, Ordering::SeqCst);
        idle.into_values().flatten().for_each(|address| self.gpu.free(address));
        true
    }

    fn idle(&self) -> MutexGuard<'_, BTreeMap<usize, Vec<Address>>> {
        // Nothing panics while it is held.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<G: Gpu> Drop for Workspace<G> {
    fn drop(&mut self) {
        self.trim();
    }
}

impl<G: Gpu> Leased<G> {
    pub(in crate::cuda) fn address(&self) -> Address {
        self.address
    }
}

impl<G: Gpu> Drop for Leased<G> {
    fn drop(&mut self) {
        self.workspace.idle().entry(self.bytes).or_default().push(self.address);
    }
}

/// Sizes in steps of an eighth, so that batches of about the same size share buffers.
fn rounded(bytes: usize) -> usize {
    let step = (bytes.next_power_of_two() / 8).max(256);
    bytes.max(1).next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_by_an_eighth_at_most() {
        for (bytes, expected) in [(0, 256), (1, 256), (257, 512), (4096, 4096), (4097, 5120), (100_000, 114_688)] {
            assert_eq!(rounded(bytes), expected, "{bytes}");
        }
        for bytes in (1..3_000_000usize).step_by(977) {
            assert!(rounded(bytes) >= bytes && rounded(bytes) <= bytes + bytes / 4 + 256, "{bytes}");
        }
    }
}
