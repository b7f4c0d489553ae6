//! Copies between host and device, by page-locked buffers: what is copied from pageable memory waits in the driver, and what
//! is mapped from a file can not be page-locked.
//!
//! Deliberately absent: which thread may copy when; the device knows.

#![allow(unsafe_code)]

use super::context::{Context, Event, Pinned, Stream};
use crate::Result;
use rayon::prelude::*;
use std::sync::Arc;

/// Bytes of a buffer for weights.
const FILL_BYTES: usize = 16 << 20;

/// Bytes that one thread copies of a buffer: weights come from a mapped file, whose pages several threads read faster than one.
const COPY_BYTES: usize = 1 << 20;

/// Bytes of a slot of the ring for batches.
const SLOT_BYTES: usize = 256 << 10;

/// Slots of the ring.
const SLOTS: usize = 32;

/// Bytes of the buffer for results.
pub(super) const READ_BYTES: usize = 4 << 20;

/// A page-locked buffer, and the point after the last copy from it.
struct Buffer {
    memory: Pinned,
    used: Event,
}

impl Buffer {
    fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        Ok(Self { memory: Pinned::new(context, bytes)?, used: Event::new(context)? })
    }

    /// Copies `bytes` to the device in order with `stream`, once the last copy from here is done.
    fn send(&mut self, stream: &Stream, to: u64, bytes: &[u8]) -> Result<()> {
        self.used.synchronize()?;
        let buffer = &mut self.memory.slice()[..bytes.len()];
        if bytes.len() <= COPY_BYTES {
            buffer.copy_from_slice(bytes);
        } else {
            let pieces = buffer.par_chunks_mut(COPY_BYTES).zip(bytes.par_chunks(COPY_BYTES));
            pieces.for_each(|(buffer, bytes)| buffer.copy_from_slice(bytes));
        }
        // SAFETY: page-locked, not written again before `used`, and the caller's address has room. Where the device is
        // dropped before `used`, it waits for the stream first.
        unsafe { stream.copy_to_device(to, self.memory.pointer(), bytes.len())? };
        self.used.record(stream)
    }
}

/// Brings weights: while one buffer is on its way, the other is filled.
pub(super) struct Filler {
    buffers: [Buffer; 2],
    stream: Stream,
    context: Arc<Context>,
}

impl Filler {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self> {
        let buffers = [Buffer::new(context, FILL_BYTES)?, Buffer::new(context, FILL_BYTES)?];
        Ok(Self { buffers, stream: Stream::new(context)?, context: context.clone() })
    }

    /// Copies, and returns when it is done.
    pub(super) fn fill(&mut self, to: u64, bytes: &[u8]) -> Result<()> {
        self.context.enter()?;
        for (index, chunk) in bytes.chunks(FILL_BYTES).enumerate() {
            let to = to + (index * FILL_BYTES) as u64;
            self.buffers[index % 2].send(&self.stream, to, chunk)?;
        }
        self.stream.synchronize()
    }

    /// Waits for what is under way; for `drop`.
    pub(super) fn settle(&self) {
        drop(self.stream.synchronize());
    }
}

/// Brings what a batch is, in order with its work.
pub(super) struct Writer {
    slots: Vec<Buffer>,
    next: usize,
}

impl Writer {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self> {
        let slots = (0..SLOTS).map(|_| Buffer::new(context, SLOT_BYTES)).collect::<Result<_>>()?;
        Ok(Self { slots, next: 0 })
    }

    /// Copies; `bytes` may be changed afterwards. Waits where all slots are under way.
    pub(super) fn write(&mut self, stream: &Stream, to: u64, bytes: &[u8]) -> Result<()> {
        for (index, chunk) in bytes.chunks(SLOT_BYTES).enumerate() {
            self.slots[self.next].send(stream, to + (index * SLOT_BYTES) as u64, chunk)?;
            self.next = (self.next + 1) % SLOTS;
        }
        Ok(())
    }
}

/// Brings results.
pub(super) struct Reader {
    memory: Pinned,
    done: Event,
}

impl Reader {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self> {
        Ok(Self { memory: Pinned::new(context, READ_BYTES)?, done: Event::new(context)? })
    }

    /// Asks for a copy of at most [`READ_BYTES`], after all work that `stream` was asked for.
    pub(super) fn begin(&mut self, stream: &Stream, from: u64, bytes: usize) -> Result<()> {
        assert!(bytes <= READ_BYTES);
        // SAFETY: page-locked and long enough, waited for by `finish` or the next copy in this order of work, and the
        // caller's address has the bytes.
        unsafe { stream.copy_to_host(self.memory.pointer(), from, bytes)? };
        self.done.record(stream)
    }

    /// Waits for what was begun.
    pub(super) fn finish(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.done.synchronize()?;
        bytes.copy_from_slice(&self.memory.slice()[..bytes.len()]);
        Ok(())
    }
}
