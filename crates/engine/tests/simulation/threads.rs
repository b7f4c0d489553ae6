//! The threads that may block, held up until they are told: what they do happens at one moment of the simulation.

use std::sync::mpsc::{Receiver, Sender, channel};
use tokio::runtime::{Builder, EnterGuard, Runtime};

/// A runtime with one thread that may block, which waits at a gate.
pub(crate) struct BlockingThread {
    /// Opens the gate; dropped before the runtime, which waits for the thread.
    open: Sender<()>,
    runtime: Runtime,
}

impl BlockingThread {
    pub(crate) fn new() -> Self {
        let runtime = Builder::new_current_thread().max_blocking_threads(1).build().expect("a runtime");
        let (open, arrived) = gate(&runtime);
        arrived.recv().expect("the thread comes to the gate");
        Self { open, runtime }
    }

    /// What is to block goes to the thread while this is held.
    pub(crate) fn enter(&self) -> EnterGuard<'_> {
        self.runtime.enter()
    }

    /// Has the thread do all that it was given since the last time.
    pub(crate) fn run(&mut self) {
        let (open, arrived) = gate(&self.runtime);
        std::mem::replace(&mut self.open, open).send(()).expect("the thread waits");
        arrived.recv().expect("the thread comes to the next gate");
    }
}

/// A gate behind all that the thread has to do; what opens it, and what tells that the thread is there.
fn gate(runtime: &Runtime) -> (Sender<()>, Receiver<()>) {
    let ((open, gate), (arrives, arrived)) = (channel(), channel());
    runtime.spawn_blocking(move || {
        let _ = arrives.send(());
        let _ = gate.recv();
    });
    (open, arrived)
}
