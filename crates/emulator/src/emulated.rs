//! The emulated GPU.

#![allow(unsafe_code)]

use crate::launch::Launched;
use crate::memory::Memory;
use crate::product::multiply;
use nexus_compute::cuda::{Address, Arg, Gpu, Launch, Product};
use nexus_compute::{ComputeError, Result};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A GPU that is emulated.
#[derive(Debug, Default)]
pub struct Emulated(Mutex<State>);

/// What was asked of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Allocations.
    pub allocations: usize,
    /// Bytes that are allocated now.
    pub bytes: usize,
    /// Kernels and products that were run or recorded, not those that were replayed.
    pub calls: usize,
    /// Graphs that were recorded.
    pub recorded: usize,
    /// Times that a graph was replayed.
    pub replayed: usize,
}

#[derive(Debug, Default)]
struct State {
    memory: Memory,
    counts: Counts,
    recording: Option<Vec<Work>>,
    /// Calls until the error.
    failing: Option<(usize, ComputeError)>,
}

#[derive(Clone, Debug)]
enum Work {
    Launch(Launched),
    Product(Product),
}

/// Recorded work.
#[derive(Debug)]
pub struct Graph(Vec<Work>);

impl Emulated {
    /// A device without a limit of memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on, no more than `bytes` are there.
    pub fn set_memory_bytes(&self, bytes: usize) {
        self.state().memory.bytes_max = Some(bytes);
    }

    /// After `calls` more kernels and products, all of them fail with `error`.
    pub fn fail_after(&self, calls: usize, error: ComputeError) {
        self.state().failing = Some((calls, error));
    }

    /// What was asked of it so far.
    pub fn counts(&self) -> Counts {
        let state = self.state();
        Counts { bytes: state.memory.bytes, ..state.counts }
    }

    /// Runs a kernel that tests compiled in beside the project's own.
    pub fn launch_by_name(
        &self,
        name: &str,
        threads: u32,
        shared_bytes: u32,
        grid: [u32; 3],
        args: &[Arg],
    ) -> Result<(), String> {
        let _state = self.state();
        // SAFETY: tests give the arguments that their kernels take, of memory of this device, which is locked.
        unsafe { Launched::by_name(name, threads, shared_bytes, grid, args).run() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn work(&mut self, work: Work) -> Result<()> {
        self.counts.calls += 1;
        if let Some((calls, error)) = &mut self.failing {
            if *calls == 0 {
                return Err(error.clone());
            }
            *calls -= 1;
        }
        match &mut self.recording {
            Some(recording) => recording.push(work),
            None => self.run(&work)?,
        }
        Ok(())
    }

    fn run(&mut self, work: &Work) -> Result<()> {
        match work {
            // SAFETY: the backend passes each kernel what its signature says; accesses outside of the device's memory, which is
            // locked, meet guard pages.
            Work::Launch(launched) => unsafe { launched.run() }.map_err(ComputeError::Process),
            Work::Product(product) => {
                multiply(&mut self.memory, product);
                Ok(())
            }
        }
    }
}

impl Gpu for Emulated {
    type Graph = Graph;

    fn name(&self) -> String {
        "emulated".to_owned()
    }

    fn row_buckets(&self, rows_max: usize) -> Vec<usize> {
        vec![rows_max.div_ceil(2), rows_max]
    }

    fn memory_bytes(&self) -> Result<u64> {
        Ok(self.state().memory.bytes_max.map_or(u64::MAX, |most| most as u64))
    }

    fn memory_bytes_free(&self) -> Result<u64> {
        let state = self.state();
        Ok(state.memory.bytes_max.map_or(u64::MAX, |most| (most - state.memory.bytes.min(most)) as u64))
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        let mut state = self.state();
        state.counts.allocations += 1;
        state.memory.allocate(bytes)
    }

    fn free(&self, address: Address) {
        self.state().memory.free(address);
    }

    fn fill(&self, to: Address, bytes: &[u8]) -> Result<()> {
        self.state().memory.slice_mut(to, bytes.len()).copy_from_slice(bytes);
        Ok(())
    }

    fn write(&self, to: Address, bytes: &[u8]) -> Result<()> {
        let mut state = self.state();
        assert!(state.recording.is_none(), "nothing is written while work is recorded");
        state.memory.slice_mut(to, bytes.len()).copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        let state = self.state();
        assert!(state.recording.is_none(), "nothing is read while work is recorded");
        bytes.copy_from_slice(state.memory.slice(from, bytes.len()));
        Ok(())
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.state().work(Work::Launch(Launched::new(launch.kernel, launch.grid, launch.args)))
    }

    fn multiply(&self, product: &Product) -> Result<()> {
        self.state().work(Work::Product(*product))
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Graph> {
        self.state().recording = Some(Vec::new());
        let result = work();
        let mut state = self.state();
        let recorded = state.recording.take().unwrap_or_default();
        result?;
        state.counts.recorded += 1;
        Ok(Graph(recorded))
    }

    fn replay(&self, graph: &Graph) -> Result<()> {
        let mut state = self.state();
        state.counts.replayed += 1;
        graph.0.iter().try_for_each(|work| state.run(work))
    }
}
