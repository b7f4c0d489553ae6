//! Work that was recorded, to be launched as one.
//!
//! A stream is captured in relaxed mode: in the others, the driver forbids calls that may wait for the device, and allocating
//! memory is one of them. No other thread uses the stream meanwhile; the device sees to it.

#![allow(unsafe_code)]

use super::context::{Context, Stream};
use crate::{ComputeError, Result};
use cudarc::driver::sys;
use std::ptr::null_mut;
use std::sync::Arc;

/// Recorded launches and products.
pub struct Graph {
    context: Arc<Context>,
    executable: sys::CUgraphExec,
}

// SAFETY: a handle, used from any thread in which its context is current.
unsafe impl Send for Graph {}
// SAFETY: as above; launches are made one at a time by the device.
unsafe impl Sync for Graph {}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Graph").field(&self.context.label).finish()
    }
}

/// A capture under way, ended where `work` panics too.
struct Capture<'a> {
    context: &'a Context,
    stream: &'a Stream,
    is_open: bool,
}

impl Capture<'_> {
    /// Ends it. The graph is null where the capture was lost.
    fn end(&mut self) -> (sys::CUgraph, u32) {
        self.is_open = false;
        let mut graph = null_mut();
        if let Err(error) = self.context.enter() {
            drop(error);
        }
        // SAFETY: a capture of this stream is under way; writes a handle, or null.
        let status = unsafe { (self.context.driver.cuStreamEndCapture)(self.stream.raw(), &mut graph) };
        (graph, status)
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if self.is_open {
            let (graph, _) = self.end();
            destroy(self.context, graph);
        }
    }
}

fn destroy(context: &Context, graph: sys::CUgraph) {
    if !graph.is_null() {
        // SAFETY: a graph that a capture gave, destroyed once; what was made of it does not need it.
        unsafe { (context.driver.cuGraphDestroy)(graph) };
    }
}

impl Graph {
    /// Records what `work` asks of `stream`.
    pub(super) fn record(
        context: &Arc<Context>,
        stream: &Stream,
        work: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Self> {
        context.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive, not the legacy one, and not being captured.
        let status = unsafe { (context.driver.cuStreamBeginCapture_v2)(stream.raw(), mode) };
        context.check("cuStreamBeginCapture", status)?;
        let mut capture = Capture { context, stream, is_open: true };
        // Where this fails, dropping the capture ends it; the error of `work` says more than that of the end.
        work()?;
        let (graph, status) = capture.end();
        let made = context.check("cuStreamEndCapture", status).and_then(|()| Self::instantiate(context, stream, graph));
        destroy(context, graph);
        made
    }

    fn instantiate(context: &Arc<Context>, stream: &Stream, graph: sys::CUgraph) -> Result<Self> {
        if graph.is_null() {
            return Err(ComputeError::Shape { op: "record", detail: format!("{}: nothing came out", context.label) });
        }
        let mut executable = null_mut();
        // SAFETY: a graph; writes a handle, which `drop` destroys.
        let status = unsafe { (context.driver.cuGraphInstantiateWithFlags)(&mut executable, graph, 0) };
        context.check("cuGraphInstantiate", status)?;
        let made = Self { context: context.clone(), executable };
        // SAFETY: an executable graph and a stream of its context. Without it, the first launch would upload.
        let status = unsafe { (context.driver.cuGraphUpload)(made.executable, stream.raw()) };
        context.check("cuGraphUpload", status)?;
        Ok(made)
    }

    /// Does the work, in order with `stream`.
    pub(super) fn launch(&self, stream: &Stream) -> Result<()> {
        self.context.enter()?;
        // SAFETY: an executable graph and a stream of the same GPU.
        let status = unsafe { (self.context.driver.cuGraphLaunch)(self.executable, stream.raw()) };
        self.context.check("cuGraphLaunch", status)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: instantiated once, destroyed once; the driver finishes a launch under way first.
            unsafe { (self.context.driver.cuGraphExecDestroy)(self.executable) };
        }
    }
}
