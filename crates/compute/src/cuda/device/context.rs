//! The context of a GPU and what lives in it: streams, events, page-locked host memory, device memory. Each gives itself back
//! when it is dropped, in whichever thread that is, and keeps the context alive until then.
//!
//! Deliberately absent: what is done with them.

#![allow(unsafe_code)]

use super::error::{OUT_OF_MEMORY, driver_error};
use super::library::Driver;
use super::probe::{self, Found};
use crate::{ComputeError, Result};
use cudarc::driver::sys;
use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

/// A GPU's primary context, shared by all in this process who open the same GPU.
pub(super) struct Context {
    pub(super) driver: &'static Driver,
    /// `cuda:0 (NVIDIA A10G, sm_86)`.
    pub(super) label: String,
    pub(super) found: Found,
    device: sys::CUdevice,
    raw: sys::CUcontext,
}

// SAFETY: a context is used from any thread that makes it current, which `enter` does before each call.
unsafe impl Send for Context {}
// SAFETY: as above; the driver's calls are safe to make from several threads at once.
unsafe impl Sync for Context {}

impl Context {
    pub(super) fn open(ordinal: usize) -> Result<Arc<Self>> {
        let absent = |absent: probe::Absent| ComputeError::Device(format!("cuda:{ordinal}: {absent}"));
        let (driver, _) = probe::driver().map_err(absent)?;
        let found = probe::describe(driver, ordinal).map_err(absent)?;
        let label = format!("cuda:{ordinal} ({}, sm_{}{})", found.name, found.capability.0, found.capability.1);
        let check = |call, status| match status {
            0 => Ok(()),
            status => Err(driver_error(driver, &label, call, status)),
        };
        let mut device = 0;
        let number = i32::try_from(ordinal).map_err(|_| absent(probe::Absent::NoDevice))?;
        // SAFETY: writes a handle.
        check("cuDeviceGet", unsafe { (driver.cuDeviceGet)(&mut device, number) })?;
        let mut raw = null_mut();
        // SAFETY: writes a handle, which `drop` releases.
        check("cuDevicePrimaryCtxRetain", unsafe { (driver.cuDevicePrimaryCtxRetain)(&mut raw, device) })?;
        Ok(Arc::new(Self { driver, label, found, device, raw }))
    }

    /// An error if `status` is one. `call` names the function, and what it was about.
    pub(super) fn check(&self, call: &str, status: u32) -> Result<()> {
        match status {
            0 => Ok(()),
            status => Err(driver_error(self.driver, &self.label, call, status)),
        }
    }

    /// Makes this context the current one of the calling thread.
    pub(super) fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained as long as `self` lives.
        self.check("cuCtxSetCurrent", unsafe { (self.driver.cuCtxSetCurrent)(self.raw) })
    }

    /// Bytes of memory, free and in all.
    pub(super) fn memory_bytes(&self) -> Result<(usize, usize)> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two sizes.
        self.check("cuMemGetInfo", unsafe { (self.driver.cuMemGetInfo_v2)(&mut free, &mut total) })?;
        Ok((free, total))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once by `open`; everything that lived in the context is gone, since it held an `Arc` of it.
        unsafe { (self.driver.cuDevicePrimaryCtxRelease_v2)(self.device) };
    }
}

/// Work in order. Not ordered with the legacy default stream, which nobody uses.
pub(super) struct Stream {
    context: Arc<Context>,
    raw: sys::CUstream,
}

// SAFETY: a stream is used from any thread in which its context is current.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver orders calls that are made at once.
unsafe impl Sync for Stream {}

impl Stream {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self> {
        context.enter()?;
        let mut raw = null_mut();
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes a handle, which `drop` destroys.
        context.check("cuStreamCreate", unsafe { (context.driver.cuStreamCreate)(&mut raw, flags) })?;
        Ok(Self { context: context.clone(), raw })
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// Waits until all work asked for is done; an error of that work is an error here.
    pub(super) fn synchronize(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the stream is alive.
        self.context.check("cuStreamSynchronize", unsafe { (self.context.driver.cuStreamSynchronize)(self.raw) })
    }

    /// Copies to the device; `from` must stay as it is until this is done.
    ///
    /// # Safety
    ///
    /// `from` is page-locked and of `bytes` at least, until the copy is done; `to` has `bytes` bytes.
    pub(super) unsafe fn copy_to_device(&self, to: u64, from: *const c_void, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        let status = unsafe { (self.context.driver.cuMemcpyHtoDAsync_v2)(to, from, bytes, self.raw) };
        self.context.check(&format!("cuMemcpyHtoDAsync of {bytes} bytes"), status)
    }

    /// Copies to the host.
    ///
    /// # Safety
    ///
    /// `to` is page-locked and of `bytes` at least, until the copy is done; `from` has `bytes` bytes.
    pub(super) unsafe fn copy_to_host(&self, to: *mut c_void, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        let status = unsafe { (self.context.driver.cuMemcpyDtoHAsync_v2)(to, from, bytes, self.raw) };
        self.context.check(&format!("cuMemcpyDtoHAsync of {bytes} bytes"), status)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: created by `new`, destroyed once; the driver finishes work under way by itself.
            unsafe { (self.context.driver.cuStreamDestroy_v2)(self.raw) };
        }
    }
}

/// A point in a stream.
pub(super) struct Event {
    context: Arc<Context>,
    raw: sys::CUevent,
}

// SAFETY: an event is used from any thread in which its context is current.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// One that is only waited for.
    pub(super) fn new(context: &Arc<Context>) -> Result<Self> {
        Self::with_flags(context, sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32)
    }

    /// One that knows its time.
    pub(super) fn timed(context: &Arc<Context>) -> Result<Self> {
        Self::with_flags(context, sys::CUevent_flags_enum::CU_EVENT_DEFAULT as u32)
    }

    fn with_flags(context: &Arc<Context>, flags: u32) -> Result<Self> {
        context.enter()?;
        let mut raw = null_mut();
        // SAFETY: writes a handle, which `drop` destroys.
        context.check("cuEventCreate", unsafe { (context.driver.cuEventCreate)(&mut raw, flags) })?;
        Ok(Self { context: context.clone(), raw })
    }

    /// Puts this point behind all that `stream` was asked for.
    pub(super) fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are alive and of one context.
        self.context.check("cuEventRecord", unsafe { (self.context.driver.cuEventRecord)(self.raw, stream.raw) })
    }

    /// Waits until the work before this point is done, not at all where it was never recorded.
    pub(super) fn synchronize(&self) -> Result<()> {
        // SAFETY: the event is alive.
        self.context.check("cuEventSynchronize", unsafe { (self.context.driver.cuEventSynchronize)(self.raw) })
    }

    /// Milliseconds from `start` to this point, both timed, recorded and waited for.
    pub(super) fn elapsed_ms(&self, start: &Self) -> Result<f32> {
        let mut ms = 0.0;
        // SAFETY: writes a float; both events are alive.
        let status = unsafe { (self.context.driver.cuEventElapsedTime)(&mut ms, start.raw, self.raw) };
        self.context.check("cuEventElapsedTime", status)?;
        Ok(ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: created by `with_flags`, destroyed once; the driver keeps what pending work needs.
            unsafe { (self.context.driver.cuEventDestroy_v2)(self.raw) };
        }
    }
}

/// Page-locked host memory: what the device copies to and from without the processor.
pub(super) struct Pinned {
    context: Arc<Context>,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it is memory that this value owns.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        context.enter()?;
        let mut start = null_mut();
        // SAFETY: writes a pointer, which `drop` frees. No flags: cached, so that reading it is fast too.
        let status = unsafe { (context.driver.cuMemHostAlloc)(&mut start, bytes, 0) };
        if status == OUT_OF_MEMORY {
            // Of the host's memory: to halve a batch would not help.
            let what = format!("{}: the host has no {bytes} bytes of memory that can be page-locked", context.label);
            return Err(ComputeError::Device(format!("{what}: see ulimit -l and the memory limit of the container")));
        }
        context.check(&format!("cuMemHostAlloc of {bytes} bytes"), status)?;
        let start = NonNull::new(start.cast())
            .ok_or_else(|| ComputeError::Device(format!("{}: cuMemHostAlloc gave no address", context.label)))?;
        // SAFETY: `bytes` bytes that nobody else knows. Zeroed so that they are initialized for `slice`.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Self { context: context.clone(), start, bytes })
    }

    pub(super) fn pointer(&self) -> *mut c_void {
        self.start.as_ptr().cast()
    }

    /// Its bytes; the caller has waited for copies from and to it.
    pub(super) fn slice(&mut self) -> &mut [u8] {
        // SAFETY: initialized memory of this length, owned by `self`.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: allocated by `new`, freed once.
            unsafe { (self.context.driver.cuMemFreeHost)(self.pointer()) };
        }
    }
}

/// Device memory, for what a device needs itself.
pub(super) struct Memory {
    context: Arc<Context>,
    pub(super) address: u64,
    pub(super) bytes: usize,
}

impl Memory {
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        Ok(Self { context: context.clone(), address: allocate(context, bytes)?, bytes })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        free(&self.context, self.address);
    }
}

/// Takes device memory. `cuMemAlloc` aligns to 256 bytes at least.
pub(super) fn allocate(context: &Context, bytes: usize) -> Result<u64> {
    context.enter()?;
    let mut address = 0;
    // SAFETY: writes an address.
    let status = unsafe { (context.driver.cuMemAlloc_v2)(&mut address, bytes) };
    if status == OUT_OF_MEMORY {
        let (free, total) = context.memory_bytes()?;
        let label = &context.label;
        return Err(ComputeError::OutOfMemory(format!("{label}: {bytes} bytes asked for, {free} of {total} are free")));
    }
    context.check(&format!("cuMemAlloc of {bytes} bytes"), status)?;
    Ok(address)
}

/// Gives device memory back. `cuMemFree` waits for work that may use it. A failure is not told: it is that of earlier work,
/// which the next call tells, or of a context that is lost with all its memory.
pub(super) fn free(context: &Context, address: u64) {
    if context.enter().is_ok() {
        // SAFETY: an address that `allocate` gave and that is freed once.
        unsafe { (context.driver.cuMemFree_v2)(address) };
    }
}
