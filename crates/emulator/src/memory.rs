//! Device memory: host memory with guards around each allocation.

#![allow(unsafe_code)]

use nexus_compute::cuda::Address;
use nexus_compute::{ComputeError, Result};
use std::collections::BTreeMap;
use std::ffi::c_void;

unsafe extern "C" {
    fn nexus_emulator_allocate(bytes: usize) -> *mut c_void;
    fn nexus_emulator_free(memory: *mut c_void, bytes: usize);
}

/// What is allocated.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Bytes by address.
    held: BTreeMap<u64, usize>,
    pub(crate) bytes: usize,
    pub(crate) bytes_max: Option<usize>,
}

impl Memory {
    pub(crate) fn allocate(&mut self, bytes: usize) -> Result<Address> {
        let free = self.bytes_max.map(|most| most.saturating_sub(self.bytes));
        if free.is_some_and(|free| free < bytes) {
            return Err(ComputeError::OutOfMemory(format!("{bytes} bytes where {} are free", free.unwrap_or(0))));
        }
        // SAFETY: it takes any number of bytes.
        let memory = unsafe { nexus_emulator_allocate(bytes) };
        assert!(!memory.is_null(), "the machine has memory for {bytes} bytes");
        self.bytes += bytes;
        self.held.insert(memory as u64, bytes);
        Ok(Address(memory as u64))
    }

    pub(crate) fn free(&mut self, address: Address) {
        let bytes = self.held.remove(&address.0).expect("memory is given back once, and only what was taken");
        self.bytes -= bytes;
        // SAFETY: it was allocated with as many bytes, and nobody has it any more.
        unsafe { nexus_emulator_free(address.0 as *mut c_void, bytes) };
    }

    /// The bytes at `address`, which have to lie within one allocation.
    pub(crate) fn slice(&self, address: Address, bytes: usize) -> &[u8] {
        self.check(address, bytes);
        // SAFETY: they are within an allocation, which lives as long as this does not change.
        unsafe { std::slice::from_raw_parts(address.0 as *const u8, bytes) }
    }

    /// The same, to be written.
    pub(crate) fn slice_mut(&mut self, address: Address, bytes: usize) -> &mut [u8] {
        self.check(address, bytes);
        // SAFETY: as above, and `self` is borrowed for as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(address.0 as *mut u8, bytes) }
    }

    fn check(&self, address: Address, bytes: usize) {
        let held = self.held.range(..=address.0).next_back();
        let fits = held.is_some_and(|(start, held)| address.0 + bytes as u64 <= start + *held as u64);
        assert!(fits, "{bytes} bytes at {:#x} are not within an allocation", address.0);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for address in self.held.keys().copied().collect::<Vec<_>>() {
            self.free(Address(address));
        }
    }
}
