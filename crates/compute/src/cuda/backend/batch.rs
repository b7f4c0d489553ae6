//! A packed batch as the kernels read it: tokens, and for each row and tile where it belongs.

use super::memory::{Leased, Workspace};
use crate::cuda::gpu::{Address, Gpu};
use crate::cuda::kernels::ATTENTION_TILE_ROWS;
use crate::{PackedBatch, Result, check};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A packed batch on the device.
#[derive(Debug)]
pub struct Batch<G: Gpu> {
    pub(super) packed: PackedBatch,
    layout: Layout,
    memory: Leased<G>,
    /// What operations on it rely on: token ids below, and sequences of at most so many tokens.
    tokens_below: AtomicUsize,
    longest_max: AtomicUsize,
}

/// Where the arrays of a batch lie within its memory; `i32` all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    rows: usize,
    sequences: usize,
    /// Tiles of queries, those without a sequence included.
    tiles: usize,
}

impl Layout {
    /// Tiles enough for any batch of so many rows and sequences, so that batches of one size are laid out alike.
    fn of(batch: &PackedBatch) -> Self {
        let (rows, sequences) = (batch.rows(), batch.sequences());
        Self { rows, sequences, tiles: (rows / ATTENTION_TILE_ROWS + sequences).min(rows) }
    }

    /// Bytes from the start to each array, and of all.
    fn starts(&self) -> [usize; 7] {
        let mut start = 0;
        [self.rows, self.rows, self.rows, self.sequences + 1, self.tiles, self.tiles, 0].map(|length| {
            let here = start;
            start = (start + 4 * length).next_multiple_of(256);
            here
        })
    }

    fn bytes(&self) -> usize {
        self.starts()[6]
    }
}

impl<G: Gpu> Batch<G> {
    pub(super) fn upload(gpu: &G, workspace: &Arc<Workspace<G>>, packed: &PackedBatch) -> Result<Self> {
        let layout = Layout::of(packed);
        let mut batch = Self {
            packed: packed.clone(),
            layout,
            memory: workspace.lease(layout.bytes())?,
            tokens_below: AtomicUsize::new(usize::MAX),
            longest_max: AtomicUsize::new(usize::MAX),
        };
        batch.renew(gpu, packed)?;
        Ok(batch)
    }

    /// Brings `packed`, of as many rows and sequences, to the same place.
    pub(super) fn renew(&mut self, gpu: &G, packed: &PackedBatch) -> Result<()> {
        debug_assert_eq!(Layout::of(packed), self.layout);
        gpu.write(self.memory.address(), &bytes_of(packed, self.layout)?)?;
        self.packed = packed.clone();
        Ok(())
    }

    /// Checks the batch for a table of so many rows, and remembers that it had to be.
    pub(super) fn check_tokens(&self, rows: usize) -> Result<()> {
        self.tokens_below.fetch_min(rows, Ordering::Relaxed);
        check::tokens_in_table(&self.packed, rows)
    }

    /// Remembers that sequences must not be longer.
    pub(super) fn limit_length(&self, positions: usize) {
        self.longest_max.fetch_min(positions, Ordering::Relaxed);
    }

    /// Whether another batch passes the checks that were made of this one: kernels that are replayed rely on them.
    pub(super) fn admits(&self, other: &PackedBatch) -> bool {
        let below = self.tokens_below.load(Ordering::Relaxed);
        other.longest() <= self.longest_max.load(Ordering::Relaxed)
            && other.tokens().iter().all(|&id| (id as usize) < below)
    }

    pub(super) fn rows(&self) -> usize {
        self.layout.rows
    }

    pub(super) fn sequences(&self) -> usize {
        self.layout.sequences
    }

    pub(super) fn tiles(&self) -> usize {
        self.layout.tiles
    }

    /// `[rows]`: token ids.
    pub(super) fn tokens(&self) -> Address {
        self.array(0)
    }

    /// `[rows]`: position of each row within its sequence.
    pub(super) fn positions(&self) -> Address {
        self.array(1)
    }

    /// `[rows]`: the sequence of each row.
    pub(super) fn row_sequences(&self) -> Address {
        self.array(2)
    }

    /// `[sequences + 1]`: the row at which each sequence starts.
    pub(super) fn offsets(&self) -> Address {
        self.array(3)
    }

    /// `[tiles]`: the sequence of each tile of queries, -1 for none.
    pub(super) fn tile_sequences(&self) -> Address {
        self.array(4)
    }

    /// `[tiles]`: the first query of each tile, within its sequence.
    pub(super) fn tile_queries(&self) -> Address {
        self.array(5)
    }

    fn array(&self, which: usize) -> Address {
        self.memory.address().offset(self.layout.starts()[which])
    }
}

fn bytes_of(packed: &PackedBatch, layout: Layout) -> Result<Vec<u8>> {
    let mut bytes = vec![0; layout.bytes()];
    let starts = layout.starts();
    let mut put = |which: usize, values: &mut dyn Iterator<Item = usize>| {
        for (out, value) in bytes[starts[which]..].chunks_exact_mut(4).zip(values) {
            out.copy_from_slice(&(value as i32).to_le_bytes());
        }
    };
    check::ensure(packed.rows() <= i32::MAX as usize, "upload", || format!("a batch of {} tokens", packed.rows()))?;
    let numbered = || packed.ranges().enumerate();
    put(0, &mut packed.tokens().iter().map(|&id| id as usize));
    put(1, &mut packed.ranges().flat_map(|range| 0..range.len()));
    put(2, &mut numbered().flat_map(|(sequence, range)| range.map(move |_| sequence)));
    put(3, &mut packed.offsets().iter().copied());
    let tiles = || {
        numbered()
            .flat_map(|(sequence, range)| (0..range.len()).step_by(ATTENTION_TILE_ROWS).map(move |q| (sequence, q)))
    };
    // -1 where there is no tile.
    put(
        4,
        &mut tiles()
            .map(|(sequence, _)| sequence)
            .chain(std::iter::repeat_n(usize::MAX, layout.tiles))
            .take(layout.tiles),
    );
    put(5, &mut tiles().map(|(_, query)| query));
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_tiles_know_where_they_belong() {
        let sequences: Vec<Vec<u32>> = [1, 130, 64].map(|length: u32| (0..length).collect()).into();
        let packed = PackedBatch::new(&sequences).unwrap();
        let layout = Layout::of(&packed);
        assert_eq!((layout.rows, layout.sequences, layout.tiles), (195, 3, 6));
        let bytes = bytes_of(&packed, layout).unwrap();
        let array = |which: usize, length: usize| -> Vec<i32> {
            let start = layout.starts()[which];
            bytes[start..start + 4 * length]
                .chunks_exact(4)
                .map(|b| i32::from_le_bytes(b.try_into().unwrap()))
                .collect()
        };
        assert_eq!(array(0, 4), [0, 0, 1, 2]);
        assert_eq!(array(1, 195)[130..133], [129, 0, 1]);
        assert_eq!(array(2, 195)[129..132], [1, 1, 2]);
        assert_eq!(array(3, 4), [0, 1, 131, 195]);
        assert_eq!(array(4, 6), [0, 1, 1, 1, 2, -1]);
        assert_eq!(array(5, 5), [0, 0, 64, 128, 0]);
    }

    #[test]
    fn no_batch_has_more_tiles_than_its_layout() {
        for lengths in [vec![1], vec![64], vec![65], vec![1; 200], vec![63, 65, 1, 128, 129], vec![4096]] {
            let sequences: Vec<Vec<u32>> = lengths.iter().map(|&length| vec![0; length]).collect();
            let packed = PackedBatch::new(&sequences).unwrap();
            let tiles: usize = lengths.iter().map(|length| length.div_ceil(ATTENTION_TILE_ROWS)).sum();
            assert!(tiles <= Layout::of(&packed).tiles, "{lengths:?}");
        }
    }
}
