//! Rows that stay on a device, and the search for those most similar to a source.
//!
//! The device scores all rows in f32 and gives those that may be among the best, with a margin; who asked ranks them exactly
//! ([`Candidates::is_enough`] says when the margin was wide enough). So an answer does not depend on where it was computed.
//!
//! Deliberately absent: which rows are worth a device's memory, and the exact ranking.

use super::backend::Cuda;
use super::backend::memory::{Leased, Owned, Workspace};
use super::gpu::{Address, Arg, Format, Gpu, Launch};
use super::kernels::Kernel;
use crate::{Result, check};
use std::sync::{Arc, Mutex, PoisonError};

const OP: &str = "search";
/// Sources that are scored at once.
const SOURCES: usize = 8;
/// Blocks of the kernels that go over all scores: enough to fill any device.
const BLOCKS_MAX: usize = 1024;
/// The digits of the selection: shift and bits.
const DIGITS: [(i32, i32); 3] = [(21, 11), (10, 11), (0, 10)];
const BINS: usize = 2048;
/// Lengths with which no product of f32 with a source of length 1, no sum of them and no inverse leaves f32's range.
const NORMS: std::ops::RangeInclusive<f64> = 1e-18..=1e18;

/// Rows on a device, `[rows, columns]`.
#[derive(Debug)]
pub struct DeviceRows<G: Gpu> {
    gpu: Arc<G>,
    rows: usize,
    columns: usize,
    format: Format,
    data: Owned<G>,
    inverse_norms: Owned<G>,
    /// One search at a time.
    searching: Mutex<Scratch<G>>,
}

/// What a search works with.
#[derive(Debug)]
struct Scratch<G: Gpu> {
    sources: Leased<G>,
    scores: Leased<G>,
    /// State and count, then the histogram.
    state: Leased<G>,
    /// Its own: what a model recorded uses idle buffers of the device's workspace without asking.
    workspace: Arc<Workspace<G>>,
}

/// What a device found for one source.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidates {
    /// Rows that may be among the best, in no order.
    pub rows: Vec<usize>,
    /// The least similarity among them, as the device has it.
    pub least: f32,
    /// What a similarity of the device may be off by.
    pub error: f32,
    /// Whether these are all rows that there are.
    pub is_all: bool,
}

impl Candidates {
    /// Whether no other row can be among the k best, of which the last has the exact similarity `last`.
    pub fn is_enough(&self, last: f32) -> bool {
        self.is_all || last > self.least + self.error
    }
}

impl<G: Gpu> DeviceRows<G> {
    /// Bytes of device memory that so many rows take.
    pub fn bytes(rows: usize, columns: usize, format: Format) -> u64 {
        (rows as u64) * (columns as u64 * format.size_bytes() as u64 + 4 + 4 * SOURCES as u64)
    }

    /// Brings rows to a device: little-endian, row-major, with their norms.
    ///
    /// # Errors
    ///
    /// A shape where sizes do not fit together or there are no rows; out of memory; a failure of the device.
    pub fn new(cuda: &Cuda<G>, format: Format, columns: usize, data: &[u8], norms: &[f64]) -> Result<Self> {
        let rows = norms.len();
        let fits = rows > 0 && columns > 0 && data.len() == rows * columns * format.size_bytes();
        check::ensure(fits, OP, || format!("{} bytes for {rows} rows of {columns}", data.len()))?;
        check::ensure(rows < i32::MAX as usize / 2, OP, || format!("{rows} rows"))?;
        let gpu = cuda.gpu().clone();
        let on_device = |bytes: &[u8]| -> Result<Owned<G>> {
            let memory = Owned::new(&gpu, bytes.len())?;
            gpu.fill(memory.address(), bytes)?;
            Ok(memory)
        };
        // NaN is collected with the best and says there that the device can not tell.
        let inverse_of = |norm: &f64| if NORMS.contains(norm) { norm.recip() as f32 } else { f32::NAN };
        let inverse: Vec<u8> = norms.iter().flat_map(|norm| inverse_of(norm).to_le_bytes()).collect();
        let (data, inverse_norms) = (on_device(data)?, on_device(&inverse)?);
        let workspace = Workspace::new(gpu.clone());
        let scratch = Scratch {
            sources: workspace.lease(4 * SOURCES * columns)?,
            scores: workspace.lease(4 * SOURCES * rows)?,
            state: workspace.lease(16 + 4 * BINS)?,
            workspace,
        };
        Ok(Self { gpu, rows, columns, format, data, inverse_norms, searching: Mutex::new(scratch) })
    }

    /// For each source, of length 1, rows among which the `k` most similar ones are, as far as the device can tell. `None`
    /// where it can not: a similarity is not finite, or too many rows are alike.
    pub fn search(&self, sources: &[Vec<f32>], k: usize) -> Result<Option<Vec<Candidates>>> {
        for source in sources {
            check::columns_match(OP, source.len(), self.columns)?;
        }
        let scratch = self.searching.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = k.saturating_add(32 + k / 8).min(self.rows);
        if k == 0 {
            let nothing = Candidates { rows: Vec::new(), least: f32::INFINITY, error: 0.0, is_all: true };
            return Ok(Some(vec![nothing; sources.len()]));
        }
        let mut found = Vec::with_capacity(sources.len());
        for sources in sources.chunks(SOURCES) {
            self.score(&scratch, sources)?;
            for source in 0..sources.len() {
                let scores = scratch.scores.address().offset(4 * source * self.rows);
                let Some(one) = self.select(&scratch, scores, wanted)? else { return Ok(None) };
                found.push(one);
            }
        }
        Ok(Some(found))
    }

    fn score(&self, scratch: &Scratch<G>, sources: &[Vec<f32>]) -> Result<()> {
        let bytes: Vec<u8> = sources.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
        self.gpu.write(scratch.sources.address(), &bytes)?;
        let kernel = match (self.format, sources.len()) {
            (Format::F32, 1) => Kernel::CosineF32,
            (Format::Bf16, 1) => Kernel::CosineBf16,
            (Format::F32, _) => Kernel::CosineManyF32,
            (Format::Bf16, _) => Kernel::CosineManyBf16,
        };
        let addresses =
            [self.data.address(), self.inverse_norms.address(), scratch.sources.address(), scratch.scores.address()];
        let sizes = [self.rows, self.columns, sources.len()];
        let args: Vec<Arg> = addresses.map(Arg::Address).into_iter().chain(sizes.map(int)).collect();
        self.launch(kernel, self.rows.div_ceil(8), &args)
    }

    /// All rows whose score is not below the `wanted`-th largest.
    fn select(&self, scratch: &Scratch<G>, scores: Address, wanted: usize) -> Result<Option<Candidates>> {
        // Twice as many, for scores that are alike.
        let most = (2 * wanted).min(self.rows);
        let out = scratch.workspace.lease(8 * most)?;
        let [state, indices, found] = [scratch.state.address(), out.address(), out.address().offset(4 * most)];
        let (count, histogram) = (state.offset(12), state.offset(16));
        let [scores, state_arg, count_arg, histogram, indices_arg, found_arg] =
            [scores, state, count, histogram, indices, found].map(Arg::Address);
        let all = self.rows.div_ceil(256).min(BLOCKS_MAX);
        self.launch(Kernel::TopkStart, 1, &[state_arg, histogram, count_arg, int(wanted)])?;
        for (shift, bits) in DIGITS {
            let [shift, bits] = [shift, bits].map(Arg::I32);
            self.launch(Kernel::TopkCount, all, &[scores, int(self.rows), state_arg, histogram, shift])?;
            self.launch(Kernel::TopkNarrow, 1, &[state_arg, histogram, shift, bits])?;
        }
        let args = [scores, int(self.rows), state_arg, count_arg, indices_arg, found_arg, int(most)];
        self.launch(Kernel::TopkCollect, all, &args)?;

        let mut bytes = [0; 4];
        self.gpu.read(count, &mut bytes)?;
        let count = u32::from_le_bytes(bytes) as usize;
        if count > most {
            return Ok(None);
        }
        let mut bytes = vec![0; 8 * most];
        self.gpu.read(out.address(), &mut bytes)?;
        let (indices, found) = bytes.split_at(4 * most);
        let words = |bytes: &[u8]| bytes.as_chunks::<4>().0[..count].to_vec();
        let scores: Vec<f32> = words(found).into_iter().map(f32::from_le_bytes).collect();
        if scores.iter().any(|score| !score.is_finite()) {
            return Ok(None);
        }
        let rows: Vec<usize> = words(indices).into_iter().map(|word| u32::from_le_bytes(word) as usize).collect();
        let least = scores.iter().copied().fold(f32::INFINITY, f32::min);
        // A lane adds a thirty-second of the products one after another, in two sums, and five times with others; norm and
        // source are rounded once each (Higham 2002, section 3.1).
        let error = (self.columns / 32 + 16) as f32 * f32::EPSILON;
        Ok(Some(Candidates { is_all: rows.len() == self.rows, rows, least, error }))
    }

    fn launch(&self, kernel: Kernel, blocks: usize, args: &[Arg]) -> Result<()> {
        self.gpu.launch(&Launch { kernel, grid: [blocks as u32, 1, 1], args })
    }
}

fn int(size: usize) -> Arg {
    Arg::I32(i32::try_from(size).unwrap_or(i32::MAX))
}
