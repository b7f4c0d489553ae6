//! Forward passes recorded as graphs: what a model does with a small batch is hundreds of short kernels, and a device starts
//! them faster when it knows them all.
//!
//! What is recorded depends on the numbers of rows and of sequences and on nothing else: where sequences begin is data. So
//! that few sizes are met, a batch is brought to one of them by sequences of the token 0 behind its own, whose rows of output
//! are dropped. A size is run once, so that everything of it is chosen and allocated, and recorded when it comes again.

use super::batch::Batch;
use super::{Cuda, Tensor};
use crate::cuda::gpu::Gpu;
use crate::{Backend, ComputeError, PackedBatch, Result};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Rows of a recorded batch come in steps of this: half the height of a tile of matrix instructions.
const ROWS_STEP: usize = 16;
/// Recordings that a model keeps, at most.
const GRAPHS_MAX: usize = 128;

/// What was recorded of one model.
#[derive(Debug)]
pub struct Recording<G: Gpu>(Mutex<HashMap<Size, Known<G>>>);

impl<G: Gpu> Default for Recording<G> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// Rows and sequences.
type Size = (usize, usize);

#[derive(Debug)]
enum Known<G: Gpu> {
    /// It ran once.
    Met,
    /// It can be replayed.
    Recorded(Box<Graph<G>>),
    /// It can not be recorded.
    Refused,
}

/// Fields are dropped in order: the graph before the memory that it uses.
#[derive(Debug)]
struct Graph<G: Gpu> {
    graph: G::Graph,
    batch: Batch<G>,
    out: Tensor<G>,
    /// Of the workspace, whose buffers are recorded by address.
    epoch: u64,
}

/// Runs `forward` on `batch`, by way of a recording where there is one.
pub(super) fn run<G: Gpu>(
    cuda: &Cuda<G>,
    recording: &Recording<G>,
    batch: &PackedBatch,
    forward: &(dyn Fn(&Batch<G>) -> Result<Tensor<G>> + Sync),
) -> Result<Vec<f32>> {
    let _running = cuda.running.lock().unwrap_or_else(PoisonError::into_inner);
    let padded = (batch.rows() <= cuda.options.graph_tokens_max).then(|| padded(batch)).flatten();
    let Some(padded) = padded else { return plain(cuda, batch, forward) };
    let mut known = recording.known();
    let size = (padded.rows(), padded.sequences());
    let full = known.len() >= GRAPHS_MAX;
    match known.get_mut(&size) {
        // Kernels check nothing: the forward pass says what is wrong with a batch, and nothing is computed.
        Some(Known::Recorded(graph)) if !graph.batch.admits(&padded) => return plain(cuda, batch, forward),
        Some(Known::Recorded(graph)) if graph.epoch == cuda.workspace.epoch() => {
            return kept(batch, graph.replay(cuda, &padded)?);
        }
        Some(Known::Refused) => return plain(cuda, batch, forward),
        None if full => return plain(cuda, batch, forward),
        Some(Known::Met) => {}
        // What was recorded names memory that is no longer held.
        Some(Known::Recorded(_)) | None => {
            let ran = plain(cuda, &padded, forward).and_then(|rows| kept(batch, rows));
            return attempted(ran, cuda, batch, forward, |refused| {
                known.insert(size, if refused { Known::Refused } else { Known::Met });
            });
        }
    }
    let recorded = record(cuda, &padded, forward).and_then(|graph| Ok((kept(batch, graph.replay_of(cuda)?)?, graph)));
    let (rows, graph) = match recorded {
        Ok((rows, graph)) => (Ok(rows), Some(graph)),
        Err(error) => (Err(error), None),
    };
    attempted(rows, cuda, batch, forward, |refused| {
        let recorded = graph.filter(|_| !refused).map(|graph| Known::Recorded(Box::new(graph)));
        known.insert(size, recorded.unwrap_or(Known::Refused));
    })
}

/// What came of a padded batch, or of the batch itself where that failed: a model may take no padding (its window is
/// shorter), and a batch that is wrong has to say itself what is. `remember` is told whether the padding was at fault, if
/// there is something to remember.
fn attempted<G: Gpu>(
    rows: Result<Vec<f32>>,
    cuda: &Cuda<G>,
    batch: &PackedBatch,
    forward: &(dyn Fn(&Batch<G>) -> Result<Tensor<G>> + Sync),
    remember: impl FnOnce(bool),
) -> Result<Vec<f32>> {
    match rows {
        Ok(rows) => {
            remember(false);
            Ok(rows)
        }
        Err(error) if error.is_device_failure() => Err(error),
        Err(error) => {
            let rows = plain(cuda, batch, forward)?;
            // Memory may be there another time.
            if !matches!(error, ComputeError::OutOfMemory(_)) {
                remember(true);
            }
            Ok(rows)
        }
    }
}

fn plain<G: Gpu>(
    cuda: &Cuda<G>,
    batch: &PackedBatch,
    forward: &(dyn Fn(&Batch<G>) -> Result<Tensor<G>> + Sync),
) -> Result<Vec<f32>> {
    cuda.download(&forward(&cuda.upload(batch)?)?)
}

fn record<G: Gpu>(
    cuda: &Cuda<G>,
    batch: &PackedBatch,
    forward: &(dyn Fn(&Batch<G>) -> Result<Tensor<G>> + Sync),
) -> Result<Graph<G>> {
    let epoch = cuda.workspace.epoch();
    let batch = cuda.upload(batch)?;
    let mut out = None;
    let graph = cuda.gpu.record(&mut || {
        out = Some(forward(&batch)?);
        Ok(())
    })?;
    if cuda.workspace.epoch() != epoch {
        // Idle buffers went back to the device meanwhile, and what was recorded may name them.
        return Err(ComputeError::OutOfMemory("too little of it for what a recording keeps".into()));
    }
    let out = out.ok_or_else(|| crate::check::shape_error("record", "nothing was computed"))?;
    Ok(Graph { graph, batch, out, epoch })
}

impl<G: Gpu> Graph<G> {
    fn replay(&mut self, cuda: &Cuda<G>, batch: &PackedBatch) -> Result<Vec<f32>> {
        self.batch.renew(&cuda.gpu, batch)?;
        self.replay_of(cuda)
    }

    /// Replays with the batch that is there.
    fn replay_of(&self, cuda: &Cuda<G>) -> Result<Vec<f32>> {
        cuda.gpu.replay(&self.graph)?;
        cuda.download(&self.out)
    }
}

impl<G: Gpu> Recording<G> {
    fn known(&self) -> MutexGuard<'_, HashMap<Size, Known<G>>> {
        // An entry is whole whenever something else panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rows of the batch's own sequences.
fn kept(batch: &PackedBatch, mut rows: Vec<f32>) -> Result<Vec<f32>> {
    let padded = padded_size(batch).1;
    rows.truncate(rows.len() / padded * batch.sequences());
    Ok(rows)
}

/// The size that a batch is brought to: a power of two of sequences, rows in steps of [`ROWS_STEP`].
fn padded_size(batch: &PackedBatch) -> Size {
    let (rows, sequences) = (batch.rows(), batch.sequences());
    if rows.is_multiple_of(ROWS_STEP) && sequences.is_power_of_two() {
        return (rows, sequences);
    }
    // At least one more, for the rows that are missing; and each of them has a row.
    let padded = (sequences + 1).next_power_of_two();
    ((rows + padded - sequences).next_multiple_of(ROWS_STEP), padded)
}

/// The batch with sequences of the token 0 behind its own.
fn padded(batch: &PackedBatch) -> Option<PackedBatch> {
    let (rows, sequences) = padded_size(batch);
    let mut all: Vec<&[u32]> = batch.ranges().map(|range| &batch.tokens()[range]).collect();
    let zeros = [0; 2 * ROWS_STEP];
    let (mut more, mut missing) = (sequences - batch.sequences(), rows - batch.rows());
    while more > 0 {
        // One row each, and the last has the rest.
        let length = if more == 1 { missing } else { 1 };
        all.push(zeros.get(..length)?);
        (more, missing) = (more - 1, missing - length);
    }
    PackedBatch::new(&all).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_brought_to_few_sizes() {
        let mut sizes = std::collections::BTreeSet::new();
        for lengths in [vec![64], vec![1], vec![63], vec![7, 9], vec![3, 3, 3], vec![5; 17], vec![250]] {
            let sequences: Vec<Vec<u32>> = lengths.iter().map(|&length| vec![3; length]).collect();
            let batch = PackedBatch::new(&sequences).unwrap();
            let padded = padded(&batch).unwrap();
            let size = (padded.rows(), padded.sequences());
            assert_eq!(size, padded_size(&batch), "{lengths:?}");
            assert!(size.0.is_multiple_of(ROWS_STEP) && size.1.is_power_of_two(), "{lengths:?}");
            assert!(size.0 < batch.rows() + 2 * ROWS_STEP + batch.sequences(), "{lengths:?}");
            assert_eq!(padded.tokens()[..batch.rows()], *batch.tokens());
            assert_eq!(padded.offsets()[..=batch.sequences()], *batch.offsets());
            assert_eq!(padded_size(&padded), size, "a padded batch is of its own size");
            sizes.insert(size);
        }
        assert_eq!(sizes.into_iter().next(), Some((16, 2)));
        assert_eq!(padded_size(&PackedBatch::new(&[[0; 64]]).unwrap()), (64, 1));
    }
}
