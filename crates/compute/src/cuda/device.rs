//! A GPU by NVIDIA's libraries, opened at run time.
//!
//! All work of a device goes through one stream, in order; weights are brought beside it by another. Calls come from any
//! thread. Errors name the device, the call, the code and what it was about; [`error`] says which are of memory, of the
//! device, of the process.
//!
//! Deliberately absent: what is computed. The backend asks for kernels and products by name.

#![allow(unsafe_code)]

mod cache;
mod compile;
mod context;
mod error;
mod functions;
mod graph;
mod library;
mod order;
mod probe;
mod product;
mod transfer;

pub use compile::{Compiled, Compiler, Usage};
pub use graph::Graph;
pub use probe::{Absent, Found, find};
pub use product::row_buckets;

use super::gpu::{Address, Arg, Gpu, Launch, Product};
use crate::{ComputeError, Result};
use context::{Context, Stream};
use functions::Functions;
use order::{Order, Turn};
use product::Products;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use transfer::{Filler, Reader, Writer};

/// Arguments of a kernel, at most.
const ARGS_MAX: usize = 32;

/// Blocks along y and z, at most; along x there may be 2^31 - 1.
const GRID_YZ_MAX: u32 = 65_535;

/// How a GPU is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Where compiled kernels are kept for the next start; nowhere when `None`.
    pub kernel_cache: Option<PathBuf>,
}

/// An open GPU. Whatever was allocated and not freed is freed when it is dropped.
pub struct Device {
    // Dropped in this order, after `drop` has waited for both streams.
    filler: Mutex<Filler>,
    writer: Mutex<Writer>,
    reader: Mutex<Reader>,
    products: Mutex<Products>,
    functions: Functions,
    memory: Mutex<Allocations>,
    notes: Mutex<Vec<String>>,
    order: Order,
    stream: Stream,
    context: Arc<Context>,
}

/// Memory that was given out.
#[derive(Default)]
struct Allocations {
    live: BTreeSet<u64>,
    /// Given back by who was recording, when nothing can be waited for.
    leaving: Vec<u64>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Device").field(&self.context.label).finish()
    }
}

impl Device {
    /// Opens the GPU with this number, and compiles the kernels for it where that was not done before: seconds, the first
    /// time. It may be opened more than once; all share one context.
    pub fn open(ordinal: usize, options: &DeviceOptions) -> Result<Self> {
        let context = Context::open(ordinal)?;
        if !context.found.is_supported() {
            let what = format!("{}: compute capability 8.0 (Ampere) or newer is needed", context.label);
            return Err(ComputeError::Device(what));
        }
        let absent = |absent: Absent| ComputeError::Device(format!("{}: {absent}", context.label));
        let (_, driver_major) = probe::driver().map_err(absent)?;
        let compiler = Compiler::fitting(Some(driver_major)).map_err(absent)?;
        let lt = probe::cublaslt(driver_major).map_err(absent)?;
        let mut notes = Vec::new();
        let functions = Functions::load(&context, compiler, options.kernel_cache.as_deref(), &mut notes)?;
        Ok(Self {
            filler: Mutex::new(Filler::new(&context)?),
            writer: Mutex::new(Writer::new(&context)?),
            reader: Mutex::new(Reader::new(&context)?),
            products: Mutex::new(Products::new(&context, lt)?),
            functions,
            memory: Mutex::default(),
            notes: Mutex::new(notes),
            order: Order::default(),
            stream: Stream::new(&context)?,
            context,
        })
    }

    /// What it is, as it was found.
    pub fn found(&self) -> &Found {
        &self.context.found
    }

    /// What happened since the last call and is worth a line in a log: kernels that were compiled, a cache that can not be
    /// written, a product that was not timed.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = std::mem::take(&mut *lock(&self.notes));
        notes.extend(lock(&self.products).take_notes());
        notes
    }

    /// The turn of a call that can not be recorded.
    fn turn_outside(&self, op: &'static str) -> Result<Turn<'_>> {
        let turn = self.order.turn();
        if turn.is_recording() {
            let detail = "can not be recorded: only launches and products can".to_owned();
            return Err(ComputeError::Shape { op, detail });
        }
        Ok(turn)
    }

    fn release(&self, address: u64) {
        drop(self.stream.synchronize());
        context::free(&self.context, address);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Buffers and modules must not go while the device uses them. What fails here failed before.
        drop(self.stream.synchronize());
        lock(&self.filler).settle();
        let memory = std::mem::take(&mut *lock(&self.memory));
        for address in memory.live.into_iter().chain(memory.leaving) {
            context::free(&self.context, address);
        }
    }
}

impl Gpu for Device {
    type Graph = Graph;

    fn name(&self) -> String {
        self.context.label.clone()
    }

    fn row_buckets(&self, rows_max: usize) -> Vec<usize> {
        row_buckets(rows_max)
    }

    fn memory_bytes(&self) -> Result<u64> {
        self.context.memory_bytes().map(|(_, total)| total as u64)
    }

    fn memory_bytes_free(&self) -> Result<u64> {
        self.context.memory_bytes().map(|(free, _)| free as u64)
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        // Also while a recording is made: `Graph::record` makes one in which memory may be allocated.
        let address = context::allocate(&self.context, bytes)?;
        lock(&self.memory).live.insert(address);
        Ok(Address(address))
    }

    fn free(&self, address: Address) {
        let turn = self.order.turn();
        let mut memory = lock(&self.memory);
        if !memory.live.remove(&address.0) {
            return;
        }
        if turn.is_recording() {
            memory.leaving.push(address.0);
        } else {
            drop(memory);
            self.release(address.0);
        }
    }

    fn fill(&self, to: Address, bytes: &[u8]) -> Result<()> {
        lock(&self.filler).fill(to.0, bytes)
    }

    fn write(&self, to: Address, bytes: &[u8]) -> Result<()> {
        let _turn = self.turn_outside("write")?;
        self.context.enter()?;
        lock(&self.writer).write(&self.stream, to.0, bytes)
    }

    fn read(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        // Told before the reader is waited for: who holds it may be waiting for the end of this thread's recording.
        drop(self.turn_outside("read")?);
        let mut reader = lock(&self.reader);
        for (index, chunk) in bytes.chunks_mut(transfer::READ_BYTES).enumerate() {
            let from = from.offset(index * transfer::READ_BYTES);
            let turn = self.turn_outside("read")?;
            self.context.enter()?;
            reader.begin(&self.stream, from.0, chunk.len())?;
            // Others may ask for work while this is waited for.
            drop(turn);
            reader.finish(chunk)?;
        }
        Ok(())
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let kernel = launch.kernel;
        let [x, y, z] = launch.grid;
        if launch.grid.contains(&0) || x > i32::MAX as u32 || y > GRID_YZ_MAX || z > GRID_YZ_MAX {
            let detail = format!("{}: a grid of {x} x {y} x {z} blocks", kernel.name());
            return Err(ComputeError::Shape { op: "launch", detail });
        }
        if launch.args.len() > ARGS_MAX {
            let detail = format!("{}: {} arguments, more than {ARGS_MAX}", kernel.name(), launch.args.len());
            return Err(ComputeError::Shape { op: "launch", detail });
        }
        // Each value at the start of 8 bytes; the driver reads as many as the kernel's signature says.
        let mut values = [0u64; ARGS_MAX];
        let mut pointers = [null_mut(); ARGS_MAX];
        for (index, arg) in launch.args.iter().enumerate() {
            values[index] = match *arg {
                Arg::Address(address) => address.0,
                Arg::I32(value) => u64::from(value as u32),
                Arg::F32(value) => u64::from(value.to_bits()),
            };
        }
        const { assert!(cfg!(target_endian = "little"), "a narrow value is at the start of its 8 bytes") };
        for (pointer, value) in pointers.iter_mut().zip(&mut values) {
            *pointer = std::ptr::from_mut(value).cast();
        }
        let _turn = self.order.turn();
        self.context.enter()?;
        // SAFETY: a loaded function; an argument for each of its parameters, in order, by the contract of `Launch`, copied
        // within the call; memory behind addresses is the caller's promise.
        let status = unsafe {
            (self.context.driver.cuLaunchKernel)(
                self.functions.get(kernel),
                x,
                y,
                z,
                kernel.threads(),
                1,
                1,
                kernel.shared_bytes(),
                self.stream.raw(),
                pointers.as_mut_ptr(),
                null_mut(),
            )
        };
        match status {
            0 => Ok(()),
            status => {
                let of = format!("{} on {x} x {y} x {z} blocks of {}", kernel.name(), kernel.threads());
                self.context.check(&format!("cuLaunchKernel of {of} with {:?}", launch.args), status)
            }
        }
    }

    fn multiply(&self, product: &Product) -> Result<()> {
        let turn = self.order.turn();
        lock(&self.products).multiply(product, &self.stream, turn.is_recording())
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Graph> {
        drop(self.turn_outside("record")?);
        let recorder = self.order.record();
        let graph = Graph::record(&self.context, &self.stream, work);
        drop(recorder);
        let _turn = self.order.turn();
        let leaving = std::mem::take(&mut lock(&self.memory).leaving);
        for address in leaving {
            self.release(address);
        }
        graph
    }

    fn replay(&self, graph: &Graph) -> Result<()> {
        let _turn = self.turn_outside("replay")?;
        graph.launch(&self.stream)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
