//! Aligned memory, and the workspace that hands it out and takes it back.
//!
//! Activations come and go with every operation; in the steady state the same buffers serve all of them, so that no
//! operation waits for the system to map and zero fresh pages.

use bytemuck::{Pod, Zeroable};
use std::cell::Cell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A cache line, so that vectors loaded from the start of a buffer do not straddle two.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Memory of 32-bit words, aligned to 64 bytes.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    lines: Vec<Line>,
}

impl Buffer {
    /// `words` zeroed words, or a little more.
    pub(crate) fn zeroed(words: usize) -> Self {
        Self { lines: vec![Line([0.0; 16]); words.div_ceil(16)] }
    }

    /// Words of a buffer that is asked to hold `words`.
    fn words_for(words: usize) -> usize {
        words.next_multiple_of(16)
    }

    /// Words that it holds.
    pub(crate) fn words(&self) -> usize {
        self.lines.len() * 16
    }

    /// Its words as `T`, which is four bytes wide (`f32` or `u32`).
    pub(crate) fn as_slice<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&self.lines)
    }

    /// Its words as `T`, which is four bytes wide (`f32` or `u32`).
    pub(crate) fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }
}

/// Free buffers, shared by a backend and all its tensors.
///
/// At most [`Workspace::KEPT`] free buffers are kept: more than a layer has alive at once, so that none is given up in
/// the steady state. Free and lent, they hold at most twice the words that were ever lent at once: batches that grow a
/// little each time would fill the place with buffers of the largest size. What is beyond goes, the smallest first, so
/// that what is kept fits the largest batches seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Workspace {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<Buffer>,
    free_words: usize,
    lent_words: usize,
    lent_words_peak: usize,
}

impl Workspace {
    const KEPT: usize = 12;

    /// A buffer of `words` words; what they hold is left over from earlier use.
    pub(crate) fn take(&self, words: usize) -> Leased {
        let fitting = {
            let mut state = self.lock();
            let free = &state.free;
            let best = (0..free.len()).filter(|&i| free[i].words() >= words).min_by_key(|&i| free[i].words());
            let buffer = best.map(|i| state.remove(i));
            let lent = buffer.as_ref().map_or_else(|| Buffer::words_for(words), Buffer::words);
            state.lent_words += lent;
            state.lent_words_peak = state.lent_words_peak.max(state.lent_words);
            buffer
        };
        Leased { buffer: fitting.unwrap_or_else(|| Buffer::zeroed(words)), words, workspace: self.clone() }
    }

    fn give_back(&self, buffer: Buffer) {
        let mut state = self.lock();
        state.lent_words -= buffer.words();
        state.free_words += buffer.words();
        state.free.push(buffer);
        while state.free.len() > Self::KEPT || state.lent_words + state.free_words > 2 * state.lent_words_peak {
            let Some(smallest) = (0..state.free.len()).min_by_key(|&i| state.free[i].words()) else { break };
            state.remove(smallest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remove(&mut self, at: usize) -> Buffer {
        let buffer = self.free.swap_remove(at);
        self.free_words -= buffer.words();
        buffer
    }
}

/// A buffer that returns to its workspace when dropped.
#[derive(Debug)]
pub(crate) struct Leased {
    buffer: Buffer,
    words: usize,
    workspace: Workspace,
}

impl Leased {
    pub(crate) fn as_slice(&self) -> &[f32] {
        &self.buffer.as_slice()[..self.words]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.buffer.as_mut_slice()[..self.words]
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.workspace.give_back(std::mem::take(&mut self.buffer));
    }
}

/// Runs `f` with `words` words that belong to this thread; what they hold is left over from earlier use.
pub(crate) fn with_scratch<R>(words: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static SCRATCH: Cell<Buffer> = const { Cell::new(Buffer { lines: Vec::new() }) };
    }
    // Taken out for the time of the call: a nested call finds none and makes its own.
    let mut buffer = SCRATCH.take();
    if buffer.words() < words {
        buffer = Buffer::zeroed(words);
    }
    let result = f(&mut buffer.as_mut_slice()[..words]);
    SCRATCH.set(buffer);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_reused() {
        let workspace = Workspace::default();
        let first = workspace.take(1000);
        assert_eq!(first.as_slice().len(), 1000);
        let address = first.as_slice().as_ptr();
        assert_eq!(address.align_offset(64), 0);
        drop(first);
        assert_eq!(workspace.take(900).as_slice().as_ptr(), address);
    }

    #[test]
    fn the_workspace_stays_bounded_and_keeps_the_largest() {
        let workspace = Workspace::default();
        let leases: Vec<_> = (1..=100).map(|i| workspace.take(i * 16)).collect();
        drop(leases);
        assert_eq!(workspace.lock().free.len(), Workspace::KEPT);
        let largest = workspace.take(1600);
        assert_eq!(workspace.lock().free.len(), Workspace::KEPT - 1);
        drop(largest);
    }

    #[test]
    fn batches_that_grow_do_not_pile_up() {
        let workspace = Workspace::default();
        for words in (16..16_000).step_by(16) {
            // Two tensors at once, then one of twice the size, as a layer might.
            drop((workspace.take(words), workspace.take(words)));
            drop(workspace.take(2 * words));
            let state = workspace.lock();
            assert_eq!(state.lent_words, 0);
            assert!(state.free_words <= 2 * state.lent_words_peak);
            assert_eq!(state.free_words, state.free.iter().map(Buffer::words).sum::<usize>());
        }
        assert!(workspace.lock().lent_words_peak <= 2 * 2 * 16_000);
    }

    #[test]
    fn scratch_may_nest() {
        with_scratch(8, |outer| {
            outer.fill(1.0);
            with_scratch(8, |inner| inner.fill(2.0));
            assert_eq!(outer, [1.0; 8]);
        });
    }
}
